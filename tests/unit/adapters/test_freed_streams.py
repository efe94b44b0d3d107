"""After its end, a stream is freed with its events and its error, over each transport."""

from __future__ import annotations

import gc
import signal
from collections.abc import Awaitable, Callable, Coroutine
from threading import Thread, main_thread
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final

import anyio
import pytest
from attrs import frozen

from flux0 import AsyncEventStream, EventStream, Flux0, RetryConfig
from flux0.adapters.shared.bodies import AsyncBody, SyncBody, SyncBodyState
from flux0.adapters.shared.exchange import Exchange
from flux0.domain.api_errors import APIError
from flux0.domain.errors import (
    ClientClosed,
    ConnectError,
    ConnectionInterrupted,
    DecodeError,
    Flux0Error,
    ProtocolError,
    StreamIdleTimeout,
    StreamInterrupted,
    TransportTimeout,
)
from flux0.domain.stream_events import ChunkEvent
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import (
    Disconnect,
    Reset,
    ServerSteps,
    WaitForRelease,
    Write,
    http_response,
    size,
    truncated,
)
from support.in_memory import SSE, chunk
from support.modes import in_mode, run
from support.sending import AGENTS, over
from support.transports import ASYNC, SYNC, WAYS, Mode, Way

if TYPE_CHECKING:
    from typing_extensions import Self

pytestmark = pytest.mark.usefixtures("little_garbage")

TOO_LONG = 20.0
OF_A_TURN: Final = (
    AsyncBody,
    AsyncEventStream,
    ChunkEvent,
    EventStream,
    Flux0Error,
    SyncBody,
    SyncBodyState,
)
OF_AN_EXCHANGE: Final = (*OF_A_TURN, BaseException, Exchange)


@frozen
class Turn:
    """A stream, its client, and the mode of both."""

    stream: AsyncEventStream
    flux0: Flux0
    mode: Mode


async def read_to_the_end(turn: Turn) -> None:
    async for _ in turn.stream:
        pass


async def read_one_event(turn: Turn) -> None:
    await anext(turn.stream)


async def read_nothing(_: Turn) -> None: ...


async def leave_the_loop(turn: Turn) -> None:
    async for _ in turn.stream:
        break


async def fail_in_the_loop(turn: Turn) -> None:
    async for _ in turn.stream:
        raise ZeroDivisionError


async def leave_the_block(turn: Turn) -> None:
    async with turn.stream as stream:
        await anext(stream)


async def close_during_a_read(turn: Turn) -> None:
    await during_a_read(turn, turn.stream.close_async)


async def close_the_client_during_a_read(turn: Turn) -> None:
    await during_a_read(turn, turn.flux0.close_async)


async def cancel_a_read(turn: Turn) -> None:
    async def cancel() -> None:
        scope.cancel()

    with anyio.CancelScope() as scope:
        await during_a_read(turn, cancel)


async def press_ctrl_c_during_a_read(turn: Turn) -> None:
    async def press_ctrl_c() -> None:
        signal.pthread_kill(main_thread().ident or 0, signal.SIGINT)
        # If the signal arrived just before the wait for data, it has not ended the wait.
        await turn.stream.close_async()

    await during_a_read(turn, press_ctrl_c)


async def during_a_read(turn: Turn, act: Callable[[], Awaitable[object]]) -> None:
    """Read the stream to its end. Another thread or task calls `act` during the second read."""

    async def act_soon() -> None:
        while not (turn.stream.event_count == 1 and turn.stream.is_being_read):
            await pause(turn.mode)
        await act()

    errors: list[BaseException] = []
    async with InThread() if turn.mode == "sync" else anyio.create_task_group() as background:
        background.start_soon(act_soon)
        try:
            await read_to_the_end(turn)
        except (Flux0Error, KeyboardInterrupt) as error:
            errors.append(error)  # A task group would wrap the error.
    raise errors.pop()


