"""`error.sent`: whether a call that failed has sent its message (no, maybe or yes)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ClassVar

import anyio
import pytest
from attrs import frozen

from flux0 import (
    AgentError,
    APIError,
    BackoffStrategy,
    ClientClosed,
    ConnectError,
    ConnectionInterrupted,
    DecodeError,
    Flux0,
    Flux0Error,
    Headers,
    InvalidArgument,
    ProtocolError,
    ReadTimeout,
    RetryConfig,
    Sent,
    StreamIdleTimeout,
    StreamInterrupted,
    TransportTimeout,
)
from flux0.flows import CallRequest, Flow, SendFlow
from flux0.ports import Request, Response
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import (
    Disconnect,
    Reset,
    ServerSteps,
    WaitForRelease,
    Write,
    http_response,
)
from support.in_memory import (
    SSE,
    Script,
    chunk,
    frame,
    in_both_loops,
    in_every_mode,
    script,
    scripted_response,
    status,
)
from support.modes import call_blocking, in_mode, run
from support.sending import over
from support.transports import WAYS, Mode, Way

EAGER = RetryConfig("backoff", BackoffStrategy(1, 1, 1, 60_000), max_attempts=3)
NOTHING_LISTENS = "http://127.0.0.1:1"
SILENT = (WaitForRelease(),)
# Timeouts: SHORT for the timeout that must expire, LONG for all others.
SHORT, LONG = 200, 60_000


def turn(*pieces: bytes | WaitForRelease) -> ServerSteps:
    """Return the steps of a server that responds to a message with these pieces of a stream."""
    return http_response(*pieces, headers=list(SSE.items()), framing="chunked")


def cut(*pieces: bytes) -> ServerSteps:
    return (*turn(*pieces)[:-1], Disconnect())


def returned(code: int) -> ServerSteps:
    return http_response(b"{}", status=f"{code} X")


@frozen
class Row:
    """The responses of a server to a message, and the error that the client raises."""

    name: str
    responses: tuple[ServerSteps, ...]
    error: type[Flux0Error]
    sent: Sent
    timeout_ms: int = LONG
    idle_timeout_ms: int = LONG

    def __str__(self) -> str:
        return self.name


REJECTED = (400, 401, 403, 404, 405, 409, 413, 422, 429)
ROWS = [
    *(Row(str(code), (returned(code),), APIError, "no") for code in REJECTED),
    *(Row(str(code), (returned(code),), APIError, "maybe") for code in (307, 408, 500, 502, 503)),
    Row("429 and then 503", (returned(429), returned(503)), APIError, "maybe"),
    Row("429 and then 400", (returned(429), returned(400)), APIError, "no"),
    Row("no response", (SILENT,), ReadTimeout, "maybe", SHORT),
    Row("closed before the response", ((Disconnect(),),), ConnectionInterrupted, "maybe"),
    Row("reset before the response", ((Reset(),),), ConnectionInterrupted, "maybe"),
    Row("not HTTP", ((Write(b"SSH-2.0\r\n\r\n"), Disconnect()),), ProtocolError, "maybe"),
    Row("not an event stream", (http_response(b"<html>"),), DecodeError, "maybe"),
    Row("closed before an event", (cut(),), StreamInterrupted, "maybe"),
    Row("closed after a comment", (cut(b": comment\n\n"),), StreamInterrupted, "maybe"),
    Row("closed within an event", (cut(chunk("a")[:20]),), StreamInterrupted, "maybe"),
    Row("closed after an event", (cut(chunk("a")),), StreamInterrupted, "yes"),
    Row("idle", (turn(WaitForRelease()),), StreamIdleTimeout, "maybe", LONG, SHORT),
    Row(
        "idle after an event",
        (turn(chunk("a"), WaitForRelease()),),
        StreamIdleTimeout,
        "yes",
        LONG,
        SHORT,
    ),
    Row("invalid event", (turn(b"event: chunk\ndata: {\n\n"),), DecodeError, "maybe"),
    Row(
        "invalid event after a valid event in one piece",
        (turn(chunk("a") + b"event: chunk\ndata: {\n\n"),),
        DecodeError,
        "yes",
    ),
    Row("error of the agent", (turn(status("error", "boom")),), AgentError, "yes"),
    Row("unknown event", (cut(frame("new", 1)),), StreamInterrupted, "yes"),
]


async def read_turn(flux0: Flux0) -> None:
    async with await flux0.sessions.create_event_async(session_id="s", content="Hi") as stream:
        await stream.final_messages()


def client(way: Way, url: str, **options: Any) -> Flux0:
    real = Flux0(url, transport=way.make_transport(), retry_config=EAGER, **options)
    return in_mode(way.mode, real)


async def error_of(flux0: Flux0, call: Callable[[Flux0], Coroutine[Any, Any, None]]) -> Flux0Error:
    async with flux0:
        with pytest.raises(Flux0Error) as caught:
            await call(flux0)
    return caught.value


@over(*WAYS)
@pytest.mark.parametrize("row", ROWS, ids=str)
async def test_sent_depends_on_the_responses(way: Way, row: Row) -> None:
    with ByteServer(*row.responses) as server:
        flux0 = client(
            way, server.url, timeout_ms=row.timeout_ms, stream_idle_timeout_ms=row.idle_timeout_ms
        )
        error = await error_of(flux0, read_turn)
    assert isinstance(error, row.error)
    assert error.sent == row.sent


@over(*WAYS)
async def test_message_was_not_sent_if_the_connection_is_refused(way: Way) -> None:
    error = await error_of(client(way, NOTHING_LISTENS), read_turn)
    assert isinstance(error, ConnectError)
    assert (error.attempts, error.sent) == (3, "no")


@over(*WAYS)
async def test_message_was_not_sent_if_an_argument_is_invalid(way: Way) -> None:
    async def send(flux0: Flux0) -> None:
        await flux0.sessions.create_event_async(session_id="s", content="")

    error = await error_of(client(way, NOTHING_LISTENS), send)
    assert isinstance(error, InvalidArgument)
    assert error.sent == "no"


@over(*WAYS)
@pytest.mark.parametrize("after", [False, True], ids=["before sending", "after sending"])
async def test_sent_of_an_error_from_another_call_in_a_middleware(way: Way, *, after: bool) -> None:
    """`sent` of the error describes the call that raises the error, not the other call."""
    status_code = 404 if after else 503
    other = APIError("another call", status_code=status_code, body="", headers=Headers())

    def fail(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        if after:
            yield from send(request)
        raise other

    with ByteServer(turn(chunk("a"))) as server:
        error = await error_of(client(way, server.url, middleware=[fail]), read_turn)
    assert error is other
    assert error.sent == ("maybe" if after else "no")


# --- closing


async def close_during(
    way: Way, real: Flux0, call: Callable[[], Coroutine[Any, Any, None]], ready: Callable[[], Any]
) -> Flux0Error:
    """Return the error that `call` raises if the client is closed while it waits."""
    errors: list[Flux0Error] = []

    async def run_call() -> None:
        with pytest.raises(ClientClosed) as caught:
            await call()
        errors.append(caught.value)

    def close() -> None:
        ready()
        real.close()

    if way.mode == "sync":
        with ThreadPoolExecutor(1) as threads:
            closing = threads.submit(close)
            await run_call()
            closing.result()
    else:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_call)
            await call_blocking(way.mode, ready)
            await real.close_async()
    return errors[0]


@over(*WAYS)
async def test_message_may_have_been_sent_if_the_client_is_closed_meanwhile(way: Way) -> None:
    with ByteServer(SILENT) as server:
        real = Flux0(server.url, transport=way.make_transport())
        call = partial(read_turn, in_mode(way.mode, real))
        error = await close_during(way, real, call, partial(server.wait_for_requests, 1))
    assert error.sent == "maybe"
    assert (error.operation, error.attempts) == ("sessions.create_event", 1)


@over(*WAYS)
async def test_message_was_not_sent_if_the_client_is_closed_while_it_waits_for_a_retry(
    way: Way,
) -> None:
    retried = threading.Event()
    slow = RetryConfig("backoff", BackoffStrategy(60_000, 60_000, 1.0, 600_000))
    with ByteServer(returned(429)) as server:
        real = Flux0(
            server.url,
            transport=way.make_transport(),
            retry_config=slow,
            on_retry=lambda _: retried.set(),
        )
        call = partial(read_turn, in_mode(way.mode, real))
        error = await close_during(way, real, call, partial(retried.wait, 20))
    assert error.sent == "no"


class Closing(Script):
    """A transport that closes the client while it receives a response."""

    client: ClassVar[Flux0]

    def send(self, request: Request) -> Response[Any]:
        response = super().send(request)
        self.client.close()
        return response


@in_every_mode
async def test_message_may_have_been_sent_if_the_client_is_closed_with_the_response(
    mode: Mode,
) -> None:
    transport = Closing([scripted_response(chunk("a"), headers=SSE)])
    Closing.client = Flux0(transport=transport)
    with pytest.raises(ClientClosed) as caught:
        await read_turn(in_mode(mode, Closing.client))
    assert caught.value.sent == "maybe"


@over(*WAYS)
async def test_closed_client_did_not_send_the_message(way: Way) -> None:
    flux0 = client(way, NOTHING_LISTENS)
    await flux0.close_async()
    with pytest.raises(ClientClosed) as caught:
        await read_turn(flux0)
    assert caught.value.sent == "no"


@over(*WAYS)
@pytest.mark.parametrize("events", [0, 1])
async def test_sent_of_a_stream_closed_early_depends_on_its_events(way: Way, events: int) -> None:
    with ByteServer(turn(chunk("a"), chunk("b"))) as server:
        async with client(way, server.url) as flux0:
            stream = await flux0.sessions.create_event_async(session_id="s", content="Hi")
            for _ in range(events):
                await anext(stream)
            await stream.close_async()
            with pytest.raises(ClientClosed) as caught:
                await stream.final_messages()
    assert caught.value.sent == ("yes" if events else "maybe")


# --- waiting


@over(*WAYS)
async def test_message_was_not_sent_if_it_waits_too_long_for_another_message(way: Way) -> None:
    """The first message of the session is still waiting for its response headers."""

    async def send(flux0: Flux0) -> None:
        await flux0.sessions.create_event_async(session_id="s", content="Hi", timeout_ms=SHORT)

    errors: list[Flux0Error] = []

    async def send_second() -> None:
        with pytest.raises(TransportTimeout) as caught:
            await send(flux0)
        errors.append(caught.value)
        server.release()

    with ByteServer((WaitForRelease(), *turn(chunk("a")))) as server:
        flux0 = client(way, server.url)
        if way.mode == "sync":
            with ThreadPoolExecutor(1) as threads:
                second = threads.submit(_after_request, way, server, send_second)
                await read_turn(flux0)
                second.result()
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read_turn, flux0)
                await call_blocking(way.mode, server.wait_for_requests, 1)
                await send_second()
        await flux0.close_async()
    assert errors[0].sent == "no"
    assert len(server.requests) == 1


def _after_request(
    way: Way, server: ByteServer, call: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    server.wait_for_requests(1)
    run(way.mode, call)


@in_both_loops
async def test_message_was_not_sent_if_a_token_function_takes_too_long(mode: Mode) -> None:
    async def token() -> str:
        await anyio.sleep_forever()
        return ""

    flux0 = Flux0(transport=script(), headers={"authorization": token}, timeout_ms=SHORT)
    error = await error_of(flux0, read_turn)
    assert isinstance(error, ReadTimeout)
    assert error.sent == "no"


@in_every_mode
async def test_sent_of_errors_from_a_custom_transport(mode: Mode) -> None:
    for raised, sent in ((ConnectError("x"), "no"), (ConnectionInterrupted("x"), "maybe")):
        real = Flux0(transport=script(raised), retry_config=RetryConfig("none"))
        error = await error_of(in_mode(mode, real), read_turn)
        assert error is raised
        assert error.sent == sent
