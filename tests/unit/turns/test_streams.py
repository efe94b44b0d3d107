"""The sync and the async stream over scripted bodies: events, ends, failures and closing."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import pytest
from attrs import evolve

from flux0 import Flux0
from flux0.client.unawaited import UnawaitedTurn
from flux0.domain import errors
from flux0.domain.errors import StreamInUse
from flux0.domain.stream_events import StatusEvent
from flux0.models import SessionStatus
from flux0.observers import Call, Observer, TurnEnd
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import WaitForRelease, http_response
from flux0.turns.streams import AsyncEventStream
from support.driving import Slow, Time
from support.ending import ends_soon
from support.in_memory import (
    CORRELATION_ID,
    SSE,
    Body,
    Hang,
    Tape,
    chunk,
    in_both_loops,
    in_every_mode,
    response_from,
    script,
    scripted_response,
    status,
    tape,
)
from support.logged import logged_errors
from support.modes import close_iterator, in_mode, result_of, run, unwrapped
from support.streams import NO_EVENTS, open_async, open_sync, opened, value_of
from support.transports import ASYNC, SYNC, Mode

E = TypeVar("E", bound=Exception)
BROKEN = b"event: chunk\ndata: {no JSON}\n\n"


async def each(values: Any) -> AsyncIterator[Any]:
    """Iterate over a sync or an async iterator."""
    if hasattr(values, "__aiter__"):
        async for value in values:
            yield value
    else:
        for value in values:
            yield value


async def values(stream: AsyncEventStream) -> list[object]:
    """Return the values that the remaining chunks of a stream append."""
    return [value_of(event) async for event in stream]


async def ends_in(kind: type[E], stream: AsyncEventStream) -> tuple[list[object], E]:
    """Read a stream until it fails; return the values before the failure, and the failure."""
    seen: list[object] = []
    try:
        async for event in stream:
            seen.append(value_of(event))  # noqa: PERF401 - the values before a failure are needed
    except kind as failure:
        return seen, failure
    raise AssertionError("the stream did not fail")


# --- reading


@in_every_mode
async def test_stream_read_to_its_end_is_finished(mode: Mode) -> None:
    recorded = tape(status("processing"), chunk("a") + chunk("b"), chunk("c"))

    async with opened(mode, recorded) as stream:
        assert (stream.finished, stream.status) == (False, None)
        assert (stream.event_count, stream.correlation_id) == (0, None)
        events = [event async for event in stream]

        assert isinstance(events[0], StatusEvent)
        assert [value_of(event) for event in events[1:]] == ["a", "b", "c"]
        assert stream.finished
        assert recorded.releases, "the connection is released before the block ends"
        assert [event async for event in stream] == []
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    assert (stream.event_count, stream.correlation_id) == (4, CORRELATION_ID)
    assert stream.status is SessionStatus.PROCESSING
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.raw_response is not None


@in_every_mode
async def test_idle_timeout_does_not_run_while_the_user_handles_an_event(mode: Mode) -> None:
    time = Time()
    recorded = tape(chunk("a"), b": a comment does not reset the timeout\n\n", chunk("b"))
    transport = Slow([response_from(recorded, headers=SSE)], time=time)
    async with in_mode(mode, Flux0(transport=transport, stream_idle_timeout_ms=5_000)) as flux0:
        stream = await flux0.sessions.create_event_async(session_id="s", content="Hi")
        async for _ in stream:
            time.now += 100
    assert recorded.timeouts == [5, 5, 5, 5]


@in_every_mode
async def test_each_event_is_yielded_before_more_bytes_are_read(mode: Mode) -> None:
    recorded = tape(chunk("a"), chunk("b")[:5], chunk("b")[5:], chunk("c"))
    reads: list[int] = []

    async with opened(mode, recorded) as stream:
        async for _ in stream:
            reads.append(recorded.reads)  # noqa: PERF401 - `reads` changes during the iteration

    assert reads == [1, 3, 4]


# --- failures


@in_every_mode
async def test_events_before_an_invalid_event_are_yielded_first(mode: Mode) -> None:
    recorded = tape(chunk("a") + chunk("b") + BROKEN + chunk("c"), chunk("d"))
    stream = opened(mode, recorded)

    assert value_of(await anext(stream)) == "a"
    assert recorded.releases, "the connection is released before the failure is raised"
    seen, failure = await ends_in(errors.DecodeError, stream)

    assert seen == ["b"]
    assert failure.body == "{no JSON}"
    assert recorded.reads == 1
    assert not stream.finished


@in_every_mode
async def test_failure_is_raised_again_by_every_use_of_the_stream(mode: Mode) -> None:
    stream = opened(mode, tape(errors.ConnectionInterrupted("reset")))
    _, failure = await ends_in(errors.StreamInterrupted, stream)

    assert (await ends_in(errors.StreamInterrupted, stream)) == ([], failure)
    with pytest.raises(errors.StreamInterrupted):
        await anext(stream)
    with pytest.raises(errors.StreamInterrupted):
        async with stream:
            raise AssertionError("entered")
    assert not stream.finished
    assert (failure.correlation_id, failure.event_count, failure.messages) == (None, 0, ())
    with pytest.raises(errors.Flux0Error, match="before the first event"):
        await result_of(failure.stored_events())


@in_every_mode
async def test_keyboard_interrupt_or_memory_error_in_read_closes_the_stream(
    mode: Mode,
) -> None:
    for interruption in (KeyboardInterrupt, MemoryError):
        recorded = tape(interruption(), chunk("b"))

        async with opened(mode, recorded) as stream:
            with pytest.raises(interruption):
                await anext(stream)
            assert recorded.releases
            with pytest.raises(errors.ClientClosed):
                await anext(stream)


@in_both_loops
async def test_cancelled_read_closes_the_stream(mode: Mode) -> None:
    recorded = tape(chunk("a"), Hang())

    async with open_async(recorded) as stream:
        await anext(stream)
        with anyio.move_on_after(0) as scope:
            await anext(stream)

        assert scope.cancelled_caught
        assert recorded.releases
        with pytest.raises(errors.ClientClosed):
            await anext(stream)


@in_both_loops
async def test_turn_has_ended_although_its_task_is_cancelled_while_it_closes_the_body(
    mode: Mode,
) -> None:
    class CancelledBody(Body):
        async def close_async(self) -> None:
            scope.cancel()
            await anyio.lowlevel.checkpoint()

    for reads, ending in ((True, "confirmed"), (False, "closed")):
        endings = Endings()
        response = evolve(scripted_response(headers=SSE), body=CancelledBody(tape(chunk("a"))))
        async with Flux0(async_transport=script(response), observers=[endings]) as client:
            stream = await client.sessions.create_event_async(session_id="s", content="Hi")
            await anext(stream)
            with anyio.CancelScope() as scope:
                await (anext(stream) if reads else stream.close_async())
            assert scope.cancelled_caught
            assert not stream.is_open
            assert stream.finished is reads
            assert endings.seen == [ending]


# --- closing


@in_every_mode
async def test_exception_in_with_block_closes_the_stream(
    mode: Mode,
) -> None:
    recorded = tape(chunk("a"), chunk("b"))
    stream = opened(mode, recorded)

    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the end of the block is tested
        async with stream:
            async for _ in stream:
                raise ZeroDivisionError

    assert recorded.releases
    assert recorded.reads == 1
    with pytest.raises(errors.ClientClosed, match="closed before its end"):
        await anext(stream)
    with pytest.raises(errors.ClientClosed):
        async with stream:
            raise AssertionError("entered")


@in_every_mode
async def test_leaving_a_loop_without_a_with_block_closes_the_stream(mode: Mode) -> None:
    for reads_text, has_error in ((False, False), (True, False), (False, True), (True, True)):
        recorded = tape(chunk("a") + chunk("b"), chunk("c"))
        stream = opened(mode, recorded)

        with suppress(ZeroDivisionError):
            async for _ in stream.text() if reads_text else stream:
                if has_error:
                    raise ZeroDivisionError
                break

        assert recorded.releases
        assert not stream.finished
        assert value_of(await anext(stream)) == "b", "received events can still be read"
        with pytest.raises(errors.ClientClosed):
            await anext(stream)


@in_every_mode
async def test_closed_stream_raises_and_second_close_has_no_effect(mode: Mode) -> None:
    recorded = tape(chunk("a"), chunk("b"))
    stream, finished = opened(mode, recorded), opened(mode, tape())
    await anext(stream)
    assert await values(finished) == []

    for _ in range(2):
        await stream.close_async()
        await finished.close_async()

    assert recorded.releases
    with pytest.raises(errors.ClientClosed):
        await anext(stream)
    assert finished.finished
    async with finished:
        assert await values(finished) == []


@pytest.mark.usefixtures("little_garbage")
@in_every_mode
async def test_garbage_collected_stream_closes_its_connection(mode: Mode) -> None:
    recorded = tape(chunk("a"), chunk("b"))
    stream = opened(mode, recorded)
    await anext(stream)

    del stream
    gc.collect()

    assert recorded.releases


@in_every_mode
async def test_stream_closed_during_a_read_raises_client_closed(
    mode: Mode,
) -> None:
    # If another thread closes the socket, a transport may report the body's end or an error.
    for outcome in (None, errors.ConnectionInterrupted("the socket is gone")):
        streams: list[AsyncEventStream] = []

        def close_during_read(
            streams: list[AsyncEventStream] = streams, outcome: Exception | None = outcome
        ) -> None:
            with pytest.raises(StopIteration):
                streams.pop().close_async().send(None)
            if outcome is not None:
                raise outcome

        stream = opened(mode, tape(chunk("a"), close_during_read))
        streams.append(stream)

        _, failure = await ends_in(errors.ClientClosed, stream)

        assert "before its end" in str(failure)
        assert failure.__cause__ is outcome
        assert not stream.finished
        with pytest.raises(errors.ClientClosed):
            await anext(stream)


@in_both_loops
async def test_close_soon_closes_an_open_stream_and_not_a_finished_one(mode: Mode) -> None:
    recorded = tape(chunk("a"))
    stream, finished = open_async(recorded), open_async(tape(chunk("a")))
    await values(finished)

    for one in (stream, stream, finished):
        one.close_soon()

    assert recorded.releases, "the body is closed without an await"
    with pytest.raises(errors.ClientClosed):
        await anext(stream)
    await stream.close_async()
    assert finished.finished
    assert await values(finished) == []


@in_both_loops
async def test_close_soon_ends_the_wait_of_a_reader(mode: Mode) -> None:
    steps = http_response(WaitForRelease(), headers=list(SSE.items()), framing="chunked")
    with ByteServer(steps) as server:
        async with Flux0(server.url) as client:
            stream = await client.sessions.create_event_async(session_id="s", content="Hi")
            async with anyio.create_task_group() as tasks:

                async def read() -> None:
                    with pytest.raises(errors.ClientClosed):
                        await anext(stream)

                tasks.start_soon(read)
                await anyio.wait_all_tasks_blocked()
                with ends_soon():
                    stream.close_soon()
                    await anyio.to_thread.run_sync(server.wait_until_closed)


@in_every_mode
async def test_reader_gets_the_reason_for_closing(mode: Mode) -> None:
    for method in ("close_async",) if mode == "sync" else ("close_async", "close_soon"):
        stream = opened(mode, tape(chunk("a")))
        await result_of(getattr(stream, method)("the reason"))
        with pytest.raises(errors.ClientClosed, match=r"the reason$"):
            await anext(stream)


@pytest.mark.parametrize("in_with_block", [True, False])
@pytest.mark.parametrize("method", ["text", "relay"])
@pytest.mark.parametrize("mode", SYNC + ASYNC)
def test_iterator_that_is_closed_before_its_first_piece_closes_the_stream_except_in_a_with_block(
    mode: Mode, method: str, in_with_block: bool
) -> None:
    async def close() -> None:
        stream = opened(mode, tape(chunk("a")))
        if in_with_block:
            await stream.__aenter__()
        await close_iterator(getattr(stream, method)())
        assert stream.is_open is in_with_block

    run(mode, close)


@in_every_mode
async def test_relay_that_is_closed_while_it_waits_for_an_event_closes_the_stream_at_once(
    mode: Mode,
) -> None:
    ended = Event()

    def wait() -> Hang | None:
        if mode != "sync":
            return Hang()
        ended.wait(20)
        return None

    recorded, endings = tape(chunk("a"), wait), Endings()
    async with opened(mode, recorded, None, endings) as stream:
        pieces: Any = unwrapped(stream.relay())
        if mode == "sync":
            next(pieces)
            pieces.close()
            assert endings.seen == [], "the garbage collector may have closed the relay"
        else:
            await anext(pieces)
            await pieces.aclose()
            await anyio.wait_all_tasks_blocked()
        is_open = stream.is_open
        ended.set()
        assert not is_open
    assert recorded.releases


# --- the agent's status and errors


@in_every_mode
async def test_status_and_error_are_the_latest_of_the_stream(mode: Mode) -> None:
    statuses = (
        status("error", {"detail": 1}) + chunk("a") + status("dreaming"),
        status("error", {"detail": 2}),
    )
    asked: list[str] = []

    async with opened(mode, tape(*statuses), asked) as stream:
        seen = [(stream.status, stream.error and stream.error.data) async for _ in stream]
        assert stream.finished, "an error of the agent is not a failure of the stream"
        assert stream.error is not None
        assert await result_of(stream.error.stored_events()) is NO_EVENTS
        assert await result_of(stream.stored_events()) is NO_EVENTS

    first, second = {"detail": 1}, {"detail": 2}
    assert seen == [("error", first), ("error", first), ("dreaming", first), ("error", second)]
    assert asked == [CORRELATION_ID] * 2


@in_every_mode
async def test_agent_error_is_raised_by_text_and_final_messages(mode: Mode) -> None:
    def failing() -> Tape:
        return tape(
            chunk("It "), status("error", {"detail": "no weather"}), chunk("is"), chunk("rainy")
        )

    async with opened(mode, failing()) as stream:
        assert (stream.error, stream.status) == (None, None)
        texts: list[str] = []
        with pytest.raises(errors.AgentError, match="no weather") as caught:  # noqa: PT012 - of a loop
            async for text in each(stream.text()):
                texts.append(text)  # noqa: PERF401 - the texts before a failure are needed
        assert texts == ["It "]
        assert caught.value.data == {"detail": "no weather"}
        assert caught.value.messages == stream.messages != ()
        assert stream.error is not None
        with pytest.raises(errors.AgentError):
            await result_of(stream.final_messages())
        with pytest.raises(errors.AgentError):
            await anext(each(stream.text()))
        assert value_of(await anext(stream)) == "rainy", "further events can still be read"

    stream = opened(mode, failing())
    with pytest.raises(errors.AgentError):
        await result_of(stream.final_messages())


@in_every_mode
async def test_final_messages_compares_the_messages_of_an_unconfirmed_end_with_the_stored_events(
    mode: Mode,
) -> None:
    asked: list[str] = []
    stream = opened(mode, tape(chunk("a")), asked, headers={**SSE, "via": "1.1 proxy"})
    with pytest.raises(errors.StreamInterrupted, match="has not stored all messages"):
        await result_of(stream.final_messages())
    assert asked == [CORRELATION_ID]


@in_every_mode
async def test_error_of_the_agent_is_logged_if_the_stream_is_relayed(mode: Mode) -> None:
    with logged_errors() as messages:
        for expected in (0, 1):
            stream = opened(mode, tape(status("error", "no model")))
            values: Any = stream.relay(heartbeat_ms=None) if expected else stream
            assert len([value async for value in each(unwrapped(values))]) == 1
            assert len(messages) == expected


# --- two readers


@in_every_mode
async def test_loop_that_is_kept_loses_no_events_of_a_later_piece(mode: Mode) -> None:
    """The loop still has the iterator of the first piece when another read receives the second."""
    pieces = (chunk("a") + chunk("b"), chunk("c") + chunk("d") + chunk("e"), chunk("f"))
    async with opened(mode, tape(*pieces)) as stream:
        kept = aiter(stream)
        assert value_of(await anext(kept)) == "a"
        assert [value_of(await anext(stream)) for _ in range(2)] == ["b", "c"]
        assert value_of(await anext(kept)) == "d"
        assert await values(stream) == ["e", "f"]
        assert [event async for event in kept] == []


@pytest.mark.parametrize("calls_next", [False, True])
def test_second_thread_reading_a_stream_raises_and_the_first_continues(*, calls_next: bool) -> None:
    refused: list[Exception] = []

    def second() -> None:
        for read in (lambda: next(stream), lambda: list(stream), lambda: list(stream.text())):
            try:
                read()
            except errors.Flux0Error as error:
                refused.append(error)

    def read_by_second() -> bytes:
        with ThreadPoolExecutor(1) as threads:
            threads.submit(second).result()
        return chunk("b")

    recorded = tape(chunk("a"), read_by_second)
    stream = open_sync(recorded)

    events: Any = iter(lambda: next(stream, None), None) if calls_next else iter(stream)
    assert [value_of(event) for event in events] == ["a", "b"]

    assert stream.finished
    assert [type(error) for error in refused] == [StreamInUse] * 3
    assert "already being read by another thread or task" in str(refused[0])


@in_both_loops
async def test_second_task_reading_a_stream_raises_and_the_first_continues(mode: Mode) -> None:
    def read_by_second() -> bytes:
        readers: list[Any] = [stream, aiter(stream), stream.text()]
        for reader in readers:
            with pytest.raises(StreamInUse, match="already being read by another"):
                reader.__anext__().send(None)
        return chunk("b")

    stream = open_async(tape(chunk("a"), read_by_second))

    assert [value_of(event) async for event in stream] == ["a", "b"]
    assert stream.finished


@in_both_loops
async def test_loop_that_two_tasks_use_at_once_still_closes_the_stream(mode: Mode) -> None:
    def read_by_second() -> bytes:
        with pytest.raises(StreamInUse):
            loop.__anext__().send(None)
        return chunk("a")

    stream = open_async(tape(read_by_second, chunk("b")))
    loop: Any = aiter(stream)
    assert value_of(await anext(loop)) == "a"
    await loop.aclose()
    assert not stream.is_open


class Endings(Observer):
    """Records how each turn ended."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_turn_end(self, call: Call, turn: TurnEnd) -> None:
        self.seen.append(turn.ending)


