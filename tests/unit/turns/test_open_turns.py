"""A session has one turn at a time: a client closes the open turn before it starts another."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from queue import SimpleQueue
from time import monotonic
from typing import Any, Literal, cast

import anyio
import pytest
from attrs import define, evolve, field

from flux0 import AsyncEventStream, EventStream, Flux0, HttpxTransport, RetryConfig
from flux0.domain.errors import (
    ClientClosed,
    ConnectError,
    ConnectionInterrupted,
    Flux0Error,
    InvalidArgument,
    ReadTimeout,
    TransportTimeout,
)
from flux0.domain.timeouts import Deadline
from flux0.flows import Await, CallRequest, Flow, SendFlow
from flux0.observers import Call, Observer, TurnEnd
from flux0.ports import Request, Response
from flux0.runtime.event_loop import do_nothing
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import WaitForRelease, http_response
from flux0.turns import open_turns
from flux0.turns.open_turns import OpenTurns
from flux0.turns.running_calls import RunningCall, RunningCalls
from flux0.turns.session_queue import SessionKey
from support.driving import Time
from support.ending import ends_soon
from support.forking import in_child
from support.in_memory import (
    SSE,
    Body,
    Hang,
    Script,
    Tape,
    chunk,
    in_both_loops,
    in_every_mode,
    in_simulated_time,
    response_from,
    tape,
)
from support.modes import at_once, in_mode, run
from support.transports import ASYNC, SYNC, Mode, Way

OTHER_SERVER = "http://127.0.0.1:9090"
NO_RETRIES = RetryConfig("none")
EARLIER_MESSAGES = r"not sent: earlier messages .* still being sent after 0\.001 s \(timeout_ms\)"
ALREADY_SENDING = "this thread or task is already sending a message on the session"
# Three turns, one after another. Each row is for the moment when a message is sent: whether the
# streams of the three turns are closed.
ONE_BY_ONE = [[False, False, False], [True, False, False], [True, True, False]]


@define
class Turns(Script):
    """A transport that records, when it sends a message, which of its streams are closed."""

    tapes: list[Tape] = field(factory=list[Tape], kw_only=True)
    closed: list[list[bool]] = field(factory=list[list[bool]], kw_only=True)

    def send(self, request: Request) -> Response[Any]:
        self.closed.append([bool(recorded.releases) for recorded in self.tapes])
        return super().send(request)


def turns(number: int) -> Turns:
    tapes = [tape(chunk("a"), chunk("b")) for _ in range(number)]
    return Turns([response_from(recorded, headers=SSE) for recorded in tapes], tapes=tapes)


async def begin(flux0: Flux0, session_id: str = "s", **options: Any) -> AsyncEventStream:
    return await flux0.sessions.create_event_async(session_id=session_id, content="Hi", **options)


@in_every_mode
async def test_second_turn_on_a_session_closes_the_first_before_sending(mode: Mode) -> None:
    transport = turns(3)

    async with in_mode(mode, Flux0(transport=transport)) as flux0:
        first = await begin(flux0)
        await anext(first)
        second = await begin(flux0)
        with pytest.raises(ClientClosed):
            await anext(first)
        assert len([event async for event in second]) == 2
        await begin(flux0)

    assert transport.closed == ONE_BY_ONE


@in_every_mode
async def test_turns_of_other_sessions_and_servers_stay_open(mode: Mode) -> None:
    transport = turns(4)

    async with in_mode(mode, Flux0(OTHER_SERVER, transport=transport)) as flux0:
        streams = [
            await begin(flux0, "one"),
            await begin(flux0, "two"),
            await begin(flux0, "one", server_url="http://127.0.0.1:8080"),
        ]
        for stream in streams[1:]:
            assert len([event async for event in stream]) == 2
        assert not any(map(any, transport.closed))
        with pytest.raises(InvalidArgument):
            await flux0.sessions.create_event_async(session_id="one", content="")
        assert not transport.tapes[0].releases
        await begin(flux0, "one", server_url=f"{OTHER_SERVER}/")

    assert transport.closed[3][0], "a trailing slash does not change the server"


@in_every_mode
async def test_turn_can_be_opened_after_a_message_that_was_not_sent(mode: Mode) -> None:
    transport = turns(2)
    transport.responses.insert(1, ConnectError("refused"))

    async with in_mode(mode, Flux0(transport=transport)) as flux0:
        await begin(flux0)
        with pytest.raises(ConnectError):
            await begin(flux0, retries=NO_RETRIES)
        stream = await begin(flux0)

        assert len([event async for event in stream]) == 2


@pytest.mark.usefixtures("little_garbage")
@in_every_mode
async def test_unreferenced_stream_is_garbage_collected_and_closed(mode: Mode) -> None:
    transport = turns(1)

    async with in_mode(mode, Flux0(transport=transport)) as flux0:
        stream = await begin(flux0)
        await anext(stream)
        reference = weakref.ref(stream)
        del stream
        gc.collect()

        assert reference() is None
        assert transport.tapes[0].releases


# --- sync and async code with one client


@in_both_loops
async def test_sync_and_async_turns_on_a_session_close_each_other(mode: Mode) -> None:
    transport = turns(3)

    async with Flux0(transport=transport) as flux0:
        first: EventStream = flux0.sessions.create_event(session_id="s", content="Hi")
        second = await begin(flux0)
        with pytest.raises(ClientClosed):
            next(first)
        third = flux0.sessions.create_event(session_id="s", content="Hi")
        with pytest.raises(ClientClosed):
            await anext(second)
        assert len(list(third)) == 2

    assert transport.closed == ONE_BY_ONE


@define
class Slow(Turns):
    """A transport that responds when `may_respond` is released, to one request at a time."""

    may_respond: threading.Semaphore = field(factory=lambda: threading.Semaphore(0), kw_only=True)
    sending: bool = field(default=False, kw_only=True)

    def send(self, request: Request) -> Response[Any]:
        self._start()
        assert self.may_respond.acquire(timeout=20)
        self.sending = False
        return super().send(request)

    async def send_async(self, request: Request) -> Response[Any]:
        self._start()
        while not self.may_respond.acquire(blocking=False):
            await anyio.lowlevel.checkpoint()
        self.sending = False
        return Turns.send(self, request)

    def _start(self) -> None:
        assert not self.sending
        self.sending = True


@in_every_mode
async def test_concurrent_messages_on_a_session_are_sent_one_after_another(mode: Mode) -> None:
    tapes = [tape(chunk("a"), chunk("b")) for _ in range(3)]
    transport = Slow([response_from(each, headers=SSE) for each in tapes], tapes=tapes)
    streams: list[AsyncEventStream] = []

    async with in_mode(mode, Flux0(transport=transport)) as flux0:

        async def send() -> None:
            streams.append(await begin(flux0))

        async def respond() -> None:
            for _ in range(3):
                transport.may_respond.release()

        await at_once(mode, send, send, send, respond)
        # Threads can add their streams in another order.
        *closed, last = sorted(streams, key=lambda stream: stream.is_open)
        for stream in closed:
            with pytest.raises(ClientClosed, match="closed by another message on its session"):
                await anext(stream)
        assert len([event async for event in last]) == 2

    assert transport.closed == ONE_BY_ONE


async def enter(mode: Mode, turns: OpenTurns, session: SessionKey, deadline: Deadline) -> None:
    if mode == "sync":
        turns.exclusive(session, deadline).__enter__()
    else:
        await turns.exclusive_async(session, deadline).__aenter__()


@in_every_mode
async def test_message_after_its_deadline_does_not_wait_for_another_message(mode: Mode) -> None:
    turns, session = OpenTurns(RunningCalls(), Time().monotonic), ("http://h", "s")
    earlier = turns.exclusive(session, None)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(earlier.__enter__).result()
        for late in (0.5, 1.0):
            deadline = Deadline(Time().now - late, 0.001)
            with pytest.raises(ReadTimeout, match=EARLIER_MESSAGES) as caught:
                await enter(mode, turns, session, deadline)
            assert caught.value.sent == "no"
        threads.submit(earlier.__exit__, None, None, None).result()


@in_every_mode
async def test_timeout_ms_limits_the_wait_for_another_message(mode: Mode) -> None:
    transport = Slow([response_from(tape(chunk("a")), headers=SSE)])

    async with in_mode(mode, Flux0(transport=transport)) as flux0:

        async def first() -> None:
            await begin(flux0)

        async def second() -> None:
            while not transport.sending:
                await anyio.lowlevel.checkpoint() if mode != "sync" else None
            with pytest.raises(ReadTimeout, match=EARLIER_MESSAGES) as caught:
                await begin(flux0, timeout_ms=1)
            assert caught.value.sent == "no"
            transport.may_respond.release()

        await at_once(mode, first, second)

    assert len(transport.requests) == 1


@contextmanager
def blocked_event_loop(
    flux0: Flux0, *, ended: bool = False
) -> Generator[AsyncEventStream, None, None]:
    """A turn of the session is open, or has ended, in an event loop that the block blocks.

    The block must close an open turn.
    """
    streams, goes_on = SimpleQueue[AsyncEventStream](), threading.Event()

    async def block() -> None:
        stream = await begin(flux0)
        if ended:
            assert len([event async for event in stream]) == 2
        streams.put(stream)
        assert goes_on.wait(20)
        if not ended:
            with pytest.raises(ClientClosed, match="closed by another message on its session"):
                await anext(stream)

    with ThreadPoolExecutor(1) as threads:
        blocked = threads.submit(asyncio.run, block())
        stream = streams.get(timeout=20)
        try:
            yield stream
        finally:
            goes_on.set()
        blocked.result()


def test_message_waits_at_most_ten_seconds_for_a_blocked_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A longer `timeout_ms` does not change this limit."""
    monkeypatch.setattr(open_turns, "_MAX_CLOSE_SECONDS", 0.01)
    flux0 = Flux0(transport=turns(2))
    error = pytest.raises(TransportTimeout, match=r"within 0\.01 s; the loop is blocked")
    with blocked_event_loop(flux0), ends_soon(), error:
        flux0.sessions.create_event(session_id="s", content="Hi", timeout_ms=60_000)


