"""What adapters need of asyncio and trio."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import anyio
import pytest
import trio

from flux0 import AiohttpTransport, Flux0, HttpxTransport
from flux0.runtime.event_loop import PerLoop, close_soon, running_loop, shielded, sleep
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import Hold, answer
from support.in_memory import SSE, chunk
from support.sending import AGENTS

pytestmark = pytest.mark.usefixtures("little_garbage")

T = TypeVar("T")
Run = Callable[[Callable[[], Awaitable[Any]]], Any]


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine in a new event loop."""
    return lambda main: anyio.run(main, backend=request.param)


class Resource:
    """Knows how often it was closed, and says when."""

    def __init__(self) -> None:
        self.begun = False
        self.closed = 0
        self.closing = threading.Event()

    async def aclose(self) -> None:
        self.begun = True
        await sleep(0)
        self.closed += 1
        self.closing.set()

    async def is_closed_once(self) -> None:
        await anyio.to_thread.run_sync(self.closing.wait, 10)
        assert self.closed == 1


def per_loop() -> PerLoop[Resource]:
    return PerLoop(Resource, Resource.aclose)


def test_asyncio_does_without_trio(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        assert running_loop() is asyncio.get_running_loop()

    monkeypatch.delitem(sys.modules, "trio")
    asyncio.run(main())


# --- a resource for each loop: see also test_every_transport.py


@pytest.mark.parametrize("how", ["in another thread", "in a cycle"])
def test_what_is_forgotten_is_closed_in_its_loop(run: Run, how: str) -> None:
    async def main() -> None:
        held: list[Any] = [per_loop()]
        resource = await held[0].get()
        if how == "in a cycle":
            held.append(held)
            del held
            gc.collect()
        else:
            await anyio.to_thread.run_sync(held.clear)
        await resource.is_closed_once()

    run(main)


def test_what_is_forgotten_at_the_very_end_is_closed(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> Resource:
        return await per_loop().get()

    assert run(main).closed == 1
    assert caplog.messages == []


# --- closing


def test_closing_may_fail_without_anybody_to_tell(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    begun = threading.Event()

    async def fail() -> None:
        begun.set()
        raise OSError

    async def main() -> None:
        close_soon(running_loop(), fail)
        await anyio.to_thread.run_sync(begun.wait, 10)
        await sleep(0)

    run(main)
    gc.collect()
    assert caplog.messages == []


@pytest.mark.parametrize("pauses", range(12))
def test_a_run_of_trio_that_is_just_ending_takes_no_more_tasks(pauses: int) -> None:
    """Something is closed so many rounds after the main task has ended."""

    async def main() -> None:
        token = trio.lowlevel.current_trio_token()

        def later(left: int) -> None:
            if left:
                with suppress(trio.RunFinishedError):
                    token.run_sync_soon(later, left - 1)
            else:
                close_soon(token, Resource().aclose)

        later(pauses)

    trio.run(main)


def test_what_is_shielded_goes_on_when_its_task_is_cancelled(run: Run) -> None:
    async def main() -> None:
        resource = Resource()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await shielded(resource.aclose)
        await resource.is_closed_once()

    run(main)


def test_what_is_shielded_goes_on_when_asyncio_cancels() -> None:
    async def main() -> None:
        resource = Resource()
        task = asyncio.ensure_future(shielded(resource.aclose))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await resource.is_closed_once()

    asyncio.run(main())


# --- event loops that end without closing their asynchronous generators


def run_carelessly(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a new loop, and close that as little as one can."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


both = pytest.mark.parametrize("transport", [AiohttpTransport, HttpxTransport])
# Python says so of the transports of a loop that was closed under them.
unclosed = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
TURN = answer(chunk("a"), Hold(), headers=SSE.items(), framing="chunked")


@both
@unclosed
def test_loops_that_are_only_closed_leave_no_connections(transport: type[Any]) -> None:
    with ByteServer(AGENTS) as server:
        flux0 = Flux0(server.url, transport=transport())
        for _ in range(5):
            run_carelessly(flux0.agents.list_async())
        gc.collect()
        server.wait_until_gone(but=1)
        del flux0
        gc.collect()
        server.wait_until_gone()
        assert server.connections == 5


@both
@unclosed
@pytest.mark.parametrize("kept", [True, False], ids=["after its loop", "as its loop ends"])
def test_a_stream_that_is_forgotten_as_its_loop_ends_is_ended(
    transport: type[Any], *, kept: bool
) -> None:
    """A loop that is only closed has no time left to close it."""

    async def begin(flux0: Flux0) -> tuple[Any, weakref.ref[Any]]:
        stream = await flux0.sessions.create_event_async(session_id="s", content="Hi")
        await anext(stream)
        return stream if kept else None, weakref.ref(stream.raw_response)

    with ByteServer(TURN) as server:
        flux0 = Flux0(server.url, transport=transport())
        stream, response = run_carelessly(begin(flux0))
        assert server.open_connections == 1 or not kept
        del stream
        gc.collect()
        server.wait_until_gone()
        del flux0
        gc.collect()
        assert response() is None
