"""Transports with bugs: wrappers of correct transports, and changes of the example in the docs."""

from __future__ import annotations

from asyncio import shield
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from concurrent import futures
from contextlib import suppress
from functools import cache, partial
from ssl import SSLContext
from threading import Event, Lock
from time import sleep
from types import CodeType
from typing import Any, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from anyio import sleep_forever
from anyio.lowlevel import checkpoint
from attrs import evolve, field, frozen
from urllib3 import PoolManager

from flux0 import HttpxTransport, Urllib3Transport
from flux0.domain.errors import (
    ConnectionInterrupted,
    ConnectTimeout,
    ProtocolError,
    ReadTimeout,
    TransportError,
)
from flux0.domain.headers import Headers
from flux0.ports import Interrupt, Request, Response
from flux0.runtime.event_loop import do_nothing
from flux0.testing.contract.harness import LONG, LONG_TIMEOUT, run_in_thread
from support.transports_page import TRANSPORT

T = TypeVar("T")
Send = Callable[[Request], Response[Any]]
Bug = Callable[[Request, Send], Response[Any]]
KEPT: list[object] = []
OTHER_FIELDS = Headers((("link", "x"), ("content-type", "x"), ("accept-encoding", "br")))


@frozen
class Body:
    """A response body with these methods."""

    read: Callable[[float | None], bytes | None]
    close: Callable[[], object] = do_nothing


@frozen
class WrongTransport:
    """A transport with a bug, over real connections."""

    _bug: Bug
    _transport: Urllib3Transport = field(factory=Urllib3Transport)

    def send(self, request: Request) -> Response[Any]:
        return self._bug(request, self._transport.send)

    def close(self) -> None:
        if self._bug is not forget_to_close:
            self._transport.close()


def sending(**changes: Any) -> Bug:
    return lambda request, send: send(evolve(request, **changes))


def responding(**changes: Any) -> Bug:
    return lambda request, send: evolve(send(request), **changes)


def reading(read: Callable[[Any, float | None], bytes | None]) -> Bug:
    """Return a bug. `read` gets the correct body and the timeout of a read."""

    def respond(request: Request, send: Send) -> Response[Any]:
        response = send(request)
        return evolve(response, body=Body(partial(read, response.body), response.body.close))

    return respond


def raising(change: Callable[[TransportError], TransportError | None]) -> Bug:
    """Return a bug that changes each error. If `change` returns None, no error is raised."""

    def read(body: Any, timeout: float | None) -> bytes | None:
        try:
            piece: bytes | None = body.read(timeout)
        except TransportError as error:
            if (changed := change(error)) is not None:
                raise changed from changed.__cause__
            return None
        return piece

    def respond(request: Request, send: Send) -> Response[Any]:
        try:
            return reading(read)(request, send)
        except TransportError as error:
            if (changed := change(error)) is not None:
                raise changed from changed.__cause__
            return Response(200, Headers(()), Body(lambda _: None))

    return respond


def generalized(error: TransportError) -> TransportError:
    general = TransportError(str(error))
    general.__cause__ = error.__cause__
    return general


def specialized(error: TransportError) -> TransportError:
    special: TransportError = type("Special", (type(error),), {})(str(error))
    special.__cause__ = error.__cause__
    return special


def without_text(error: TransportError) -> TransportError:
    silent = type(error)("")
    silent.__cause__ = error.__cause__
    return silent


def without_cause(error: TransportError) -> TransportError:
    error.__cause__ = None
    return error


def caused_by_flux0(error: TransportError) -> TransportError:
    error.__cause__ = ConnectionInterrupted("an error of the transport")
    return error


def send_without_a_bug(request: Request, send: Send) -> Response[Any]:
    return send(request)


def reverse_body(request: Request, send: Send) -> Response[Any]:
    return send(evolve(request, body=request.body and request.body[::-1]))


def announce_a_type(request: Request, send: Send) -> Response[Any]:
    """The bug affects only POST requests."""
    headers = Headers((("content-type", "x"),) if request.method == "POST" else ())
    return send(evolve(request, headers=request.headers.merge(headers)))


def for_streamed_gzip(bug: Bug) -> Bug:
    """Limit a bug to the bodies of streams that are chunked and compressed."""

    def respond(request: Request, send: Send) -> Response[Any]:
        response = send(request)
        fields = [response.headers.get(f"{name}-encoding") for name in ("transfer", "content")]
        is_affected = request.stream and fields == ["chunked", "gzip"]
        return bug(request, lambda _: response) if is_affected else response

    return respond