def test_timeout_ms_limits_the_wait_for_a_blocked_event_loop() -> None:
    flux0 = Flux0(transport=turns(2))

    async def send() -> None:
        with pytest.raises(TransportTimeout, match="did not close the stream within"):
            await begin(flux0, timeout_ms=100)

    with blocked_event_loop(flux0), ends_soon():
        start = monotonic()
        asyncio.run(send())
        assert monotonic() - start >= 0.1


@in_every_mode
async def test_ended_stream_of_a_blocked_event_loop_does_not_delay_a_message(mode: Mode) -> None:
    flux0 = Flux0(transport=turns(2))
    with blocked_event_loop(flux0, ended=True), ends_soon():
        assert (await begin(in_mode(mode, flux0))).is_open


@in_both_loops
async def test_message_waits_for_a_stopped_event_loop_of_another_thread(mode: Mode) -> None:
    """The other thread can run the loop again at any time."""
    transport = turns(1)
    flux0, loop = Flux0(transport=transport), asyncio.new_event_loop()
    with ThreadPoolExecutor(1) as threads:
        stream = threads.submit(loop.run_until_complete, begin(flux0)).result()
        with pytest.raises(TransportTimeout, match="the loop is blocked or stopped"):
            await begin(flux0, timeout_ms=1)
        assert (mode, transport.tapes[0].releases) == (mode, 0)
        threads.submit(loop.run_until_complete, asyncio.sleep(0)).result()
    assert not stream.is_open
    loop.close()