class InThread:
    """Runs a function in a thread, with the methods of a task group."""

    async def __aenter__(self) -> Self:
        return self

    def start_soon(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._thread = Thread(target=run, args=("sync", work))
        self._thread.start()

    async def __aexit__(self, *_: object) -> None:
        self._thread.join()


async def pause(mode: Mode) -> None:
    """Switch to another thread or task."""
    if mode == "sync":
        sleep(0)
    else:
        await anyio.lowlevel.checkpoint()


async def check_freed(mode: Mode, *kinds: type) -> None:
    """Wait until no object of these types is alive, except errors that were not raised.

    Threads and tasks that close connections may still run.
    """
    limit = monotonic() + TOO_LONG
    while names := {type(each).__name__ for each in gc.get_objects() if is_kept(each, kinds)}:
        assert monotonic() < limit, f"not freed: {sorted(names)}"
        gc.collect()
        await pause(mode)


def is_kept(value: object, kinds: tuple[type, ...]) -> bool:
    is_traced = not isinstance(value, BaseException) or value.__traceback__ is not None
    return isinstance(value, kinds) and is_traced


@frozen
class Ending:
    """A response, the use of its stream, and the error that ends it."""

    name: str
    steps: ServerSteps
    use: Callable[[Turn], Awaitable[None]] = read_to_the_end
    error: type[BaseException] | None = None
    modes: tuple[Mode, ...] = SYNC + ASYNC


WITH_LENGTH: Final = http_response(chunk("a"), headers=SSE.items())
COMPLETE: Final = http_response(chunk("a"), headers=SSE.items(), framing="chunked")
FIRST: Final = COMPLETE[:-1]
OPEN: Final = (*FIRST, WaitForRelease())
INVALID: Final = http_response(b"event: chunk\ndata: {\n\n", headers=SSE.items())
SHORTER: Final = truncated(WITH_LENGTH, size(WITH_LENGTH) - 1)
IDLE: Final = "idle timeout"

ENDINGS: Final = (
    Ending("end", COMPLETE),
    Ending("end by length", WITH_LENGTH),
    Ending("truncated chunks", (*FIRST, Disconnect()), error=StreamInterrupted),
    Ending("truncated length", SHORTER, error=StreamInterrupted),
    Ending("reset", (*FIRST, Reset()), error=StreamInterrupted),
    Ending("invalid chunk size", (*FIRST, Write(b"xyz\r\n")), error=StreamInterrupted),
    Ending("invalid event", INVALID, error=DecodeError),
    Ending(IDLE, OPEN, error=StreamIdleTimeout),
    Ending("no read", OPEN, read_nothing),
    Ending("unreferenced", OPEN, read_one_event),
    Ending("break", OPEN, leave_the_loop),
    Ending("error in the loop", OPEN, fail_in_the_loop, ZeroDivisionError),
    Ending("block", OPEN, leave_the_block),
    Ending("closed", OPEN, close_during_a_read, ClientClosed),
    Ending("cancelled", OPEN, cancel_a_read, modes=ASYNC),
    Ending("Ctrl-C", OPEN, press_ctrl_c_during_a_read, KeyboardInterrupt, modes=SYNC),
    Ending("client closed", OPEN, close_the_client_during_a_read, ClientClosed),
)


@over(*WAYS)
async def test_ended_stream_is_freed(way: Way) -> None:
    """Also if the user keeps `raw_response`."""

    async def end(ending: Ending) -> Any:
        changed = flux0.with_options(stream_idle_timeout_ms=20) if ending.name == IDLE else flux0
        either = in_mode(way.mode, changed)
        stream = await either.sessions.create_event_async(session_id="s", content="Hi")
        response, turn = stream.raw_response, Turn(stream, in_mode(way.mode, flux0), way.mode)
        if ending.error is None:
            await ending.use(turn)
        else:
            with pytest.raises(ending.error):
                await ending.use(turn)
        return response

    transport = way.make_transport()
    gc.freeze()
    endings = [ending for ending in ENDINGS if way.mode in ending.modes]
    with ByteServer(*(ending.steps for ending in endings)) as server:
        flux0 = Flux0(server.url, transport=transport, retry_config=RetryConfig("none"))
        for ending in endings:
            response = await end(ending)
            await check_freed(way.mode, *OF_A_TURN)
            del response
            await check_freed(way.mode, *OF_AN_EXCHANGE)


NOT_FOUND: Final = http_response(b'{"detail": "no"}', status="404 Not Found")
CHUNKED: Final = http_response(b'{"data": []}', framing="chunked")[:-1]
FAILED_CALLS: Final[tuple[tuple[ServerSteps, type[Flux0Error]], ...]] = (
    (truncated(AGENTS, size(AGENTS) - 1), ConnectionInterrupted),
    ((*CHUNKED, Disconnect()), ConnectionInterrupted),
    ((*CHUNKED, Reset()), ConnectionInterrupted),
    ((*CHUNKED, Write(b"xyz\r\n")), ProtocolError),
    ((*CHUNKED, WaitForRelease()), TransportTimeout),
    ((Disconnect(),), ConnectionInterrupted),
    ((Write(b"no HTTP"), Disconnect()), ProtocolError),
    ((WaitForRelease(),), TransportTimeout),
    (http_response(b"{"), DecodeError),
    (NOT_FOUND, APIError),
    ((*NOT_FOUND[:-1], Disconnect()), APIError),
)


@over(*WAYS)
async def test_failed_call_is_freed(way: Way) -> None:
    """Each call has its own server: on a busy machine, a call can time out before it is sent."""

    async def fail(error: type[Flux0Error]) -> None:
        limit = 50 if error is TransportTimeout else None
        with pytest.raises(error):
            await flux0.agents.list_async(server_url=server.url, timeout_ms=limit)

    client = Flux0(transport=way.make_transport(), retry_config=RetryConfig("none"))
    flux0 = in_mode(way.mode, client)
    gc.freeze()
    for steps, error in FAILED_CALLS:
        with ByteServer(steps) as server:
            await fail(error)
            await check_freed(way.mode, *OF_AN_EXCHANGE)
    await fail(ConnectError)
    await check_freed(way.mode, *OF_AN_EXCHANGE)
    await flux0.close_async()