def store_cookies() -> Bug:
    cookies: list[tuple[str, str]] = []

    def respond(request: Request, send: Send) -> Response[Any]:
        response = send(evolve(request, headers=request.headers.merge(Headers((*cookies,)))))
        cookies.extend(("cookie", value) for value in response.headers.get_all("set-cookie"))
        return response

    return respond


def cache_responses() -> Bug:
    heads: dict[str, Response[Any]] = {}

    def respond(request: Request, send: Send) -> Response[Any]:
        if request.url not in heads:
            response = send(request)
            heads[request.url] = evolve(response, body=None)
            return response
        pieces = iter((b"ok", None))
        return evolve(heads[request.url], body=Body(lambda _: next(pieces)))

    return respond


def without_tls(request: Request, send: Send) -> Response[Any]:
    return send(evolve(request, url=request.url.replace("https:", "http:")))


@cache
def httpx_transport() -> HttpxTransport:
    return HttpxTransport()


@cache
def urllib3_transport(**options: Any) -> Urllib3Transport:
    return Urllib3Transport(PoolManager(**options))


def send_a_field_in_two_cases(request: Request, _: Send) -> Response[Any]:
    headers = Headers((*request.headers.pairs, ("X-Field", "1"), ("x-field", "1")))
    return httpx_transport().send(evolve(request, headers=headers))


def trust_any_server(request: Request, _: Send) -> Response[Any]:
    return urllib3_transport(cert_reqs="CERT_NONE").send(request)


def trust_any_host(request: Request, _: Send) -> Response[Any]:
    return urllib3_transport(assert_hostname=False).send(request)


def send_twice(request: Request, send: Send) -> Response[Any]:
    send(request).body.close()
    return send(request)


def send_again(request: Request, send: Send) -> Response[Any]:
    try:
        return send(request)
    except ConnectionInterrupted:
        return send(request)


def send_again_and_raise(request: Request, send: Send) -> Response[Any]:
    try:
        return send(request)
    except TransportError as error:
        with suppress(TransportError):
            send(request).body.close()
        raise error from error.__cause__


def forget_to_close(request: Request, send: Send) -> Response[Any]:
    return send(request)


def keep_open(request: Request, send: Send) -> Response[Any]:
    response = send(request)
    KEPT.append(response.body)
    return evolve(response, body=Body(response.body.read))


def one_at_a_time() -> Bug:
    lock = Lock()

    def respond(request: Request, send: Send) -> Response[Any]:
        with lock:
            return send(request)

    return respond


def one_read_at_a_time() -> Bug:
    lock = Lock()

    def read(body: Any, timeout: float | None) -> bytes | None:
        with lock:
            piece: bytes | None = body.read(timeout)
            return piece

    return reading(read)


def fail_after_fire() -> Bug:
    interrupts: dict[str, Interrupt] = {}

    def respond(request: Request, send: Send) -> Response[Any]:
        if request.url in interrupts and interrupts[request.url].fired:
            raise ConnectionInterrupted("the earlier interrupt ends this call")
        interrupts[request.url] = request.interrupt
        return send(request)

    return respond


def read_whole_body(body: Any, timeout: float | None) -> bytes | None:
    return b"".join(iter(partial(body.read, timeout), None)) or None


def read_other_bytes(body: Any, timeout: float | None) -> bytes | None:
    piece: bytes | None = body.read(timeout)
    return piece and piece[:-1] + b"?"


def read_other_later_bytes(body: Any, timeout: float | None) -> bytes | None:
    if body in KEPT:
        return read_other_bytes(body, timeout)
    KEPT.append(body)
    piece: bytes | None = body.read(timeout)
    return piece


def end_early(body: Any, timeout: float | None) -> bytes | None:
    with suppress(TransportError):
        piece: bytes | None = body.read(timeout)
        return piece
    return None


def close_without_the_connection(request: Request, send: Send) -> Response[Any]:
    response = send(request)
    body = Body(response.body.read)

    def read(timeout: float | None) -> bytes | None:
        if body in KEPT:
            raise ConnectionInterrupted("the body is closed")
        return body.read(timeout)

    return evolve(response, body=Body(read, lambda: KEPT.append(body)))


