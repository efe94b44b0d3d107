"""The transport over httpx, and over libraries that are made like it."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Iterator
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, ClassVar, Final, Protocol, TypeVar, cast, runtime_checkable

from flux0.adapters.httpx.body import AsyncBody, SyncHttpxBody
from flux0.adapters.httpx.connection import current, instrument_client
from flux0.adapters.httpx.exchange import HttpxExchange
from flux0.adapters.httpx.own_clients import OwnClients
from flux0.adapters.shared.bodies import SyncBody
from flux0.adapters.shared.failures import failure
from flux0.adapters.shared.limits import ACCEPT_ENCODING
from flux0.adapters.shared.misplaced import refuse_misplaced, shown
from flux0.adapters.shared.proxies import EnvironmentProxies
from flux0.domain.errors import ClientClosed, ConnectError, Flux0Error, InvalidArgument
from flux0.domain.headers import Headers
from flux0.domain.http import is_framed, is_success
from flux0.ports import AsyncByteStream, ByteStream, Request, Response
from flux0.runtime.event_loop import PerLoop
from flux0.runtime.processes import PerProcess, run_in_new_thread

Body = TypeVar("Body")

_PROXIES: Final = ("http", "https", "socks5", "socks5h")


class HttpResponse(Protocol):
    """What a response of httpx or httpx2 is known by; nothing is asked of it by this type."""

    status_code: int


@runtime_checkable
class HttpClient(Protocol):
    """The part of `httpx.Client`, or `httpx2.Client`, that is used."""

    def build_request(
        self, method: str, url: Any, *, content: Any, headers: Any, timeout: Any
    ) -> Any:
        """Return a request of the library with the client's own defaults in it."""
        ...

    def send(self, request: Any, *, stream: bool, follow_redirects: bool) -> HttpResponse:
        """Send a request and return the library's response."""
        ...


@runtime_checkable
class AsyncHttpClient(Protocol):
    """The part of `httpx.AsyncClient`, or `httpx2.AsyncClient`, that is used."""

    def build_request(
        self, method: str, url: Any, *, content: Any, headers: Any, timeout: Any
    ) -> Any:
        """Return a request of the library with the client's own defaults in it."""
        ...

    async def send(self, request: Any, *, stream: bool, follow_redirects: bool) -> HttpResponse:
        """Send a request and return the library's response."""
        ...


