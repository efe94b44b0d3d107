"""`error.sent`: whether a call that failed has sent its message (no, maybe or yes)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ClassVar

import anyio
import pytest

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
    ReadTimeout,
    RetryConfig,
    Sent,
    StreamIdleTimeout,
    StreamInterrupted,
)
from flux0.flows import CallRequest, Flow, SendFlow
from flux0.ports import Request, Response
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import (
    Disconnect,
    Reset,
    ServerSteps,
    WaitForRelease,
    http_response,
)
from support.in_memory import (
    SSE,
    Script,
    chunk,
    frame,
    in_every_mode,
    in_simulated_time,
    script,
    scripted_response,
    status,
)
from support.modes import call_blocking, in_mode, run
from support.sending import limiting, over
from support.transports import ASYNC, LIBRARIES, SYNC, Mode, Way

EAGER = RetryConfig("backoff", BackoffStrategy(1, 1, 1, 60_000), max_attempts=3)
NOTHING_LISTENS = "http://127.0.0.1:1"
SILENT = (WaitForRelease(),)
SHORT = 0.05  # A timeout in seconds that always expires.


def turn(*pieces: bytes | WaitForRelease) -> ServerSteps:
    """Return the steps of a server that responds to a message with these pieces of a stream."""
    return http_response(*pieces, headers=list(SSE.items()), framing="chunked")


def cut(*pieces: bytes) -> ServerSteps:
    return (*turn(*pieces)[:-1], Disconnect())


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


FAILURES: dict[str, tuple[ServerSteps, type[Flux0Error], Sent]] = {
    "rejected": (http_response(b"{}", status="400 Bad Request"), APIError, "no"),
    "no response": ((WaitForRelease(),), ReadTimeout, "maybe"),
    "closed before the response": ((Disconnect(),), ConnectionInterrupted, "maybe"),
    "reset before the response": ((Reset(),), ConnectionInterrupted, "maybe"),
    "closed before an event": (cut(), StreamInterrupted, "maybe"),
    "closed within an event": (cut(chunk("a")[:20]), StreamInterrupted, "maybe"),
    "closed after an event": (cut(chunk("a")), StreamInterrupted, "yes"),
}


@over(*LIBRARIES)
@pytest.mark.parametrize("name", FAILURES)
async def test_sent_depends_on_the_failure(way: Way, name: str) -> None:
    steps, kind, sent = FAILURES[name]
    limits = [limiting(read=SHORT)] if kind is ReadTimeout else []
    with ByteServer(steps) as server:
        error = await error_of(client(way, server.url, middleware=limits), read_turn)
    assert isinstance(error, kind)
    assert error.sent == sent


@pytest.mark.parametrize("mode", [*SYNC, *ASYNC])
@pytest.mark.parametrize(
    ("codes", "sent"),
    [
        *(([code], "no") for code in (400, 401, 403, 404, 405, 409, 413, 422, 429)),
        *(([code], "maybe") for code in (307, 408, 500, 502, 503)),
        ([429, 503], "maybe"),
        ([429, 400], "no"),
    ],
    ids=str,
)
def test_sent_depends_on_the_status(mode: Mode, codes: list[int], sent: Sent) -> None:
    responses = [scripted_response(b"{}", status=code) for code in codes * 3]
    real = Flux0(transport=script(*responses), retry_config=EAGER)

    async def test() -> None:
        error = await error_of(in_mode(mode, real), read_turn)
        assert isinstance(error, APIError)
        assert error.sent == sent

    run(mode, test)


@in_every_mode
async def test_sent_depends_on_the_events_before_the_failure(mode: Mode) -> None:
    invalid = b"event: chunk\ndata: {\n\n"
    silent = ReadTimeout("silent")
    for pieces, kind, sent in (
        ([b": comment\n\n", ConnectionInterrupted("x")], StreamInterrupted, "maybe"),
        ([silent], StreamIdleTimeout, "maybe"),
        ([chunk("a"), silent], StreamIdleTimeout, "yes"),
        ([invalid], DecodeError, "maybe"),
        ([chunk("a") + invalid], DecodeError, "yes"),
        ([status("error", "boom")], AgentError, "yes"),
        ([frame("new", 1), ConnectionInterrupted("x")], StreamInterrupted, "yes"),
    ):
        transport = script(scripted_response(*pieces, headers=SSE))
        error = await error_of(in_mode(mode, Flux0(transport=transport)), read_turn)
        assert isinstance(error, kind)
        assert error.sent == sent


@in_every_mode
async def test_sent_of_a_response_that_is_no_event_stream_is_maybe(mode: Mode) -> None:
    transport = script(scripted_response(b"<html>"))
    error = await error_of(in_mode(mode, Flux0(transport=transport)), read_turn)
    assert isinstance(error, DecodeError)
    assert error.sent == "maybe"


@over(*LIBRARIES)
async def test_message_was_not_sent_if_the_connection_is_refused(way: Way) -> None:
    error = await error_of(client(way, NOTHING_LISTENS), read_turn)
    assert isinstance(error, ConnectError)
    assert (error.attempts, error.sent) == (3, "no")


@in_every_mode
async def test_message_was_not_sent_if_an_argument_is_invalid(mode: Mode) -> None:
    async def send(flux0: Flux0) -> None:
        await flux0.sessions.create_event_async(session_id="s", content="")

    error = await error_of(in_mode(mode, Flux0(transport=script())), send)
    assert isinstance(error, InvalidArgument)
    assert error.sent == "no"


@in_every_mode
async def test_error_from_another_call_in_a_middleware_describes_the_current_call(
    mode: Mode,
) -> None:
    """The error's `sent` describes the call that raises the error, not the other call."""
    for after, status_code in ((False, 503), (True, 404)):
        other = APIError("another call", status_code=status_code, body="", headers=Headers())

        def fail(
            request: CallRequest,
            send: SendFlow,
            after: bool = after,
            other: APIError = other,
        ) -> Flow[Response[Any]]:
            if after:
                yield from send(request)
            raise other

        transport = script(scripted_response(chunk("a"), headers=SSE))
        real = Flux0(transport=transport, middleware=[fail])
        error = await error_of(in_mode(mode, real), read_turn)
        assert error is other
        assert error.sent == ("maybe" if after else "no")


