"""One reader at a time: errors that are kept, and generators that run in several threads."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import cycle
from threading import Event, get_ident
from types import FrameType
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from flux0 import EventStream, Flux0, StreamEvent
from flux0.domain.errors import ConnectionInterrupted, StreamInterrupted, StreamInUse
from flux0.testing import FakeTransport, Say
from flux0.turns.reader import ReaderRole
from support.back_ends import serve
from support.contention import before_lock
from support.in_memory import Tape, chunk, in_both_loops, new_turn, tape
from support.streams import open_async, open_sync, value_of
from support.transports import Mode

TOO_LONG = 20.0

Reads = Callable[[Any], Any]
Generates = Callable[[EventStream], Iterator[object]]


def letters() -> Tape:
    return tape(chunk("a"), chunk("b") + chunk("c"), chunk("d"), chunk("e"))


def read_text(stream: EventStream) -> list[str]:
    return list(stream.text())


@in_both_loops
async def test_closed_loop_closes_the_stream(mode: Mode) -> None:
    for begins in (False, True):
        stream = open_async(letters())
        loop: Any = stream.text()
        if begins:
            assert await anext(loop) == "a"
        await loop.aclose()
        assert not stream.is_open


def test_reader_with_another_owner_does_not_belong_to_the_generator_that_has_claimed_it() -> None:
    """The owner is the thread of a relay, which a web server may start in its generator."""
    role = ReaderRole(get_ident, new_turn())

    def pieces(owner: object) -> Iterator[None]:
        reader = role.claim(owner)
        threads.submit(role.check).result() if owner is None else role.check()
        yield
        del reader

    with ThreadPoolExecutor(1) as threads:
        for owner in (None, object()):
            with pytest.raises(StreamInUse):
                next(pieces(owner))
    role.check()


def test_reader_that_is_slower_than_another_reader_is_refused() -> None:
    role, first = ReaderRole(get_ident, new_turn()), list[object]()
    before_lock(role.lock, lambda: first.append(role.claim(object())))
    with pytest.raises(StreamInUse):
        role.claim(object())


def test_events_that_another_thread_has_received_meanwhile_are_not_lost() -> None:
    stream, first = open_sync(letters()), list[object]()
    assert value_of(next(stream)) == "a"
    before_lock(vars(stream)["_lock"], lambda: first.append(value_of(next(stream))))
    second = value_of(next(stream))
    assert [*first, second, *map(value_of, stream)] == ["b", "c", "d", "e"]


# --- errors that are kept


READS: tuple[Callable[[Any], Any], ...] = (next, list, read_text, EventStream.final_messages)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("loop", [iter, EventStream.text])
def test_kept_error_of_a_second_thread_does_not_keep_the_stream_open(
    loop: Callable[[EventStream], Iterator[object]], read: Callable[[EventStream], object]
) -> None:
    recorded = letters()
    stream = open_sync(recorded)
    error: BaseException | None = None

    with ThreadPoolExecutor(1) as thread:
        for _ in loop(stream):
            error = thread.submit(read, stream).exception()
            break

    assert isinstance(error, StreamInUse)
    assert recorded.releases, "leaving the loop closes the stream"


@in_both_loops
async def test_kept_error_of_a_second_task_does_not_keep_the_stream_open(mode: Mode) -> None:
    kept: list[BaseException] = []

    async def read() -> None:
        for values in (stream, stream.text()):
            try:
                await anext(values)
            except StreamInUse as error:
                kept.append(error)

    for reads_text in (False, True):
        recorded = letters()
        stream = open_async(recorded)
        async for _value in stream.text() if reads_text else stream:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
            break
        assert recorded.releases, "leaving the loop closes the stream"

    assert len(kept) == 4


def test_refused_thread_reads_in_its_except_block_after_the_loop() -> None:
    """The error exists until the block ends."""
    refused, left = Event(), Event()
    received: list[object] = []
    retries: list[Future[None]] = []

    def retry() -> None:
        try:
            next(stream)
        except StreamInUse:
            refused.set()
            assert left.wait(TOO_LONG)
            for event in stream:
                received.append(value_of(event))
                assert isinstance(threads.submit(next, stream).exception(), StreamInUse)
                break

    with ThreadPoolExecutor(2) as threads, open_sync(letters()) as stream:
        for event in stream:
            received.append(value_of(event))
            retries.append(threads.submit(retry))
            assert refused.wait(TOO_LONG)
            break
        left.set()
        retries[0].result()
        received += [value_of(event) for event in stream]

    assert received == list("abcde")


def test_failure_of_a_relay_is_raised_by_later_reads() -> None:
    stream = open_sync(tape(chunk("a"), ConnectionInterrupted("gone")))
    _, last = stream.relay()
    assert b"StreamInterrupted" in last
    for read in READS:
        with pytest.raises(StreamInterrupted):
            read(stream)


# --- generators that several threads continue


def loop_in_a_loop(stream: EventStream) -> Iterator[object]:
    for event in stream:
        yield value_of(event)
        yield from stream.text()


def text_in_a_loop(stream: EventStream) -> Iterator[object]:
    for event in stream:
        yield value_of(event)
        for text in stream.text():
            yield text.lower()


def text_after_a_loop(stream: EventStream) -> Iterator[object]:
    with stream:
        for event in stream:
            yield value_of(event)
            break
        yield from stream.text()


def text_after_next(stream: EventStream) -> Iterator[object]:
    events = iter(stream)
    yield value_of(next(events))
    yield from stream.text()


def next_in_a_loop(stream: EventStream) -> Iterator[object]:
    for event in stream:
        yield value_of(event)
        while (following := next(stream, None)) is not None:
            yield value_of(following)


def messages_in_a_loop(stream: EventStream) -> Iterator[object]:
    for event in stream:
        yield value_of(event)
        (message,) = stream.final_messages()
        yield from message.text[1:]


def loop_in_a_function(stream: EventStream) -> Iterator[object]:
    events = iter(stream)

    def first() -> object:
        return value_of(next(events))

    yield first()
    yield from stream.text()


def loop_in_a_generator(stream: EventStream) -> Iterator[object]:
    def values() -> Iterator[object]:
        for event in stream:
            yield value_of(event)

    for value in values():
        yield value
        yield from stream.text()


def kept_text(stream: EventStream) -> Iterator[object]:
    text = stream.text()
    yield next(text)
    yield from stream.text()


GENERATORS: tuple[Generates, ...] = (
    loop_in_a_loop,
    text_in_a_loop,
    text_after_a_loop,
    text_after_next,
    next_in_a_loop,
    messages_in_a_loop,
    loop_in_a_function,
    loop_in_a_generator,
    kept_text,
)


@pytest.mark.parametrize("generate", GENERATORS)
def test_generator_may_continue_in_another_thread(generate: Generates) -> None:
    stream = open_sync(letters())
    values, received = generate(stream), list[object]()
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        for thread in cycle((first, second)):
            value = thread.submit(next, values, None).result()
            if value is None:
                break
            received.append(value)
    assert received == list("abcde")
    assert stream.finished


def test_other_threads_are_refused_while_a_generator_is_unfinished() -> None:
    stream = open_sync(letters())
    values, another = text_in_a_loop(stream), text_in_a_loop(stream)
    with (
        ThreadPoolExecutor(1) as first,
        ThreadPoolExecutor(1) as second,
        ThreadPoolExecutor(1) as third,
    ):
        received = [thread.submit(next, values).result() for thread in (first, second)]
        for thread in (first, third):
            for read in READS:
                assert isinstance(thread.submit(read, stream).exception(), StreamInUse)
        assert isinstance(third.submit(next, another).exception(), StreamInUse)
        received += third.submit(list, values).result()
    assert received == list("abcde")
    assert stream.finished


def test_iterators_of_another_thread_are_refused_if_an_outer_loop_has_ended() -> None:
    """The new iterators use the outer loop's memory."""
    with ThreadPoolExecutor(1) as thread, open_sync(letters()) as stream:
        inner: Iterator[StreamEvent] = iter(())
        for _ in stream:
            inner = iter(stream)
            assert value_of(next(inner)) == "b"
            break
        iterators = [iter(stream) for _ in range(50)]
        for iterator in iterators:
            assert isinstance(thread.submit(next, iterator).exception(), StreamInUse)
        assert [value_of(event) for event in inner] == list("cde")