@pytest.mark.parametrize("mode", ASYNC)
def test_stream_of_an_ended_loop_of_another_thread_is_closed_before_the_message_is_sent(
    mode: Mode,
) -> None:
    transport, streams = turns(2), list[AsyncEventStream]()
    flux0 = Flux0(transport=transport)

    async def open_first() -> None:
        streams.append(await begin(flux0))

    with ThreadPoolExecutor(1) as threads:
        threads.submit(run, mode, open_first).result()
    with ends_soon():
        assert flux0.sessions.create_event(session_id="s", content="Hi").is_open
    assert not streams[0].is_open
    assert transport.closed == [[False, False], [True, False]]


class SlowToClose(Body):
    """A body whose closing takes several steps of the event loop, and then ends its reader."""

    async def read_async(self, timeout: float | None) -> bytes | None:
        self._is_closed = anyio.Event()
        await self._is_closed.wait()
        raise ConnectionInterrupted("the body was closed")

    async def close_async(self) -> None:
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        self.close()
        self._is_closed.set()


@pytest.mark.parametrize("first", ASYNC)
@pytest.mark.parametrize("second", SYNC + ASYNC)
def test_stream_that_another_loop_reads_is_closed_before_the_message_is_sent(
    first: Mode, second: Mode
) -> None:
    transport, streams, is_sent = turns(2), list[AsyncEventStream](), threading.Event()
    opened = cast("Response[Any]", transport.responses[0])
    transport.responses[0] = evolve(opened, body=SlowToClose(transport.tapes[0]))
    flux0 = Flux0(transport=transport)

    async def read() -> None:
        streams.append(await begin(flux0))
        with pytest.raises(ClientClosed, match="closed by another message on its session"):
            await anext(streams[0])
        # The loop runs until the message is sent.
        assert await anyio.to_thread.run_sync(is_sent.wait, 20)

    async def send() -> None:
        assert (await begin(in_mode(second, flux0))).is_open
        is_sent.set()

    with ThreadPoolExecutor(1) as threads, ends_soon():
        reading = threads.submit(run, first, read)
        while not (streams and streams[0].is_being_read):
            threading.Event().wait(0.001)
        run(second, send)
        reading.result()

    assert transport.closed == [[False, False], [True, False]]