# --- closing


async def close_during(mode: Mode, real: Flux0, ready: Callable[[], Any]) -> Flux0Error:
    """Return the error of a turn if the client is closed while it waits, after `ready()`."""
    errors: list[Flux0Error] = []

    async def run_call() -> None:
        with pytest.raises(ClientClosed) as caught:
            await read_turn(in_mode(mode, real))
        errors.append(caught.value)

    def close() -> None:
        ready()
        real.close()

    if mode == "sync":
        with ThreadPoolExecutor(1) as threads:
            closing = threads.submit(close)
            await run_call()
            closing.result()
    else:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_call)
            await call_blocking(mode, ready)
            await real.close_async()
    return errors[0]


@over(*LIBRARIES)
async def test_message_may_have_been_sent_if_the_client_is_closed_meanwhile(way: Way) -> None:
    with ByteServer((WaitForRelease(),)) as server:
        real = Flux0(server.url, transport=way.make_transport())
        error = await close_during(way.mode, real, partial(server.wait_for_requests, 1))
    assert error.sent == "maybe"
    assert (error.operation, error.attempts) == ("sessions.create_event", 1)


@in_every_mode
async def test_message_was_not_sent_if_the_client_is_closed_while_it_waits_for_a_retry(
    mode: Mode,
) -> None:
    retried = threading.Event()
    rejected = scripted_response(status=429, headers={"retry-after": "60"})
    real = Flux0(transport=script(rejected), on_retry=lambda _: retried.set())
    error = await close_during(mode, real, partial(retried.wait, 20))
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


@in_every_mode
async def test_closed_client_did_not_send_the_message(mode: Mode) -> None:
    flux0 = in_mode(mode, Flux0(transport=script()))
    await flux0.close_async()
    with pytest.raises(ClientClosed) as caught:
        await read_turn(flux0)
    assert caught.value.sent == "no"


@in_every_mode
async def test_sent_of_a_stream_closed_early_depends_on_its_events(mode: Mode) -> None:
    for events, sent in ((0, "maybe"), (1, "yes")):
        transport = script(scripted_response(chunk("a"), chunk("b"), headers=SSE))
        async with in_mode(mode, Flux0(transport=transport)) as flux0:
            stream = await flux0.sessions.create_event_async(session_id="s", content="Hi")
            for _ in range(events):
                await anext(stream)
            await stream.close_async()
            with pytest.raises(ClientClosed) as caught:
                await stream.final_messages()
        assert caught.value.sent == sent


# --- waiting


@in_simulated_time
async def test_message_was_not_sent_if_a_token_function_takes_too_long(mode: Mode) -> None:
    async def token() -> str:
        await anyio.sleep_forever()
        return ""

    flux0 = Flux0(transport=script(), headers={"authorization": token}, timeout_ms=10_000)
    error = await error_of(flux0, read_turn)
    assert isinstance(error, ReadTimeout)
    assert error.sent == "no"


@in_every_mode
async def test_sent_depends_on_the_error_class_of_a_custom_transport(mode: Mode) -> None:
    for raised, sent in ((ConnectError("x"), "no"), (ConnectionInterrupted("x"), "maybe")):
        real = Flux0(transport=script(raised), retry_config=RetryConfig("none"))
        error = await error_of(in_mode(mode, real), read_turn)
        assert error is raised
        assert error.sent == sent