def test_loop_of_a_task_that_has_ended_is_continued_by_one_task_only() -> None:
    async def read(loop: AsyncIterator[StreamEvent]) -> object:
        return value_of(await anext(loop))

    async def run() -> None:
        async with open_async(tape(chunk("a") + chunk("b") + chunk("c"))) as stream:
            kept = aiter(stream)
            assert await asyncio.create_task(read(kept)) == "a"
            async for event in stream:
                assert value_of(event) == "b"
                with pytest.raises(StreamInUse) as caught:
                    await asyncio.create_task(read(aiter(stream)))
                assert caught.value.operation == "sessions.create_event"
                break

    asyncio.run(run())


def test_tasks_are_two_readers_if_their_event_loop_runs_in_a_generator() -> None:
    async def read() -> list[object]:
        stream = open_async(letters())
        received: list[object] = []
        async for event in stream:
            received.append(value_of(event))
            with pytest.raises(StreamInUse):
                await asyncio.ensure_future(read_one(aiter(stream)))
        return received

    async def read_one(loop: AsyncIterator[object]) -> object:
        return await anext(loop)

    def run() -> Iterator[object]:
        yield asyncio.run(read())

    assert next(run()) == list("abcde")


def test_web_server_may_run_each_step_of_a_generator_in_another_thread() -> None:
    """Starlette does so with sync generators."""
    text = "abcde"
    fake = FakeTransport([Say(text, pieces=len(text))])
    client, finished = Flux0(transport=fake), Event()

    def in_changing_threads(values: Iterator[Any]) -> Iterator[str]:
        for value in values:
            yield str(value)
            thread = get_ident()
            while get_ident() == thread and not finished.is_set():
                yield " "

    def reply(request: Request) -> StreamingResponse:
        stream = client.conversation(agent=fake.agent_id).send("Hi")
        number: int = request.path_params["number"]
        values: Iterator[Any] = GENERATORS[number](stream)
        return StreamingResponse(in_changing_threads(values))

    def other(_: Request) -> StreamingResponse:
        """Use the server's threads, so that the other responses get other threads."""
        return StreamingResponse(iter(lambda: "" if finished.is_set() else " ", ""))

    def get(number: object) -> str:
        return httpx.get(f"{url}/{number}", timeout=TOO_LONG).text.replace(" ", "")

    routes = [Route("/other", other), Route("/{number:int}", reply)]
    with serve(Starlette(routes=routes)) as url, ThreadPoolExecutor(4) as threads:
        threads.submit(get, "other")
        try:
            replies = list(threads.map(get, range(len(GENERATORS))))
        finally:
            finished.set()
    assert replies == [text] * len(GENERATORS)


# --- iterators that several threads share


ITERATORS: list[Callable[[EventStream], Iterator[Any]]] = [
    EventStream.__iter__,
    EventStream.text,
    EventStream.received,
    EventStream.relay,
]


@pytest.mark.parametrize("iterate", ITERATORS)
def test_second_thread_in_next_of_an_iterator_gets_stream_in_use(
    iterate: Callable[[EventStream], Iterator[Any]],
) -> None:
    arrives = Event()

    def next_piece() -> bytes:
        assert arrives.wait(TOO_LONG)
        return chunk("b")

    with ThreadPoolExecutor(2) as threads:
        try:
            stream = open_sync(tape(chunk("a"), next_piece))
            values = iterate(stream)
            next(values)
            both = [threads.submit(next, values) for _ in range(2)]
            done, waiting = wait(both, TOO_LONG, FIRST_COMPLETED)
            assert [type(each.exception()) for each in done] == [StreamInUse]
        finally:
            arrives.set()
        assert [each.exception(TOO_LONG) for each in waiting] == [None]
        assert list(values) == []
        assert stream.answer == "ab"


def test_text_in_a_signal_handler_that_has_interrupted_text_raises_stream_in_use() -> None:
    refused: list[type[BaseException]] = []

    def interrupt(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == "_fold_taken":
            sys.setprofile(None)
            with pytest.raises(StreamInUse) as caught:
                next(stream.text())
            refused.append(caught.type)

    stream = open_sync(tape(chunk("a") + chunk("b") + chunk("c")))
    texts = stream.text()
    assert next(texts) == "a"
    sys.setprofile(interrupt)
    try:
        assert next(texts) == "b"
    finally:
        sys.setprofile(None)
    assert refused == [StreamInUse]
    assert list(texts) == ["c"]


def test_closed_loop_ends() -> None:
    with open_sync(letters()) as stream:
        loop: Any = iter(stream)
        assert value_of(next(loop)) == "a"
        loop.close()
        with pytest.raises(StopIteration):
            next(loop)


def test_text_that_interrupts_a_fold_of_its_stream_is_in_use() -> None:
    """A signal handler, or a finalizer, runs in the thread that it interrupts."""
    with open_sync(letters()) as stream:
        next(stream)
        content: Any = stream._content  # pyright: ignore[reportPrivateUsage]

        def interrupt() -> tuple[str, ...]:
            return (next(stream.text()),)

        with pytest.raises(StreamInUse):
            content.exclusively(interrupt)
