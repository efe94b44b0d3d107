"""The transport over httpx, sync and async."""

from __future__ import annotations

from typing import ClassVar, Protocol

import httpx

from flux0.adapters.support.httpx_family import HttpxFamilyTransport, WholeBody
from flux0.adapters.support.httpx_response import Errors


class HttpClient(Protocol):
    """The part of `httpx.Client` that is used."""

    def build_request(
        self,
        method: str,
        url: str,
        *,
        content: bytes | None,
        headers: httpx.Headers,
        timeout: httpx.Timeout,
    ) -> httpx.Request:
        """Return a request with the client's own defaults in it."""
        ...

    def send(
        self, request: httpx.Request, *, stream: bool, follow_redirects: bool
    ) -> httpx.Response:
        """Send a request."""
        ...


class AsyncHttpClient(Protocol):
    """The part of `httpx.AsyncClient` that is used."""

    def build_request(
        self,
        method: str,
        url: str,
        *,
        content: bytes | None,
        headers: httpx.Headers,
        timeout: httpx.Timeout,
    ) -> httpx.Request:
        """Return a request with the client's own defaults in it."""
        ...

    async def send(
        self, request: httpx.Request, *, stream: bool, follow_redirects: bool
    ) -> httpx.Response:
        """Send a request."""
        ...


class _WholeBody(WholeBody, httpx.AsyncByteStream):
    pass


class HttpxTransport(HttpxFamilyTransport):
    """Sends requests over httpx, with clients of the user's or clients made when first needed.

    A client passed in keeps its proxies, certificates, authentication, cookies and hooks, and is
    never closed here. One made here keeps no cookies. Timeouts are the request's; redirects are
    not followed.
    """

    library: ClassVar = httpx
    errors = Errors.of(httpx)
    whole_body = _WholeBody

    def __init__(
        self, client: HttpClient | None = None, async_client: AsyncHttpClient | None = None
    ) -> None:
        super().__init__(client, async_client)
