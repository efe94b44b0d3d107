"""A body that another thread closes at the moment when the reader receives something."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from threading import Event, Thread
from types import FrameType
from typing import Any, ClassVar

import pytest

from flux0.adapters.shared import bodies
from flux0.adapters.shared.bodies import AsyncBody, OpenBodies, SyncBody, SyncBodyState
from flux0.domain.errors import ConnectError, ConnectionInterrupted, TransportError
from support.forking import in_child


class Source:
    """A source that returns the result of `receive`, and counts the uses of its connection."""

    coding = "identity"

    def __init__(self, receive: Callable[[], bytes | None]) -> None:
        self.released = Event()
        self.releases = 0
        self.shutdowns = 0
        self._result = receive

    def receive(self, timeout: float | None) -> bytes | None:
        return self._result()

    def finish(self) -> None:
        self.released.set()

    def shut_down(self) -> None:
        self.shutdowns += 1

    def release(self) -> None:
        self.releases += 1
        self.released.set()

    def translate_error(self, error: BaseException, timeout: float | None) -> TransportError:
        return ConnectionInterrupted(str(error))


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
            if (name, value) == ("finished", True):
                threads.append(close_in_thread(self))
                threads[0].join(0.05)  # The thread must wait until the body is finished.
            super().__setattr__(name, value)

    source = Source(lambda: None)
    assert Ending(source).read(None) is None
    threads[0].join()
    assert (source.shutdowns, source.releases) == (0, 0)
    assert source.released.is_set()


def test_end_of_a_body_that_was_closed_meanwhile_is_an_interruption() -> None:
    """After the connection was shut down, the HTTP library may report an end."""

    def receive() -> None:
        body.close()

    body = SyncBody(Source(receive))
    with pytest.raises(ConnectionInterrupted, match="closed while it was read"):
        body.read(None)


def test_failed_body_releases_its_connection_once() -> None:
    def receive() -> bytes:
        raise OSError("reset")

    source = Source(receive)
    body = SyncBody(source)
    with pytest.raises(ConnectionInterrupted, match="reset"):
        body.read(None)
    body.close()
    assert (source.shutdowns, source.releases) == (1, 1)


def test_bodies_may_be_freed_while_all_bodies_are_closed() -> None:
    """Another thread or the garbage collector may free a body at each step of `close`."""
    open_bodies, sources = OpenBodies(), [Source(lambda: None) for _ in range(100)]
    kept = [SyncBody(source) for source in sources]
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
    assert all(source.shutdowns for source in sources)


class AsyncSource:
    """An ended body of a connection. Records the ways in which the connection is released."""

    coding = ""
    close_at_exit: ClassVar[bool] = False

    def __init__(self) -> None:
        self.releases: list[str] = []

    def translate_error(self, error: BaseException, timeout: float | None) -> None: ...

    async def receive(self, timeout: float | None) -> bytes | None: ...

    async def finish(self) -> None:
        self.releases.append("finish")

    async def close(self) -> None:
        self.releases.append("close")

    def close_from_finalizer(self, loop: object) -> None:
        self.releases.append("finalizer")


@pytest.mark.parametrize("is_async", [False, True])
def test_error_of_flux0_that_user_code_raises_during_a_read_is_marked(*, is_async: bool) -> None:
    """Trace functions of the user are called during a read. The request was sent before."""
    error = ConnectError("the trace server is down")

    def fail(*_: object) -> bytes:
        raise error

    async def fail_async(*_: object) -> bytes:
        raise error

    async def read_async() -> None:
        source: Any = AsyncSource()
        source.receive = fail_async
        await AsyncBody(source).read_async(None)

    source: Any = Source(fail)
    source.translate_error = AsyncSource().translate_error
    with pytest.raises(ConnectError) as caught:
        asyncio.run(read_async()) if is_async else SyncBody(source).read(None)
    assert caught.value is error
    assert (error.from_user_code, error.sent) == (True, "maybe")


def test_body_that_is_freed_in_a_forked_child_keeps_its_connection() -> None:
    """The parent process uses the connection."""
    source, async_source = Source(lambda: None), AsyncSource()

    async def make() -> list[object]:
        return [SyncBody(source), AsyncBody(async_source)]

    kept = asyncio.run(make())

    def free() -> None:
        kept.clear()
        gc.collect()
        assert (source.shutdowns, source.releases, async_source.releases) == (0, 0, [])

    in_child(free)


@pytest.mark.parametrize("release", ["finish", "close", "finalizer"])
def test_async_body_releases_its_connection_once(release: str) -> None:
    """After the release, another request may use the connection."""
    source = AsyncSource()

    async def read() -> None:
        body = AsyncBody(source)
        if release == "finish":
            assert await body.read_async(None) is None
        elif release == "close":
            await body.close_async()

    asyncio.run(read())
    gc.collect()
    assert source.releases == [release]