class FirstHangs(Turns):
    """The first message gets no response."""

    async def send_async(self, request: Request) -> Response[Any]:
        if not self.requests:
            self.requests.append(cast("CallRequest", request))
            await anyio.sleep_forever()
        return await super().send_async(request)


@in_both_loops
async def test_message_is_sent_after_a_cancelled_message_of_its_session(mode: Mode) -> None:
    first = anyio.CancelScope()

    async def begin_first() -> None:
        with first:
            await begin(flux0)

    transport = FirstHangs(turns(1).responses)
    async with Flux0(transport=transport) as flux0:
        with ends_soon():
            async with anyio.create_task_group() as tasks:
                for send in (begin_first, partial(begin, flux0)):
                    tasks.start_soon(send)
                    await anyio.wait_all_tasks_blocked()
                first.cancel()
    assert len(transport.requests) == 2


@in_simulated_time
async def test_message_without_timeout_ms_waits_at_most_a_minute_for_each_earlier_message(
    mode: Mode,
) -> None:
    class Silent(Turns):
        async def send_async(self, request: Request) -> Response[Any]:
            await anyio.sleep_forever()
            return await super().send_async(request)

    limits = iter(("60 s", "120 s"))

    async def wait() -> None:
        with pytest.raises(TransportTimeout, match="still being sent after") as caught:
            await begin(flux0)
        assert f"after {next(limits)} (set timeout_ms" in str(caught.value)
        assert caught.value.sent == "no"

    async with Flux0(transport=Silent([])) as flux0, anyio.create_task_group() as first:
        first.start_soon(begin, flux0)
        await anyio.wait_all_tasks_blocked()
        async with anyio.create_task_group() as later:
            later.start_soon(wait)
            later.start_soon(wait)
        first.cancel_scope.cancel()


# --- messages that would wait for themselves