def read_other_first_bytes(body: Any, timeout: float | None) -> bytes | None:
    if body not in KEPT:
        KEPT.append(body)
        return read_other_bytes(body, timeout)
    piece: bytes | None = body.read(timeout)
    return piece


def read_first_piece(body: Any, timeout: float | None) -> bytes | None:
    if body in KEPT:
        return None
    KEPT.append(body)
    piece: bytes | None = body.read(timeout)
    return piece


def read_more_bytes(body: Any, timeout: float | None) -> bytes | None:
    piece: bytes | None = body.read(timeout)
    if piece is None and body not in KEPT:
        KEPT.append(body)
        return b"?"
    return piece


def join_fields(request: Request, send: Send) -> Response[Any]:
    response = send(request)
    return evolve(response, headers=Headers(tuple(response.headers.items())))


def without_timeouts(request: Request, send: Send) -> Response[Any]:
    return reading(lambda body, _: body.read(LONG))(evolve(request, timeout=LONG_TIMEOUT), send)


def abandoning(phase: str, error: type[TransportError]) -> Bug:
    """Return a bug: when the phase's timeout expires, the connection stays open."""

    def respond(request: Request, send: Send) -> Response[Any]:
        call = partial(send, evolve(request, timeout=LONG_TIMEOUT))
        try:
            return in_background(call).result(getattr(request.timeout, phase))
        except futures.TimeoutError as expired:
            raise error("too late") from expired

    return respond


def in_background(call: Callable[[], T]) -> futures.Future[T]:
    async def run() -> T:
        return call()

    return run_in_thread(run)


def abandon_read(body: Any, timeout: float | None) -> bytes | None:
    KEPT.append(body)
    try:
        piece: bytes | None = in_background(partial(body.read, LONG)).result(timeout)
    except futures.TimeoutError as error:
        raise ReadTimeout("too late") from error
    return piece


def end_reads_without_closing(request: Request, send: Send) -> Response[Any]:
    response = send(request)
    closed = Event()

    def read(timeout: float | None) -> bytes | None:
        reading: futures.Future[bytes | None]
        reading = in_background(partial(response.body.read, timeout))
        while not reading.done():
            if closed.wait(0.005):
                KEPT.append(response.body)
                raise ConnectionInterrupted("the body is closed")
        return reading.result()

    return evolve(response, body=Body(read, closed.set))


def abandon_when_fired(request: Request, send: Send) -> Response[Any]:
    sending = in_background(partial(send, evolve(request, interrupt=Interrupt())))
    while not sending.done():
        if request.interrupt.fired:
            raise ConnectionInterrupted("interrupted")
        sleep(0.005)
    return sending.result()


def wait_for_fire(request: Request, send: Send) -> Response[Any]:
    """Send nothing, until the interrupt ends the call."""
    getattr(send, "__self__").close()  # noqa: B009
    while not request.interrupt.fired:
        sleep(0.005)
    raise ConnectionInterrupted("interrupted")


def when(applies: Callable[[Request], bool], bug: Bug) -> Bug:
    """Limit a bug to some requests."""
    return lambda request, send: bug(request, send) if applies(request) else send(request)


def is_post(request: Request) -> bool:
    return request.method == "POST"


def is_streamed(request: Request) -> bool:
    return request.stream


def is_whole(request: Request) -> bool:
    return not request.stream


def nth(number: int, bug: Bug) -> Bug:
    """Limit a bug to one of the requests that a transport sends to a URL."""
    counts: WeakKeyDictionary[Any, Counter[str]] = WeakKeyDictionary()

    def respond(request: Request, send: Send) -> Response[Any]:
        counter = counts.setdefault(getattr(send, "__self__"), Counter())  # noqa: B009
        counter[request.url] += 1
        return bug(request, send) if counter[request.url] == number else send(request)

    return respond


def freshly(bug: Bug) -> Bug:
    """Return a bug that sends each request over another connection."""
    return lambda request, _: bug(request, Urllib3Transport().send)


def raising_after(error: type[TransportError]) -> Bug:
    """Return a bug: the request is sent, but `send` raises an error."""

    def respond(request: Request, send: Send) -> Response[Any]:
        send(request).body.close()
        raise error("late") from OSError("late")

    return respond


def send_to_any_server_first(request: Request, send: Send) -> Response[Any]:
    trust_any_server(request, send).body.close()
    return send(request)


