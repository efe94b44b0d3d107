"""The transport over httpx, sync and async."""

from __future__ import annotations

from typing import Any, ClassVar

import httpcore
import httpx

from flux0.adapters.httpx.family import AsyncHttpClient, HttpClient, HttpxFamilyTransport

__all__ = ["AsyncHttpClient", "HttpClient", "HttpxTransport"]


class HttpxTransport(HttpxFamilyTransport):
    """Sends requests over httpx, with clients of the user's or clients made when first needed.

    A client passed in keeps its proxies, certificates, authentication, cookies and hooks, and is
    never closed here. The connections that it makes from then on are watched, so that none is used
    again with bytes of another answer on it. One made here keeps no cookies. Timeouts are the
    request's; redirects are not followed.

    Args:
        client: an `httpx.Client`, for synchronous calls.
        async_client: an `httpx.AsyncClient`, for asynchronous calls.
    """

    library: ClassVar[Any] = httpx
    core: ClassVar[Any] = httpcore
