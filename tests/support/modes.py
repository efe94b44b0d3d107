"""Runs async tests under asyncio and trio, and also as sync tests without an event loop.

In the mode "sync", the `_async` methods of a client call the sync methods, and `async for` iterates
over the sync stream. So the test never waits for an event loop.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from selectors import SelectorKey, SelectSelector
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import anyio
import trio
from trio.testing import MockClock

from flux0 import AsyncEventStream, BackgroundTurn, BackgroundTurns, EventStream, Flux0
from flux0.client.conversation import AsyncConversation, Conversation
from flux0.client.resources import AgentsResource, SessionsResource
from support.transports import Mode

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
F = TypeVar("F", Flux0, BackgroundTurns, BackgroundTurn)

Test = Callable[[], Coroutine[Any, Any, None]]

# Tests take a second or two. In the mode "sync", only the client's timeouts end a hung test.
_TIMEOUT_SECONDS = 60
_WAKE_SECONDS = 0.002


class MakeClient(Protocol):
    """Creates a client with these options of `Flux0`, and with suitable defaults for tests."""

    def __call__(self, **options: Any) -> Flux0: ...


def run(mode: Mode, test: Test) -> None:
    """Run `test` to its end in this mode, and the tasks that it has started."""

    async def with_timeout() -> None:
        before = _tasks(mode)
        with anyio.fail_after(_TIMEOUT_SECONDS):
            await test()
        with anyio.move_on_after(_TIMEOUT_SECONDS):
            while _tasks(mode) - before:
                await anyio.sleep(0.001)
        assert _tasks(mode) - before == set(), "the test has left tasks"

    if mode == "asyncio":
        asyncio.run(with_timeout())
    elif mode == "trio":
        trio.run(with_timeout)
    else:
        try:
            test().send(None)
        except StopIteration:
            return
        raise AssertionError("a sync test must not wait for an event loop")


def _tasks(mode: Mode) -> set[Any]:
    if mode == "asyncio":
        return set(asyncio.all_tasks())
    root = trio.lowlevel.current_root_task()
    assert root is not None
    tasks, new = set[Any](), [root]
    while new:
        task = new.pop()
        tasks.add(task)
        new += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return tasks


class _JumpingSelector(SelectSelector):
    """Never waits for the next timer of an event loop: the loop's time jumps to it."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        self.now += timeout or 0
        return super().select(timeout and 0)


class _SimulatedLoop(asyncio.SelectorEventLoop):
    """Keeps all its tasks, so that tasks that wait forever are cancelled, and not freed before."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        self._tasks: list[asyncio.Task[Any]] = []

    def create_task(self, *args: Any, **options: Any) -> asyncio.Task[Any]:
        task = super().create_task(*args, **options)
        self._tasks.append(task)
        return task

    async def cancel_tasks(self) -> None:
        others = [task for task in self._tasks if task is not asyncio.current_task()]
        cancelled = [task for task in others if task.cancel()]
        await asyncio.gather(*cancelled, return_exceptions=True)

    def time(self) -> float:
        return self._jumping.now


def run_in_simulated_time(mode: Mode, test: Test) -> None:
    """Run `test` in an event loop whose time advances only while all tasks wait, and then at once.

    The test must not wait for threads or sockets.
    """
    if mode == "trio":
        trio.run(test, clock=MockClock(autojump_threshold=0))
    else:
        with closing(_SimulatedLoop()) as loop:
            try:
                loop.run_until_complete(test())
            finally:
                loop.run_until_complete(loop.cancel_tasks())


async def call_blocking(mode: Mode, function: Callable[..., T], *args: object) -> T:
    """Call a blocking function: in a worker thread, except in the mode "sync".

    Wake the thread of the event loop again and again: without the GIL, an object is freed by the
    thread that created it, and only while that thread runs Python code.
    """
    if mode == "sync":
        return function(*args)
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(function, *args)
        while not call.done():
            await anyio.sleep(_WAKE_SECONDS)
    return call.result()


async def pause(mode: Mode) -> None:
    """Wait shortly, so that other threads or tasks can run."""
    if mode == "sync":
        threading.Event().wait(0.001)
    else:
        await anyio.sleep(0.001)


async def at_once(mode: Mode, *tests: Test) -> None:
    """Run several tests concurrently: in threads, or in tasks of the running event loop."""
    if mode == "sync":
        with ThreadPoolExecutor(len(tests)) as threads:
            for running in [threads.submit(run, mode, test) for test in tests]:
                running.result()
    else:
        async with anyio.create_task_group() as tasks:
            for test in tests:
                tasks.start_soon(test)


async def result_of(value: Any) -> Any:
    """Return the result of a sync or an async method."""
    return await value if hasattr(value, "__await__") else value


def in_mode(mode: Mode, real: F) -> F:
    """Return `real`; in the mode "sync", a wrapper whose `_async` methods call sync methods."""
    return cast("F", _SyncWrapper(real)) if mode == "sync" else real


def unwrapped(value: Any) -> Any:
    """Return the object that `in_mode` has wrapped, or `value` itself."""
    return getattr(value, "_real", value)


async def close_iterator(iterator: Any) -> None:
    """Close a sync or an async iterator, as a web server does."""
    real = unwrapped(iterator)
    await real.aclose() if hasattr(real, "aclose") else real.close()


class _SyncWrapper:
    """Wraps a client or one of its objects: the async methods call the sync methods."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._real, name.removesuffix("_async"))
        if not callable(member):
            return _wrap(member)

        def call(*args: Any, **options: Any) -> Any:
            return _wrap(member(*map(unwrapped, args), **options))

        async def call_async(*args: Any, **options: Any) -> Any:
            return call(*args, **options)

        method = getattr(_ASYNC[type(self._real)], name)
        opens = inspect.signature(method).return_annotation == "UnawaitedTurn"
        awaited = opens or inspect.iscoroutinefunction(inspect.unwrap(method))
        return call_async if awaited else call

    async def __aenter__(self) -> Self:
        self._real.__enter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._real.__exit__(kind, error, traceback)

    def __aiter__(self) -> _SyncWrapper:
        return _SyncWrapper(iter(self._real))

    async def __anext__(self) -> Any:
        try:
            return next(self._real)
        except StopIteration:
            raise StopAsyncIteration from None


# Classes with sync methods, and the classes with the corresponding async methods.
_ASYNC: Mapping[type, type] = {
    Flux0: Flux0,
    BackgroundTurns: BackgroundTurns,
    BackgroundTurn: BackgroundTurn,
    AgentsResource: AgentsResource,
    SessionsResource: SessionsResource,
    EventStream: AsyncEventStream,
    Conversation: AsyncConversation,
}


def _wrap(value: Any) -> Any:
    return _SyncWrapper(value) if type(value) in _ASYNC or isinstance(value, Iterator) else value