class HttpxFamilyTransport:
    """What the transports over httpx and its kin have in common, which is all but the library.

    Attributes:
        library: the module whose clients are used; it has the names of httpx.
        core: the module that it makes its connections with; it has the names of httpcore.
    """

    library: ClassVar[Any]
    core: ClassVar[Any]
    _whole_body: ClassVar[Any]

    def __init_subclass__(cls) -> None:
        bases = (_WholeBody, cls.library.AsyncByteStream)
        cls._whole_body = type("WholeBody", bases, {})

    def __init__(
        self, client: HttpClient | None = None, async_client: AsyncHttpClient | None = None
    ) -> None:
        library, core = self.library, self.core
        _check("client", client, library.__name__, asynchronous=False)
        _check("async_client", async_client, library.__name__, asynchronous=True)
        self._client = instrument_client(client, library, core)
        self._async_client = instrument_client(async_client, library, core)
        self._proxies = EnvironmentProxies(library.__name__, _PROXIES)
        self._own_clients = PerProcess(partial(OwnClients, library, core, asynchronous=False))
        weakref.finalize(self, _forget, weakref.ref(self), self._own_clients)
        self._own_async_clients: PerLoop[OwnClients] = PerLoop(
            partial(OwnClients, library, core, asynchronous=True), OwnClients.close_async
        )

    def __repr__(self) -> str:
        return shown(self, client=self._client, async_client=self._async_client)

    @property
    def serves_sync(self) -> bool:
        """Whether synchronous calls go out over the clients that were given, or none was given."""
        return self._client is not None or self._async_client is None

    @property
    def serves_async(self) -> bool:
        """Whether asynchronous calls do."""
        return self._async_client is not None or self._client is None

    def send(self, request: Request) -> Response[ByteStream]:
        """Send `request` once; see `Transport.send`."""
        if not self.serves_sync:
            raise Flux0Error(
                "the transport was given an asynchronous client only: use the methods that end in "
                "_async, or pass it a synchronous client too"
            )
        own = None if self._client is not None else self._own_clients.get()
        client: Any = self._client
        if own is not None:
            client = own.get(self._proxies.proxy_for(request.url))
        built = self._build(client, request)
        exchange = HttpxExchange(self.library, self.core, built, request)
        built.extensions["trace"] = exchange.trace
        token = current.set(exchange)
        try:
            response = client.send(built, stream=True, follow_redirects=False)
        except Exception as error:
            response = self._response_despite(error, client, built, exchange)
            if response is None:
                raise
        finally:
            current.reset(token)
            exchange.clear_interrupt()
        exchange.complete(response)
        body = SyncBody(SyncHttpxBody(request, built, exchange, response, self))
        if own is not None:
            own.bodies.add(body)
        return _answer(response, body)

    def close(self) -> None:
        """Close the synchronous client and all that is read over it, unless it is the user's."""
        self._own_clients.get().close()

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        """Send `request` once; see `AsyncTransport.send_async`."""
        if not self.serves_async:
            raise Flux0Error(
                "the transport was given a synchronous client only: pass it an asynchronous one "
                "too, or the transport to Flux0, which sends asynchronous calls over it in threads"
            )
        client: Any = self._async_client
        if client is None:
            own = await self._own_async_clients.get()
            client = own.get(self._proxies.proxy_for(request.url))
        built = self._build(client, request)
        exchange = HttpxExchange(self.library, self.core, built, request)
        built.extensions["trace"] = exchange.trace_async
        if request.body is not None:
            built.stream = self._whole_body(request.body)
        token = current.set(exchange)
        try:
            response = await client.send(built, stream=True, follow_redirects=False)
        except Exception as error:
            response = self._response_despite(error, client, built, exchange)
            if response is None:
                raise
        finally:
            current.reset(token)
            exchange.clear_interrupt()
        exchange.complete(response)
        return _answer(response, AsyncBody(request, built, exchange, response, self))

    async def close_async(self) -> None:
        """Close the running loop's client, unless it is the user's."""
        await self._own_async_clients.close_async()

    def _build(self, client: Any, request: Request) -> Any:
        if getattr(client, "is_closed", False):
            raise self._closed()
        library, timeout, headers = self.library, request.timeout, request.headers
        pairs = headers.pairs
        if "accept-encoding" not in headers:
            pairs += (("accept-encoding", ACCEPT_ENCODING),)
        try:
            built: Any = client.build_request(
                request.method,
                request.url,
                content=request.body,
                headers=library.Headers(pairs, encoding="latin-1"),
                timeout=(timeout.connect, timeout.read, timeout.write, timeout.pool),
            )
        except (library.InvalidURL, UnicodeError) as error:  # The latter by idna.
            raise failure(ConnectError, error, timeout) from error
        return built

    def _response_despite(
        self, error: Exception, client: Any, built: Any, exchange: HttpxExchange
    ) -> Any:
        """Return the response if a hook called `raise_for_status`; None to re-raise `error`.

        Raises:
            TransportError: The library failed to send the request.
            ClientClosed: The client, or its event loop, is closed.
        """
        if isinstance(error, self.library.HTTPStatusError):
            own = error.request is built and not is_success(error.response.status_code)
            return error.response if own else None
        if isinstance(error, RuntimeError):
            if getattr(client, "is_closed", False) or "loop is closed" in str(error):
                raise self._closed() from error
            return None
        translated = exchange.translated(error, built)
        if translated is not None:
            raise translated from error
        return None

    def _closed(self) -> ClientClosed:
        name = self.library.__name__
        return ClientClosed(f"the {name} client, or the event loop it was used in, is closed")


def _forget(
    transport: weakref.ref[HttpxFamilyTransport], own_clients: PerProcess[OwnClients]
) -> None:
    own = own_clients.get()
    if transport() is not None:  # Python ends: nobody holds a lock, and no thread must begin.
        own.close_clients()
    elif own.is_used:  # The collector may have run while this thread holds a lock.
        run_in_new_thread(own.close)


def _check(argument: str, client: object, name: str, *, asynchronous: bool) -> None:
    """Refuse what is not a client of the library of this name, or one of the other kind."""
    if client is None:
        return
    refuse_misplaced(argument, client, name)
    if hasattr(client, "send_async"):
        raise InvalidArgument(argument, "is a transport: pass it as transport=")
    for method in ("build_request", "send"):
        if not hasattr(client, method):
            problem = f"must be like an {name}.Client: {type(client).__name__} has no {method}"
            raise InvalidArgument(argument, problem)
    if iscoroutinefunction(cast("Any", client).send) is not asynchronous:
        kind, other = (
            ("synchronous", "client") if asynchronous else ("asynchronous", "async_client")
        )
        raise InvalidArgument(argument, f"is {kind}: pass it as {other}=")


def _answer(response: Any, body: Body) -> Response[Body]:
    fields = response.headers.raw
    pairs = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in fields)
    headers = Headers(tuple(pairs))
    framed = response.http_version == "HTTP/2" or is_framed(headers)
    # An application that answers within this process ends its body itself.
    close_delimited = "network_stream" in response.extensions and not framed
    return Response(response.status_code, headers, body, response, close_delimited)


class _WholeBody:
    """A request's body. httpx's own is a generator, of which trio warns when sending breaks off."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Once(iter((self._body,)))


class _Once(AsyncIterator[bytes]):
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration
