"""Functions of event loops, and resources for each loop, under asyncio and trio."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import pairwise
from types import ModuleType
from typing import Any, TypeVar

import anyio
import pytest
import trio

from flux0 import AiohttpTransport, Flux0, HttpxTransport
from flux0.runtime.event_loop import (
    PerLoop,
    StartLimit,
    close_nested_generators,
    has_ended,
    is_blocked_by_caller,
    is_stopped,
    load_anyio,
    run_without_loop,
    running_loop,
    running_task,
    schedule_close,
    shielded,
    sleep,
    start_task,
)
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import WaitForRelease, http_response
from support.ending import ends_soon
from support.in_memory import SSE, chunk, in_both_loops, in_simulated_time
from support.modes import run as run_in_mode
from support.sending import AGENTS
from support.transports import Mode

pytestmark = pytest.mark.usefixtures("little_garbage")

T = TypeVar("T")
Run = Callable[[Callable[[], Awaitable[Any]]], Any]


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Return a function that runs a coroutine function in a new event loop."""
    return lambda main: anyio.run(main, backend=request.param)


class Resource:
    """A resource that records how often `aclose` was called. Each call sets `closing`."""

    def __init__(self) -> None:
        self.closed = 0
        self.closing = threading.Event()

    async def aclose(self) -> None:
        await sleep(0)
        self.closed += 1
        self.closing.set()

    async def wait_until_closed_once(self) -> None:
        await anyio.to_thread.run_sync(self.closing.wait, 10)
        assert self.closed == 1


def per_loop() -> PerLoop[Resource]:
    return PerLoop(Resource, Resource.aclose)


def test_thread_without_asyncio_has_no_running_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of a program that uses only trio may close a client; nothing is imported."""
    monkeypatch.delitem(sys.modules, "asyncio")
    with pytest.raises(RuntimeError):
        running_loop()
    assert "asyncio" not in sys.modules


def test_loop_has_ended_after_its_last_task(run: Run) -> None:
    loops: list[Any] = []

    async def main() -> None:
        loops.append(running_loop())
        assert not has_ended(loops[0])

    run(main)
    assert has_ended(loops[0])


def test_check_of_a_stopped_loop_adds_no_callback_to_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stopped loop would keep the callback."""
    loop, added = asyncio.new_event_loop(), list[object]()
    monkeypatch.setattr(loop, "call_soon_threadsafe", added.append)
    assert not has_ended(loop)
    assert added == []
    loop.close()
    assert has_ended(loop)


