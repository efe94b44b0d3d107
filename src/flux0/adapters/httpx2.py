"""The transport over httpx2, sync and async."""

from __future__ import annotations

from typing import ClassVar

import httpx2

from flux0.adapters.support.httpx_family import HttpxFamilyTransport, WholeBody
from flux0.adapters.support.httpx_response import Errors


class _WholeBody(WholeBody, httpx2.AsyncByteStream):
    pass


class Httpx2Transport(HttpxFamilyTransport):
    """Sends requests over httpx2, as `HttpxTransport` does over httpx.

    A client passed in keeps its proxies, certificates, authentication, cookies and hooks, and is
    never closed here. One made here keeps no cookies. Timeouts are the request's; redirects are
    not followed. httpx2 needs Python 3.11 or newer.
    """

    library: ClassVar = httpx2
    errors = Errors.of(httpx2)
    whole_body = _WholeBody

    def __init__(
        self,
        client: httpx2.Client | None = None,
        async_client: httpx2.AsyncClient | None = None,
    ) -> None:
        super().__init__(client, async_client)