@in_every_mode
async def test_message_within_the_middleware_of_a_message_of_its_session_is_rejected(
    mode: Mode,
) -> None:
    transport = turns(1)

    def send_twice(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        with pytest.raises(Flux0Error, match=ALREADY_SENDING) as caught:
            flux0.sessions.create_event(session_id="s", content="Hi")
        assert caught.value.sent == "no"
        return (yield from send(request))

    flux0 = Flux0(transport=transport, middleware=[send_twice])
    async with in_mode(mode, flux0) as client:
        assert len([event async for event in await begin(client)]) == 2

    assert len(transport.requests) == 1


@in_both_loops
async def test_awaited_message_within_a_message_of_its_session_is_rejected(mode: Mode) -> None:
    transport = turns(1)

    def send_twice(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        yield Await(begin(flux0), "middleware")
        return (yield from send(request))

    async with Flux0(transport=transport, middleware=[send_twice]) as flux0:
        with pytest.raises(Flux0Error, match=ALREADY_SENDING):
            await begin(flux0, session_id="s")

    assert (mode, transport.requests) == (mode, [])


@in_every_mode
async def test_message_of_an_observer_is_rejected_only_while_a_message_is_being_sent(
    mode: Mode,
) -> None:
    """`on_turn_end` is called during a message if the message closes the open turn."""
    transport = turns(3)
    outcomes: list[object] = []

    class AsksAgain(Observer):
        def on_turn_end(self, call: Call, turn: TurnEnd) -> None:
            if call.content == "Hi":
                try:
                    flux0.sessions.create_event(session_id="s", content="And?")
                except Flux0Error as error:
                    outcomes.append(error.problem)
                else:
                    outcomes.append(turn.ending)

    flux0 = Flux0(transport=transport, observers=[AsksAgain()])
    async with in_mode(mode, flux0) as client:
        first = await begin(client)
        assert len([event async for event in await begin(client)]) == 2
        assert not first.is_open

    assert [str(outcome)[: len(ALREADY_SENDING)] for outcome in outcomes] == [
        ALREADY_SENDING,
        "confirmed",
    ]


@in_both_loops
async def test_sync_message_in_the_thread_of_a_task_that_sends_is_rejected(mode: Mode) -> None:
    transport = FirstHangs(turns(1).responses)
    async with Flux0(transport=transport) as flux0, anyio.create_task_group() as tasks:
        tasks.start_soon(begin, flux0)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(Flux0Error, match="use the _async method") as caught, ends_soon():
            flux0.sessions.create_event(session_id="s", content="Hi")
        assert (mode, caught.value.sent) == (mode, "no")
        tasks.cancel_scope.cancel()
    assert len(transport.requests) == 1


@pytest.mark.parametrize("mode", SYNC + ASYNC)
def test_message_that_would_wait_for_a_message_of_a_stopped_loop_is_rejected(mode: Mode) -> None:
    transport = FirstHangs(turns(1).responses)
    flux0 = Flux0(transport=transport)
    loop = asyncio.new_event_loop()
    sending = loop.create_task(begin(flux0))
    while not transport.requests:
        loop.run_until_complete(asyncio.sleep(0))

    async def send() -> None:
        with pytest.raises(Flux0Error, match="task of this thread is sending a message on the s"):
            await begin(in_mode(mode, flux0))

    run(mode, send)
    sending.cancel()
    loop.run_until_complete(asyncio.wait([sending]))
    loop.close()


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("mode", SYNC + ASYNC)
def test_open_stream_of_a_stopped_loop_is_closed_unless_a_task_reads_it(
    mode: Mode, reads: bool
) -> None:
    bodies = tape(Hang()), tape(chunk("a"))
    flux0 = Flux0(transport=Script([response_from(body, headers=SSE) for body in bodies]))
    loop = asyncio.new_event_loop()
    stream = loop.run_until_complete(begin(flux0))
    reading = loop.create_task(stream.__anext__()) if reads else None
    while stream.is_being_read is not reads:
        loop.run_until_complete(asyncio.sleep(0))

    async def send() -> None:
        client = in_mode(mode, flux0)
        if reads:
            with pytest.raises(Flux0Error, match="task of this thread is reading the open stream"):
                await begin(client)
            assert stream.is_open
        else:
            assert (await begin(client)).is_open
            assert not stream.is_open

    run(mode, send)
    if reading is not None:
        reading.cancel()
        loop.run_until_complete(asyncio.wait([reading]))
    loop.close()


# --- closing the client


@in_every_mode
async def test_closing_the_client_closes_its_open_streams(mode: Mode) -> None:
    transport = turns(2)
    flux0 = Flux0(transport=transport)
    streams = [await begin(in_mode(mode, flux0), session_id) for session_id in ("one", "two")]
    await anext(streams[0])

    flux0.close()
    if mode != "sync":
        await anyio.wait_all_tasks_blocked()

    for stream, recorded in zip(streams, transport.tapes, strict=True):
        assert not stream.is_open
        assert recorded.releases
        with pytest.raises(ClientClosed, match="this Flux0 client is closed"):
            await anext(stream)


@in_every_mode
async def test_readers_get_client_closed_before_the_transport_closes_their_connections(
    mode: Mode,
) -> None:
    class ReadsWhenClosed(Script):
        def close(self) -> None:
            run("sync", read)
            super().close()

    async def read() -> None:
        with pytest.raises(ClientClosed, match="this Flux0 client is closed"):
            await anext(stream)

    response = response_from(tape(ConnectionInterrupted("closed")), headers=SSE)
    transport = ReadsWhenClosed([response])
    async with in_mode(mode, Flux0(transport=transport)) as flux0:
        stream = await begin(flux0)
    assert transport.closes


@pytest.mark.parametrize("mode", [*ASYNC, "stopped"])
def test_closing_the_client_closes_the_stream_of_an_ended_or_stopped_loop(
    mode: Mode | Literal["stopped"],
) -> None:
    transport, streams = turns(1), list[AsyncEventStream]()
    flux0, loop = Flux0(transport=transport), asyncio.new_event_loop()

    async def open_stream() -> None:
        streams.append(await begin(flux0))

    if mode == "stopped":
        loop.run_until_complete(open_stream())
    else:
        run(mode, open_stream)
    flux0.close()
    assert not streams[0].is_open
    assert transport.tapes[0].releases
    loop.close()


class WatchedCalls(RunningCalls):
    """Running calls that record whether a call has started."""

    def __init__(self) -> None:
        super().__init__()
        self.has_started = threading.Event()

    def start(
        self, deadline: Deadline | None = None, wake: Callable[[], object] = do_nothing
    ) -> RunningCall:
        self.has_started.set()
        return super().start(deadline, wake)


@pytest.mark.parametrize("waits_for", ["an earlier message", "a blocked loop"])
@pytest.mark.parametrize("mode", SYNC + ASYNC)
def test_closing_the_client_ends_a_message_that_waits(mode: Mode, waits_for: str) -> None:
    calls, session = WatchedCalls(), ("", "s")
    open_turns = OpenTurns(calls, monotonic)

    async def wait() -> None:
        if mode == "sync":
            with open_turns.exclusive(session, None):
                pass
        else:
            async with open_turns.exclusive_async(session, None):
                pass

    with ExitStack() as obstacle, ThreadPoolExecutor(1) as threads:
        if waits_for == "an earlier message":
            obstacle.enter_context(open_turns.exclusive(session, None))
        else:
            flux0 = Flux0(transport=turns(1))
            open_turns.add(session, obstacle.enter_context(blocked_event_loop(flux0)))
        waiting = threads.submit(run, mode, wait)
        assert calls.has_started.wait(20)
        calls.close()
        with ends_soon(), pytest.raises(ClientClosed, match="this Flux0 client is closed"):
            waiting.result()


@define(eq=False)
class AlmostClosed:
    """A stream that ends while `OpenTurns` looks at it; meanwhile another thread adds a stream."""

    open_turns: OpenTurns
    is_looked_at: bool = False

    @property
    def is_open(self) -> bool:
        if not self.is_looked_at:
            self.is_looked_at = True
            self.open_turns.add(("", "another"), cast("Any", AlmostClosed(self.open_turns)))
        return False


def test_streams_can_be_opened_while_the_client_is_closed() -> None:
    open_turns = OpenTurns(RunningCalls(), monotonic)
    streams = [AlmostClosed(open_turns) for _ in range(3)]
    for number, stream in enumerate(streams):
        open_turns.add(("", str(number)), cast("Any", stream))

    open_turns.close()

    assert all(stream.is_looked_at for stream in streams)


# --- forks


@pytest.mark.parametrize("reading", [True, False], ids=["being read", "not read"])
@pytest.mark.parametrize(
    "way", [Way("aiohttp", "asyncio"), Way("httpx", "asyncio"), Way("httpx", "trio")], ids=str
)
def test_async_stream_of_the_parent_does_not_delay_a_message_of_the_child(
    way: Way, *, reading: bool
) -> None:
    """The fork happens in a task, so the child inherits the loop and the other tasks."""
    steps = (chunk("a"), WaitForRelease(), chunk("b"))
    turn = http_response(*steps, headers=SSE.items(), framing="chunked")
    reply = http_response(chunk("c"), headers=SSE.items(), framing="chunked")

    async def main() -> None:
        transports: dict[str, Any] = {"async_transport": way.make_transport()}
        flux0 = Flux0(server.url, transport=HttpxTransport(), **transports)
        streams = [await begin(flux0)]
        await anext(streams[0])

        def send_and_free() -> None:
            assert len(list(flux0.sessions.create_event(session_id="s", content="Hi"))) == 1
            streams.clear()
            flux0.close()

        async with anyio.create_task_group() as tasks:
            if reading:
                tasks.start_soon(anext, streams[0])
                while not streams[0].is_being_read:
                    await anyio.lowlevel.checkpoint()
            in_child(send_and_free)
            server.release()
        assert len([event async for event in streams[0]]) == (0 if reading else 1)
        assert streams[0].finished
        await flux0.close_async()

    with ByteServer(turn, reply) as server:
        anyio.run(main, backend=way.mode)
