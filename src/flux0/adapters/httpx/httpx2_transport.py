"""The transport over httpx2, sync and async."""

from __future__ import annotations

from typing import Any, ClassVar

import httpcore2
import httpx2

from flux0.adapters.httpx.family import HttpxFamilyTransport


class Httpx2Transport(HttpxFamilyTransport):
    """Sends requests over httpx2, as `HttpxTransport` does over httpx.

    A client passed in keeps its proxies, certificates, authentication, cookies and hooks, and is
    never closed here. The connections that it makes from then on are watched, so that none is used
    again with bytes of another answer on it. One made here keeps no cookies. Timeouts are the
    request's; redirects are not followed. httpx2 needs Python 3.11 or newer.

    Args:
        client: an `httpx2.Client`, for synchronous calls.
        async_client: an `httpx2.AsyncClient`, for asynchronous calls.
    """

    library: ClassVar[Any] = httpx2
    core: ClassVar[Any] = httpcore2
