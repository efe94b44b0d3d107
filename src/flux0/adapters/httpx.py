"""The transport over httpx, sync and async."""

from __future__ import annotations

import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Protocol, TypeVar

import httpx

from flux0.adapters._httpx_response import RAISED, AsyncBody, Reading, SyncBody, translated
from flux0.domain.errors import ClientClosed
from flux0.domain.headers import Headers
from flux0.event_loop import PerLoop
from flux0.ports import AsyncByteStream, ByteStream, Request, Response

Body = TypeVar("Body")

_LIMITS = httpx.Limits(
    # A turn holds its connection for as long as the agent thinks, so a busy process needs many.
    max_connections=1000,
    max_keepalive_connections=100,
    # A flux0 server closes a connection that nobody uses for 5 seconds. Being first avoids a race.
    keepalive_expiry=4.0,
)


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


class HttpxTransport:
    """Sends requests over httpx, with clients of the user's or clients made when first needed.

    A client passed in keeps its proxies, certificates, authentication, cookies and hooks, and is
    never closed here. One made here keeps no cookies. Timeouts are the request's; redirects are
    not followed.
    """

    def __init__(
        self, client: HttpClient | None = None, async_client: AsyncHttpClient | None = None
    ) -> None:
        self._client = client
        self._async_client = async_client
        self._own_client = _OwnClient(self)
        self._own_async_clients = PerLoop(_make_async_client, httpx.AsyncClient.aclose)

    def send(self, request: Request) -> Response[ByteStream]:
        """Send `request` once; see `Transport.send`."""
        client: HttpClient = self._client or self._own_client.get()
        try:
            built = _build(client, request)
            response = client.send(built, stream=True, follow_redirects=False)
        except RAISED as error:
            raise translated(error) from error
        except RuntimeError as error:
            _check_open(client, error)
            raise
        body = SyncBody(Reading(request, built, response), self)
        if self._client is None:
            self._own_client.reads(body)
        return _answer(response, body)

    def close(self) -> None:
        """Close the synchronous client and all that is read over it, unless it is the user's."""
        self._own_client.close()

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        """Send `request` once; see `AsyncTransport.send_async`."""
        client: AsyncHttpClient = self._async_client or await self._own_async_clients.get()
        try:
            built = _build(client, request)
            if request.body is not None:
                built.stream = _WholeBody(request.body)
            response = await client.send(built, stream=True, follow_redirects=False)
        except RAISED as error:
            raise translated(error) from error
        except RuntimeError as error:
            _check_open(client, error)
            raise
        return _answer(response, AsyncBody(Reading(request, built, response), self))

    async def close_async(self) -> None:
        """Close the running loop's client, unless it is the user's."""
        await self._own_async_clients.close_async()


class _OwnClient:
    """The synchronous client that is made here, when first needed and again after closing."""

    def __init__(self, owner: HttpxTransport) -> None:
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._bodies: weakref.WeakSet[SyncBody] = weakref.WeakSet()
        weakref.finalize(owner, self.close)

    def get(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                self._client = httpx.Client(limits=_LIMITS, cookies=_no_cookies())
            return self._client

    def reads(self, body: SyncBody) -> None:
        """Know of a body, to end its reading when the client is closed."""
        with self._lock:
            self._bodies.add(body)

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
            bodies = tuple(self._bodies)
        for body in bodies:
            body.close()
        if client is not None:
            client.close()


def _make_async_client() -> httpx.AsyncClient:
    return httpx.AsyncClient(limits=_LIMITS, cookies=_no_cookies())


def _no_cookies() -> CookieJar:
    """Return a jar that takes none: a cookie of the server's would change who the user is."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=()))


def _build(client: HttpClient | AsyncHttpClient, request: Request) -> httpx.Request:
    timeout = request.timeout
    return client.build_request(
        request.method,
        request.url,
        content=request.body,
        headers=httpx.Headers(request.headers.pairs, encoding="latin-1"),
        timeout=httpx.Timeout(
            connect=timeout.connect, read=timeout.read, write=timeout.write, pool=timeout.pool
        ),
    )


def _check_open(client: HttpClient | AsyncHttpClient, error: RuntimeError) -> None:
    if getattr(client, "is_closed", False) or "loop is closed" in str(error):
        raise ClientClosed("the httpx client, or its event loop, is closed") from error


def _answer(response: httpx.Response, body: Body) -> Response[Body]:
    headers = Headers(tuple(response.headers.multi_items()))
    return Response(response.status_code, headers, body, response)


class _WholeBody(httpx.AsyncByteStream):
    """A request's body. httpx's own is a generator, of which trio warns when sending breaks off."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Pieces(iter((self._body,)))


class _Pieces:
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration
