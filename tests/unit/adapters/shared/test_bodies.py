"""Bodies that are read, closed, freed and interrupted, over sources without an HTTP library."""

from __future__ import annotations

import asyncio
import gc
import gzip
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from threading import Event, Thread
from types import FrameType
from typing import Any, ClassVar, TypeAlias
from weakref import ref

import pytest

from flux0.adapters.shared import bodies
from flux0.adapters.shared.bodies import AsyncBody, OpenBodies, State, SyncBody, SyncBodyState
from flux0.domain.errors import ConnectError, ConnectionInterrupted, Flux0Error, TransportError
from support.forking import in_child
from support.garbage_collection import no_garbage_collection


class AnySource:
    """A source that receives the result of a function. Records how its connection is released."""

    def __init__(self, receive: Callable[[], bytes | None], coding: str = "") -> None:
        self.coding = coding
        self.calls: list[str] = []
        self.released = Event()
        self._result = receive

    def translate_error(self, error: BaseException, timeout: float | None) -> TransportError | None:
        is_known = isinstance(error, (OSError, EOFError))
        return ConnectionInterrupted(str(error)) if is_known else None


class Source(AnySource):
    def receive(self, timeout: float | None) -> bytes | None:
        return self._result()

    def finish(self) -> None:
        self.calls.append("finish")

    def shut_down(self) -> None:
        self.calls.append("shut_down")

    def release(self) -> None:
        self.calls.append("release")
        self.released.set()


class AsyncSource(AnySource):
    close_at_exit: ClassVar[bool] = False

    async def receive(self, timeout: float | None) -> bytes | None:
        return self._result()

    async def finish(self) -> None:
        self.calls.append("finish")

    async def close(self) -> None:
        self.calls.append("close")

    def close_from_finalizer(self, loop: object) -> None:
        self.calls.append("finalizer")


class AwaitedSyncBody:
    """A `SyncBody` with the methods of an `AsyncBody`."""

    def __init__(self, source: Source) -> None:
        self._body = SyncBody(source)

    async def read_async(self, timeout: float | None) -> bytes | None:
        return self._body.read(timeout)

    async def close_async(self) -> None:
        self._body.close()


Body: TypeAlias = AwaitedSyncBody | AsyncBody
both = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


def open_body(
    receive: Callable[[], bytes | None], coding: str = "", *, is_async: bool
) -> tuple[Body, AnySource]:
    """Return a body and its source. Call this function while an event loop runs."""
    if is_async:
        async_source = AsyncSource(receive, coding)
        return AsyncBody(async_source), async_source
    source = Source(receive, coding)
    return AwaitedSyncBody(source), source


def finished(step: Coroutine[Any, Any, object]) -> None:
    """Run a coroutine that does not wait, within another coroutine."""
    with pytest.raises(StopIteration):
        step.send(None)


def fail(error: BaseException) -> bytes:
    raise error


@both
def test_body_is_read_in_pieces_to_its_end(*, is_async: bool) -> None:
    async def read() -> None:
        body, source = open_body(partial(pieces.pop, 0), is_async=is_async)
        assert [await body.read_async(None) for _ in range(4)] == [b"one", b"", b"two", None]
        assert await body.read_async(None) is None
        await body.close_async()
        assert await body.read_async(None) is None
        assert source.calls[0] == "finish"
        assert is_async or source.calls == ["finish"]

    pieces = [b"one", b"", b"two", None]
    asyncio.run(read())


@both
def test_compressed_body_is_read_in_limited_pieces(*, is_async: bool) -> None:
    async def read() -> None:
        body, _ = open_body(partial(received.pop, 0), "gzip", is_async=is_async)
        content = [piece async for piece in iterate(body)]
        assert b"".join(content) == bytes(3 << 20)
        assert max(map(len, content)) == 1 << 20
        assert await body.read_async(None) is None

    async def iterate(body: Body) -> AsyncIterator[bytes]:
        while (piece := await body.read_async(None)) is not None:
            yield piece

    data = gzip.compress(bytes(3 << 20))
    received = [data[:5], data[5:], None]
    asyncio.run(read())


@both
def test_truncated_compressed_body_is_interrupted(*, is_async: bool) -> None:
    async def read() -> None:
        body, source = open_body(partial(received.pop, 0), "gzip", is_async=is_async)
        assert await body.read_async(None) == b"content"
        with pytest.raises(ConnectionInterrupted, match="before the end of its compressed data"):
            await body.read_async(None)
        assert "finish" not in source.calls

    received = [gzip.compress(b"content")[:-1], None]
    asyncio.run(read())


@both
def test_second_reader_gets_an_error_and_the_first_continues(*, is_async: bool) -> None:
    body: Body

    def receive() -> bytes:
        with pytest.raises(Flux0Error, match="another thread or task is reading this body"):
            body.read_async(None).send(None)
        return b"piece"

    async def read() -> None:
        nonlocal body
        body, source = open_body(receive, is_async=is_async)
        for _ in range(2):
            assert await body.read_async(None) == b"piece"
        assert source.calls == []

    asyncio.run(read())


def close_in_thread(body: SyncBody | SyncBodyState) -> Thread:
    closing = Thread(target=body.close)
    closing.start()
    return closing


def test_body_closed_when_a_piece_arrives_releases_its_connection() -> None:
    def receive() -> bytes:
        close_in_thread(body).join()
        return b"piece"

    source = Source(receive)
    body = SyncBody(source)
    assert body.read(None) == b"piece"
    assert source.released.wait(10)
    with pytest.raises(ConnectionInterrupted, match="closed before its end"):
        body.read(None)


def test_body_closed_when_its_end_arrives_keeps_its_connection() -> None:
    """The connection may serve the next request immediately."""
    threads: list[Thread] = []

    class Ending(SyncBodyState):
        def __setattr__(self, name: str, value: object) -> None:
            if (name, value) == ("state", State.FINISHED):
                threads.append(close_in_thread(self))
                threads[0].join(0.05)  # The thread must wait until the body is finished.
            super().__setattr__(name, value)

    source = Source(lambda: None)
    assert Ending(source).read(None) is None
    threads[0].join()
    assert source.calls == ["finish"]


def test_body_that_is_closed_after_its_end_was_received_is_interrupted() -> None:
    class Closed(SyncBodyState):
        def _decode(self, data: bytes | None) -> bytes | None:
            self.close()
            return data

    source = Source(lambda: None)
    with pytest.raises(ConnectionInterrupted, match="closed while it was read"):
        Closed(source).read(None)
    assert "finish" not in source.calls


def test_end_of_a_body_does_not_wait_for_a_thread_that_closes_it() -> None:
    source = Source(lambda: None)
    state = SyncBodyState(source)
    with (
        vars(state)["_ending"],
        pytest.raises(ConnectionInterrupted, match="closed while it was read"),
    ):
        state.read(None)
    assert "finish" not in source.calls


@both
@pytest.mark.parametrize(
    ("end", "raised", "message"),
    [
        (None, ConnectionInterrupted, "closed while it was read"),
        (OSError("reset"), ConnectionInterrupted, "closed while it was read"),
        (ValueError("closed file"), ConnectionInterrupted, "closed while it was read"),
        (asyncio.CancelledError("stop"), asyncio.CancelledError, "stop"),
    ],
    ids=["end", "reset", "unknown error", "cancelled"],
)
def test_end_of_a_body_that_was_closed_meanwhile_is_an_interruption(
    end: BaseException | None, raised: type[BaseException], message: str, *, is_async: bool
) -> None:
    """After the connection was shut down, the HTTP library may report an end or any error."""
    body: Body

    def receive() -> bytes | None:
        finished(body.close_async())
        return None if end is None else fail(end)

    async def read() -> None:
        nonlocal body
        body, _ = open_body(receive, is_async=is_async)
        with pytest.raises(raised, match=message):
            await body.read_async(None)

    asyncio.run(read())


@both
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError("reset"), ConnectionInterrupted),
        (asyncio.CancelledError("stop"), asyncio.CancelledError),
    ],
)
def test_failed_body_releases_its_connection_once(
    error: BaseException, raised: type[BaseException], *, is_async: bool
) -> None:
    async def read() -> None:
        body, source = open_body(partial(fail, error), is_async=is_async)
        with pytest.raises(raised, match=str(error)):
            await body.read_async(None)
        released = ["close"] if is_async else ["shut_down", "release"]
        assert source.calls == released
        with pytest.raises(ConnectionInterrupted, match="closed before its end"):
            await body.read_async(None)
        await body.close_async()
        assert is_async or source.calls == released

    asyncio.run(read())


@both
def test_failed_body_is_freed_without_the_garbage_collector(*, is_async: bool) -> None:
    """The traceback of the error refers to the frame of the read, which must not refer to it."""

    async def read() -> ref[BaseException]:
        body, _ = open_body(lambda: fail(OSError("reset")), is_async=is_async)
        try:
            await body.read_async(None)
        except ConnectionInterrupted as error:
            return ref(error)
        pytest.fail("no error")

    with no_garbage_collection():
        assert asyncio.run(read())() is None


def test_close_that_interrupts_another_close_returns() -> None:
    """A signal handler or the garbage collector may close a body in a thread that closes it."""

    class Interrupted(Source):
        def shut_down(self) -> None:
            super().shut_down()
            body.close()

    source = Interrupted(lambda: None)
    body = SyncBody(source)
    body.close()
    assert source.released.wait(10)
    assert source.calls == ["shut_down", "release"]


def test_connection_is_not_released_while_another_thread_reads() -> None:
    """Closing shuts the connection down, which ends the read. Then the reader releases it."""

    def receive() -> bytes:
        close_in_thread(body).join()
        assert not source.released.wait(0.02)
        assert source.calls == ["shut_down"]
        raise OSError("shut down")

    source = Source(receive)
    body = SyncBody(source)
    with pytest.raises(ConnectionInterrupted):
        body.read(None)
    assert source.calls == ["shut_down", "shut_down", "release"]


def refuse(*_: object) -> None:
    raise RuntimeError("can't start new thread at interpreter shutdown")


@pytest.mark.parametrize(
    ("name", "stub"), [("start_new_thread", refuse), ("sys.is_finalizing", lambda: True)]
)
def test_unreferenced_body_is_kept_while_the_interpreter_exits(
    monkeypatch: pytest.MonkeyPatch, name: str, stub: Callable[..., Any]
) -> None:
    """While the interpreter exits, no thread can be started to release the connection."""
    source = Source(lambda: None)
    body, calls, is_kept = SyncBody(source), source.calls, ref(source)
    with monkeypatch.context() as patched:
        patched.setattr(f"flux0.runtime.processes.{name}", stub)
        del body, source
    gc.collect()
    assert calls == ["shut_down"]
    assert is_kept()


def test_bodies_may_be_freed_while_all_bodies_are_closed() -> None:
    """Another thread or the garbage collector may free a body at each step of `close`.

    All others are closed; the first body is not freed.
    """
    open_bodies, sources = OpenBodies(), [Source(lambda: None) for _ in range(100)]
    first, *kept = [SyncBody(source) for source in sources]
    open_bodies.add(first)
    for number in range(len(kept)):
        open_bodies.add(kept[number])

    def free_one(frame: FrameType, _: str, __: object) -> Any:
        if frame.f_code.co_filename != bodies.__file__:
            return None
        frame.f_trace_opcodes = True
        del kept[-1:]
        return free_one

    before = sys.gettrace()
    sys.settrace(free_one)
    try:
        open_bodies.close()
    finally:
        sys.settrace(before)
    assert all("shut_down" in source.calls for source in sources)


@both
def test_error_of_flux0_that_user_code_raises_during_a_read_is_marked(*, is_async: bool) -> None:
    """Trace functions of the user are called during a read. The request was sent before."""
    error = ConnectError("the trace server is down")

    async def read() -> None:
        body, _ = open_body(partial(fail, error), is_async=is_async)
        await body.read_async(None)

    with pytest.raises(ConnectError) as caught:
        asyncio.run(read())
    assert caught.value is error
    assert (error.from_user_code, error.sent) == (True, "maybe")


def test_body_of_the_parent_cannot_be_read_and_is_not_freed_in_a_forked_child() -> None:
    """The parent process uses the connection."""

    async def make() -> list[Any]:
        return [SyncBody(sources[0]), AsyncBody(sources[1])]

    sources: list[Any] = [Source(lambda: b"x"), AsyncSource(lambda: b"x")]
    kept = asyncio.run(make())

    def free() -> None:
        with pytest.raises(ConnectionInterrupted, match="a forked child cannot read a body"):
            kept[0].read(None)
        calls, is_kept = [source.calls for source in sources], ref(sources[0])
        kept.clear()
        sources.clear()
        gc.collect()
        assert calls == [[], []]
        assert is_kept()

    in_child(free)


@pytest.mark.parametrize("release", ["finish", "close", "close elsewhere", "finalizer"])
def test_async_body_releases_its_connection_once(release: str) -> None:
    """After the release, another request may use the connection."""
    source = AsyncSource(lambda: None)

    async def read() -> None:
        body = AsyncBody(source)
        if release == "finish":
            assert await body.read_async(None) is None
        elif release == "close":
            await body.close_async()
            with pytest.raises(ConnectionInterrupted, match="closed before its end"):
                await body.read_async(None)
        elif release == "close elsewhere":
            closing = Thread(target=lambda: asyncio.run(body.close_async()))
            closing.start()
            closing.join()
            assert source.calls == ["finalizer"]

    asyncio.run(read())
    gc.collect()
    assert source.calls == ["finalizer" if release == "close elsewhere" else release]


def test_garbage_collected_bodies_are_not_kept() -> None:
    open_bodies = OpenBodies()
    body = SyncBody(Source(lambda: None))
    open_bodies.add(body)
    assert len(vars(open_bodies)["_references"]) == 1
    del body
    assert vars(open_bodies) == {"_references": set()}


def interrupt_in(name: str, event: str, number: int = 1) -> None:
    """Raise a KeyboardInterrupt at an event of a function, as a signal handler does."""
    seen = 0

    def handle(frame: FrameType, kind: str, _: object) -> None:
        nonlocal seen
        if frame.f_code.co_name == name and kind == event:
            seen += 1
            if seen == number:
                sys.setprofile(None)
                raise KeyboardInterrupt

    sys.setprofile(handle)


def test_connection_is_closed_although_the_handling_of_a_failure_was_interrupted() -> None:
    def fail() -> bytes | None:
        raise OSError("reset")

    source = Source(fail)
    body = SyncBody(source)
    interrupt_in("_translate", "call")
    with pytest.raises(KeyboardInterrupt):
        body.read(1)
    body.close()
    assert source.released.wait(10)
    assert source.calls == ["shut_down", "release"]


def test_body_whose_creation_is_interrupted_prints_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", errors.append)
    number = 0
    is_interrupted = True
    while is_interrupted:
        number += 1
        is_interrupted = interrupt_at(number)
        gc.collect()
    assert number > 10
    assert errors == []


def interrupt_at(number: int) -> bool:
    """Create a body, and raise a KeyboardInterrupt before this instruction of its `__init__`."""
    left = number

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code is not SyncBody.__init__.__code__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        SyncBody(Source(lambda: None))
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False