def send_without_tls_and_raise(request: Request, send: Send) -> Response[Any]:
    response = without_tls(request, send)
    if request.url.startswith("https:"):
        response.body.close()
        raise ConnectTimeout("too late") from OSError("too late")
    return response


def negate_close_delimited(request: Request, send: Send) -> Response[Any]:
    response = send(request)
    return evolve(response, close_delimited=not response.close_delimited)


def change_the_request_id(request: Request, send: Send) -> Response[Any]:
    response = send(request)
    return evolve(response, headers=response.headers.merge(Headers((("x-request-id", "8"),))))


def fail_and_keep(body: Any, _: float | None) -> bytes | None:
    KEPT.append(body)
    raise ProtocolError("malformed") from ValueError("malformed")


def fail_later_and_keep(body: Any, timeout: float | None) -> bytes | None:
    if body in KEPT:
        raise ConnectionInterrupted("reset") from OSError("reset")
    KEPT.append(body)
    piece: bytes | None = body.read(timeout)
    return piece


def respond_late(request: Request, send: Send) -> Response[Any]:
    sleep(0.2)
    return send(request)


def interrupt_bodies(request: Request, send: Send) -> Response[Any]:
    response = send(request)
    request.interrupt.on_fire(response.body.close)
    return response


@cache
def _compiled(changes: tuple[tuple[str, str], ...]) -> CodeType:
    source = TRANSPORT
    for correct, wrong in changes:
        assert source.count(correct) == 1, correct
        source = source.replace(correct, wrong)
    return compile(source, "h11_transport.py", "exec")


@frozen
class Example:
    """The transport of examples/transport, with changes of its code."""

    changes: Mapping[str, str]

    def transport(self, context: SSLContext) -> Any:
        names: dict[str, Any] = {"__name__": "h11_transport", "KEPT": KEPT}
        exec(_compiled(tuple(self.changes.items())), names)  # noqa: S102 - code of the docs
        return names["H11Transport"](context)


@frozen
class Over:
    """A bug over the example in examples/transport."""

    bug: Bug
    example: Example


@frozen
class Only:
    """A bug that only the test's cases with these arguments detect."""

    bug: Bug | Example
    arguments: Mapping[str, Any]


AnyBug: TypeAlias = Bug | Example | Over | Only


def only(bug: Bug | Example, **arguments: Any) -> Only:
    return Only(bug, arguments)


AsyncSend = Callable[[Request], Awaitable[Response[Any]]]
AsyncBug = Callable[[Request, AsyncSend], Awaitable[Response[Any]]]


@frozen
class AsyncBody:
    """A response body with these methods."""

    read_async: Callable[[float | None], Awaitable[bytes | None]]
    close_async: Callable[[], Awaitable[object]]


@frozen
class WrongAsyncTransport:
    """An async transport with a bug, over real connections."""

    _bug: AsyncBug
    _transport: HttpxTransport = field(factory=HttpxTransport)

    async def send_async(self, request: Request) -> Response[Any]:
        return await self._bug(request, self._transport.send_async)

    async def close_async(self) -> None:
        await self._transport.close_async()


async def send_without_a_bug_async(request: Request, send: AsyncSend) -> Response[Any]:
    return await send(request)


async def keep_connections_open(request: Request, send: AsyncSend) -> Response[Any]:
    response = await shield(send(request))

    async def read(timeout: float | None) -> bytes | None:
        piece: bytes | None = await shield(response.body.read_async(timeout))
        return piece

    return evolve(response, body=AsyncBody(read, checkpoint))


async def end_after_a_cancelled_read(request: Request, send: AsyncSend) -> Response[Any]:
    response = await send(request)
    ended = False

    async def read(timeout: float | None) -> bytes | None:
        nonlocal ended
        was_ended, ended = ended, True
        piece: bytes | None = None if was_ended else await response.body.read_async(timeout)
        ended = was_ended
        return piece

    return evolve(response, body=AsyncBody(read, response.body.close_async))


async def wait_forever(_: Request, __: AsyncSend) -> Response[Any]:
    await sleep_forever()
    raise AssertionError("the call was not cancelled")


async def read_other_bytes_async(request: Request, send: AsyncSend) -> Response[Any]:
    response = await send(request)

    async def read(timeout: float | None) -> bytes | None:
        piece: bytes | None = await response.body.read_async(timeout)
        return piece and piece[:-1] + b"?"

    return evolve(response, body=AsyncBody(read, response.body.close_async))