def test_asyncio_needs_no_trio(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        assert running_loop() is asyncio.get_running_loop()

    monkeypatch.delitem(sys.modules, "trio")
    asyncio.run(main())


def test_asyncio_runs_while_another_thread_imports_trio(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module is in `sys.modules` then, but it has no attributes yet."""

    async def main() -> None:
        assert running_loop() is asyncio.get_running_loop()

    monkeypatch.setitem(sys.modules, "trio", ModuleType("trio"))
    asyncio.run(main())


@in_simulated_time
async def test_sleep_waits(mode: Mode) -> None:
    start = anyio.current_time()
    await sleep(3600)
    assert (mode, anyio.current_time() - start) == (mode, 3600)


@in_both_loops
async def test_at_most_fifty_calls_start_in_one_iteration(mode: Mode) -> None:
    limit, started = StartLimit(), 0

    async def start() -> None:
        nonlocal started
        await limit.wait()
        started += 1

    counts: list[int] = []
    async with anyio.create_task_group() as tasks:
        for _ in range(400):
            tasks.start_soon(start)
        while started < 400:
            await sleep(0)
            counts.append(started)
    # trio runs the tasks of an iteration in any order, so two counts can differ by two groups.
    most = 50 if mode == "asyncio" else 100
    assert max(after - before for before, after in pairwise([0, *counts])) <= most
    # Later calls start at once, also in a program that has made many calls.
    await limit.wait()
    run_in_mode("sync", limit.wait)


@in_both_loops
async def test_each_task_is_a_running_task_of_its_own(mode: Mode) -> None:
    tasks = [running_task(), running_task()]

    async def add() -> None:
        tasks.append(running_task())

    async with anyio.create_task_group() as group:
        group.start_soon(add)
    assert tasks[0] is tasks[1] is not None
    assert tasks[2] not in (None, tasks[0])


def test_thread_without_an_event_loop_has_no_running_task() -> None:
    assert running_task() is None


@in_both_loops
async def test_load_anyio_returns_the_module(mode: Mode) -> None:
    assert (mode, load_anyio()) == (mode, anyio)


def test_loop_is_blocked_by_a_caller_in_it_and_while_it_is_stopped(run: Run) -> None:
    loops: list[Any] = []

    async def main() -> None:
        loops.append(running_loop())
        assert is_blocked_by_caller(loops[0])
        assert not is_stopped(loops[0])
        assert not await anyio.to_thread.run_sync(is_blocked_by_caller, loops[0])

    run(main)
    is_asyncio = isinstance(loops[0], asyncio.AbstractEventLoop)
    assert is_stopped(loops[0]) is is_blocked_by_caller(loops[0]) is is_asyncio


# --- one resource for each loop; test_every_transport.py has further tests of `PerLoop`


def test_resource_is_kept_until_it_is_closed(run: Run) -> None:
    resources = per_loop()

    async def main() -> None:
        await resources.close_async()
        resource = await resources.get()
        assert await resources.get() is resource
        await resources.close_async()
        assert resource.closed == 1
        assert await resources.get() is not resource

    run(main)


class ClosedAtOnce(Resource):
    """A resource whose `aclose` does not wait, so that it runs to its end in a closed loop."""

    async def aclose(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("freed", [True, False], ids=["is freed", "has another loop"])
def test_resource_of_a_closed_loop_is_closed_when_its_owner(freed: bool) -> None:
    resources = PerLoop(ClosedAtOnce, ClosedAtOnce.aclose)
    resource = run_carelessly(resources.get())
    assert resource.closed == 0
    if freed:
        del resources
    else:
        asyncio.run(resources.get())
    assert resource.closed == 1


def test_work_without_a_loop_runs_to_its_first_wait_and_its_errors_are_ignored() -> None:
    steps: list[str] = []

    async def work() -> None:
        steps.append("work")
        if len(steps) > 1:
            raise OSError
        await sleep(0)
        steps.append("after the wait")

    for _ in range(2):
        run_without_loop(work())
    assert steps == ["work", "work"]


@pytest.mark.parametrize("how", ["in another thread", "in a cycle"])
def test_garbage_collected_resource_is_closed_in_its_loop(run: Run, how: str) -> None:
    async def main() -> None:
        held: list[Any] = [per_loop()]
        resource = await held[0].get()
        if how == "in a cycle":
            held.append(held)
            del held
            gc.collect()
        else:
            await anyio.to_thread.run_sync(held.clear)
        await resource.wait_until_closed_once()

    run(main)


def test_resource_collected_as_its_loop_ends_is_closed(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> Resource:
        return await per_loop().get()

    assert run(main).closed == 1
    assert caplog.messages == []


def test_two_threads_find_an_ended_loop_at_the_same_time() -> None:
    class Loop(asyncio.SelectorEventLoop):
        waits: Iterator[threading.Barrier] = iter(())

        def is_closed(self) -> bool:
            for both in self.waits:
                both.wait(10)
                break
            return super().is_closed()

    resources, ended = per_loop(), Loop()
    ended.run_until_complete(resources.get())
    ended.close()  # The loop does not close its async generators.
    ended.waits = iter([threading.Barrier(2)] * 2)

    def get() -> Resource:
        return asyncio.run(resources.get())

    with ThreadPoolExecutor(2) as threads:
        getting = [threads.submit(get) for _ in range(2)]
        first, second = (each.result() for each in getting)

    assert first is not second
    assert (first.closed, second.closed) == (1, 1)


# --- closing


def test_errors_of_a_scheduled_close_are_ignored(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    started, calls = threading.Event(), list[str]()

    async def fail() -> None:
        calls.append("close")
        started.set()
        raise OSError

    async def main() -> None:
        assert schedule_close(running_loop(), fail)
        await anyio.to_thread.run_sync(started.wait, 10)
        await sleep(0)

    run(main)
    gc.collect()
    assert (caplog.messages, calls) == ([], ["close"])


def test_close_scheduled_in_a_signal_handler_starts_although_the_loop_waits_for_io(
    run: Run,
) -> None:
    async def main() -> None:
        loop, closed = running_loop(), anyio.Event()

        async def close() -> None:
            closed.set()

        def on_signal(_number: int, _frame: object) -> None:
            schedule_close(loop, close)

        before = signal.signal(signal.SIGUSR1, on_signal)
        main_thread = threading.main_thread().ident or 0
        sending = threading.Timer(0.02, signal.pthread_kill, (main_thread, signal.SIGUSR1))
        sending.start()
        try:
            with anyio.fail_after(20):
                await closed.wait()
        finally:
            sending.join()
            signal.signal(signal.SIGUSR1, before)

    with ends_soon():
        run(main)


@pytest.mark.parametrize("rounds", range(12))
def test_close_scheduled_while_trio_is_ending_is_dropped(rounds: int) -> None:
    """`schedule_close` is called `rounds` scheduler rounds after the main task's end."""

    async def main() -> None:
        token = trio.lowlevel.current_trio_token()

        def later(left: int) -> None:
            if left:
                with suppress(trio.RunFinishedError):
                    token.run_sync_soon(later, left - 1)
            else:
                schedule_close(token, Resource().aclose)

        later(rounds)

    trio.run(main)


@pytest.mark.parametrize("shield", [False, True], ids=["", "shielded"])
@pytest.mark.parametrize("rounds", range(12))
def test_close_scheduled_while_asyncio_is_ending_causes_no_warning(
    rounds: int, caplog: pytest.LogCaptureFixture, *, shield: bool
) -> None:
    """`schedule_close` is called `rounds` iterations after the main task's end.

    The task that closes the resource then runs completely, or in part, or not at all.
    """
    close = Resource().aclose

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def later(left: int) -> None:
            if left:
                loop.call_soon(later, left - 1)
            else:
                schedule_close(loop, partial(shielded, close) if shield else close)

        later(rounds)

    asyncio.run(main())
    gc.collect()
    assert caplog.messages == []


def test_shielded_close_finishes_when_its_task_is_cancelled(run: Run) -> None:
    async def main() -> None:
        resource = Resource()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await shielded(resource.aclose)
        await resource.wait_until_closed_once()

    run(main)


def test_shielded_close_raises_its_error(run: Run) -> None:
    async def fail() -> None:
        raise OSError

    async def main() -> None:
        with pytest.raises(OSError, match=r"^$"):
            await shielded(fail)

    run(main)


def test_shielded_close_finishes_when_asyncio_cancels_the_task() -> None:
    async def main() -> None:
        resource = Resource()
        task = asyncio.ensure_future(shielded(resource.aclose))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await resource.wait_until_closed_once()

    asyncio.run(main())


# --- event loops that are closed without closing their async generators


def run_carelessly(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a new loop, then close the loop without `loop.shutdown_asyncgens()`."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


both = pytest.mark.parametrize("transport", [AiohttpTransport, HttpxTransport])
# Python warns about asyncio transports that are still open when their loop is closed.
unclosed = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
TURN = http_response(chunk("a"), WaitForRelease(), headers=SSE.items(), framing="chunked")


@both
@unclosed
def test_closed_loops_leave_no_connections_open(transport: type[Any]) -> None:
    with ByteServer(AGENTS) as server:
        flux0 = Flux0(server.url, transport=transport())
        for _ in range(5):
            run_carelessly(flux0.agents.list_async())
        gc.collect()
        server.wait_until_closed(max_open=1)
        del flux0
        gc.collect()
        server.wait_until_closed()
        assert server.connections == 5


@both
@unclosed
@pytest.mark.parametrize("kept", [True, False], ids=["after its loop", "as its loop ends"])
def test_stream_of_a_closed_loop_releases_its_connection(
    transport: type[Any], *, kept: bool
) -> None:
    """A closed loop cannot run a task to close the stream."""

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
        server.wait_until_closed()
        del flux0
        gc.collect()
        assert response() is None


@in_both_loops
async def test_background_task_can_be_cancelled(mode: Mode) -> None:
    ends = list[str]()
    started = anyio.Event()

    async def run_task() -> None:
        try:
            started.set()
            await anyio.sleep_forever()
        finally:
            ends.append("cancelled")

    cancel = start_task(run_task)
    await started.wait()
    cancel()
    await anyio.wait_all_tasks_blocked()
    assert ends == ["cancelled"]


@in_both_loops
async def test_nested_generators_are_closed_and_not_read_on(mode: Mode) -> None:
    steps: list[str] = []

    async def inner() -> AsyncGenerator[str, None]:
        try:
            yield "first"
            await anyio.lowlevel.checkpoint()
            yield "second"
        finally:
            steps.append("inner")

    async def outer() -> AsyncGenerator[str, None]:
        try:
            async for each in inner():
                steps.append(each)
                yield each
        finally:
            steps.append("outer")

    generator = outer()
    await anext(generator)
    await close_nested_generators(generator)
    assert (mode, steps) == (mode, ["first", "inner", "outer"])


@in_both_loops
async def test_generator_that_never_waits_is_closed(mode: Mode) -> None:
    steps: list[str] = []

    async def pieces() -> AsyncGenerator[bytes, None]:
        try:
            for _ in range(1_000_000):
                yield b"piece"
            steps.append("read to its end")
        finally:
            steps.append("closed")

    generator = pieces()
    await anext(generator)
    await close_nested_generators(generator)
    assert (mode, steps) == (mode, ["closed"])
