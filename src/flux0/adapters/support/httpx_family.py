"""The transport over httpx, and over libraries that are made like it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from flux0.adapters.support.event_loop import PerLoop
from flux0.adapters.support.httpx_response import AsyncBody, Errors, Reading, SyncBody
from flux0.adapters.support.processes import PerProcess
from flux0.domain.errors import ClientClosed
from flux0.domain.headers import Headers
from flux0.ports import AsyncByteStream, ByteStream, Request, Response

if TYPE_CHECKING:
    import httpx

Body = TypeVar("Body")

_LIMITS: Final = {
    # A turn holds its connection for as long as the agent thinks, so a busy process needs many.
    "max_connections": 1000,
    "max_keepalive_connections": 100,
    # A flux0 server closes a connection that nobody uses for 5 seconds. Being first avoids a race.
    "keepalive_expiry": 4.0,
}


class HttpxFamilyTransport:
    """What the transports over httpx and its kin have in common, which is all but the library.

    Attributes:
        library: the module whose clients are used; it has the names of httpx.
        errors: what it raises.
        whole_body: a `WholeBody` that is one of the library's asynchronous streams.
    """

    library: ClassVar[Any]
    errors: ClassVar[Errors]
    whole_body: ClassVar[type[WholeBody]]

    def __init__(self, client: Any, async_client: Any) -> None:
        self._client = client
        self._async_client = async_client
        library = self.library
        self._own_clients = PerProcess(partial(_OwnClient, library))
        weakref.finalize(self, _close, self._own_clients)
        self._own_async_clients: PerLoop[Any]
        self._own_async_clients = PerLoop(
            lambda: library.AsyncClient(**_options(library)), library.AsyncClient.aclose
        )

    def send(self, request: Request) -> Response[ByteStream]:
        """Send `request` once; see `Transport.send`."""
        own = None if self._client is not None else self._own_clients.get()
        client: Any = self._client if own is None else own.get()
        try:
            built = self._build(client, request)
            response = client.send(built, stream=True, follow_redirects=False)
        except self.errors.raised as error:
            raise self.errors.translated(error) from error
        except RuntimeError as error:
            self._check_open(client, error)
            raise
        body = SyncBody(Reading(request, built, response, self.errors), self)
        if own is not None:
            own.reads(body)
        return _answer(response, body)

    def close(self) -> None:
        """Close the synchronous client and all that is read over it, unless it is the user's."""
        _close(self._own_clients)

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        """Send `request` once; see `AsyncTransport.send_async`."""
        client = self._async_client or await self._own_async_clients.get()
        try:
            built = self._build(client, request)
            if request.body is not None:
                built.stream = self.whole_body(request.body)
            response = await client.send(built, stream=True, follow_redirects=False)
        except self.errors.raised as error:
            raise self.errors.translated(error) from error
        except RuntimeError as error:
            self._check_open(client, error)
            raise
        return _answer(response, AsyncBody(Reading(request, built, response, self.errors), self))

    async def close_async(self) -> None:
        """Close the running loop's client, unless it is the user's."""
        await self._own_async_clients.close_async()

    def _build(self, client: Any, request: Request) -> Any:
        timeout = request.timeout
        return client.build_request(
            request.method,
            request.url,
            content=request.body,
            headers=self.library.Headers(request.headers.pairs, encoding="latin-1"),
            timeout=self.library.Timeout(
                connect=timeout.connect, read=timeout.read, write=timeout.write, pool=timeout.pool
            ),
        )

    def _check_open(self, client: Any, error: RuntimeError) -> None:
        if getattr(client, "is_closed", False) or "loop is closed" in str(error):
            name = self.library.__name__
            raise ClientClosed(
                f"the {name} client, or the event loop it was used in, is closed"
            ) from error


class _OwnClient:
    """The synchronous client that is made here, when first needed and again after closing."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._bodies: weakref.WeakSet[SyncBody] = weakref.WeakSet()

    def get(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                client: httpx.Client = self._library.Client(**_options(self._library))
                self._client = client
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


def _close(own_clients: PerProcess[_OwnClient]) -> None:
    own_clients.get().close()


def _options(library: Any) -> dict[str, Any]:
    """Return what our own clients are made with."""
    # A jar that takes none: a cookie of the server's would change who the user is.
    cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
    return {"limits": library.Limits(**_LIMITS), "cookies": cookies}


def _answer(response: httpx.Response, body: Body) -> Response[Body]:
    headers = Headers(tuple(response.headers.multi_items()))
    return Response(response.status_code, headers, body, response)


class WholeBody:
    """A request's body. httpx's own is a generator, of which trio warns when sending breaks off."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Pieces(iter((self._body,)))


class _Pieces(AsyncIterator[bytes]):
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration
