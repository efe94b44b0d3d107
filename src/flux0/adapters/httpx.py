"""The transport over httpx, sync and async."""

from __future__ import annotations

from typing import ClassVar

import httpcore
import httpx

from flux0.adapters.support.httpx_family import (
    AsyncHttpClient,
    HttpClient,
    HttpxFamilyTransport,
    WholeBody,
)

__all__ = ["AsyncHttpClient", "HttpClient", "HttpxTransport"]


class _WholeBody(WholeBody, httpx.AsyncByteStream):
    pass


class HttpxTransport(HttpxFamilyTransport):
    """Sends requests over httpx, with clients of the user's or clients made when first needed.

    A client passed in keeps its proxies, certificates, authentication, cookies and hooks, and is
    never closed here. One made here keeps no cookies. Timeouts are the request's; redirects are
    not followed.
    """

    library: ClassVar = httpx
    core: ClassVar = httpcore
    whole_body = _WholeBody

    def __init__(
        self, client: HttpClient | None = None, async_client: AsyncHttpClient | None = None
    ) -> None:
        super().__init__(client, async_client)