@in_every_mode
async def test_end_of_a_with_block_is_reported_at_once(mode: Mode) -> None:
    for error in (None, ZeroDivisionError()):
        endings = Endings()
        with suppress(ZeroDivisionError):
            async with opened(mode, tape(chunk("a")), None, endings) as stream:
                await anext(stream)
                if error is not None:
                    raise error
        assert endings.seen == ["closed"]


@in_every_mode
async def test_end_of_a_closed_iterator_is_reported_later(mode: Mode) -> None:
    """The garbage collector may close it, and an observer may wait for a lock."""
    for reads_text, reads in ((False, True), (True, True), (True, False)):
        endings = Endings()
        stream = opened(mode, tape(chunk("a")), None, endings)
        iterator = stream.text() if reads_text else aiter(stream)
        if reads:
            await anext(iterator)
        await close_iterator(iterator)
        assert not stream.is_open
        assert endings.seen == []


def test_repr_shows_state_and_number_of_events() -> None:
    stream, closed, broken = open_sync(tape(chunk("a"))), open_sync(tape()), open_sync(tape(BROKEN))
    assert repr(stream) == "<EventStream open, 0 events>"
    list(stream)
    assert repr(stream) == f"<EventStream ended, 1 events of {stream.correlation_id}>"
    closed.close()
    assert repr(closed) == "<EventStream closed, 0 events>"
    with pytest.raises(errors.DecodeError):
        next(broken)
    assert repr(broken) == "<EventStream failed, 0 events>"


def test_repr_of_a_turn_that_was_not_awaited_says_to_await_it() -> None:
    async def begin() -> Any: ...

    coroutine = begin()
    assert "await it, or use it in async with" in repr(UnawaitedTurn(coroutine))
    coroutine.close()
