"""Functions that work under asyncio and trio, and resources that belong to an event loop.

A connection can only be used in the event loop that opened it. Therefore `PerLoop` keeps one
resource for each event loop, and closes the resource before the loop ends.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import suppress
from functools import cache, partial
from itertools import count
from types import coroutine
from typing import Any, Generic, TypeAlias, TypeVar

from flux0.domain.errors import ConnectError
from flux0.runtime.processes import fork_lock

T = TypeVar("T")
# A `PerLoop` holds one resource for each event loop. The resources are closed this number of
# seconds after the garbage collector has freed the `PerLoop`.
_CLOSE_DELAY = 0.1
# At most this number of API calls start in one iteration of an event loop. Each start takes about a
# millisecond, in which the loop runs no other task.
_STARTED_PER_ITERATION = 50
# When an async generator is closed, it is resumed at most this number of times. The bytes that
# httpcore receives at once contain fewer chunks.
_MAX_RESUMED = 16 * 1024

# A `Loop` is an event loop: an asyncio.AbstractEventLoop, or the TrioToken of a trio run.
Loop: TypeAlias = Any


async def sleep(seconds: float) -> None:
    await load_anyio().sleep(seconds)


class StartLimit:
    """Limits how many calls start in one iteration of an event loop.

    If thousands of tasks make calls at once, the loop runs its other tasks between two groups of
    `_STARTED_PER_ITERATION` calls. The calls start in the order in which they called `wait`. If
    several loops share a limit, a call may wait for more iterations than necessary.
    """

    def __init__(self) -> None:
        # Event loops in several threads can count calls at the same time: `next` of a `count` is
        # atomic, but an addition is not.
        self._numbers = count()
        self._started_group = 0

    async def wait(self) -> None:
        group = next(self._numbers) // _STARTED_PER_ITERATION
        try:
            for _ in range(group - self._started_group):
                await sleep(0)
        finally:
            self._started_group = max(self._started_group, group)


def load_anyio() -> Any:
    """Return the module anyio. Its part for asyncio or trio, whichever runs, is imported, too.

    Raises:
        ConnectError: The import failed, because the process cannot open more files.
    """
    return _load_anyio(trio=_running_trio() is not None)


@cache
def _load_anyio(*, trio: bool) -> Any:  # noqa: ARG001 - the key of the cache
    try:
        # While this thread imports anyio, no other thread can fork: the child would wait forever
        # for the import locks that it inherits.
        with fork_lock:
            import anyio  # noqa: PLC0415 - slow to import; httpx imports it

            anyio.current_time()  # The first call of `current_time` imports a part of anyio.
    except OSError as error:
        raise ConnectError(os.strerror(error.errno or 0).lower()) from error
    return anyio


def running_loop() -> Loop:
    trio = _running_trio()
    if trio is not None:
        return trio.lowlevel.current_trio_token()
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        raise RuntimeError("no event loop is running")
    return asyncio.get_running_loop()


def running_task() -> object:
    trio = _running_trio()
    if trio is not None:
        return trio.lowlevel.current_task()
    # `asyncio.current_task` raises RuntimeError if no event loop is running.
    with suppress(RuntimeError):
        import asyncio  # noqa: PLC0415 - slow to import, and already imported under asyncio

        return asyncio.current_task()
    return None


def start_task(run: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], object]:
    """Start a background task that runs `run()`; return a function that cancels it."""
    trio = _running_trio()
    if trio is None:
        import asyncio  # noqa: PLC0415 - slow to import, and already imported under asyncio

        return asyncio.get_running_loop().create_task(run()).cancel
    scope = trio.CancelScope()

    async def in_scope() -> None:
        with scope:
            await run()

    trio.lowlevel.spawn_system_task(in_scope)
    cancel: Callable[[], object] = scope.cancel
    return cancel


def call_soon(loop: Loop, act: Callable[[], object]) -> bool:
    """Schedule `act` on `loop`; return False if the loop has ended.

    Safe in any thread and in finalizers, because no lock is acquired.
    """
    try:
        (loop.run_sync_soon if hasattr(loop, "run_sync_soon") else loop.call_soon_threadsafe)(act)
    # After the loop's end, asyncio raises RuntimeError, and trio raises a subclass of this class.
    except RuntimeError:
        return False
    return True


def has_ended(loop: Loop) -> bool:
    # No callback is scheduled on an asyncio loop: a stopped loop keeps callbacks in memory.
    if hasattr(loop, "is_closed"):
        return bool(loop.is_closed())
    return not call_soon(loop, do_nothing)


def do_nothing(*_: object) -> None: ...


def is_stopped(loop: Loop) -> bool:
    """Return whether `loop` is an asyncio loop that is not running. It may run again later."""
    return hasattr(loop, "is_running") and not loop.is_running()


def is_blocked_by_caller(loop: Loop) -> bool:
    """Return whether `loop` cannot run callbacks before the caller returns."""
    return is_current(loop) or is_stopped(loop)


def schedule_close(
    loop: Loop, close: Callable[[], Awaitable[None]], *, at_end: Callable[[], object] = do_nothing
) -> bool:
    """Start a task on `loop` that awaits `close()` and ignores its errors.

    Safe in any thread and in finalizers, because no lock is acquired. Returns False if the loop has
    ended. If the loop is about to end, the task may never run: trio calls `at_end()` instead.
    """

    async def close_quietly() -> None:
        with suppress(Exception):  # No code awaits the task, so errors of `close` are ignored.
            await close()

    def spawn_in_trio() -> None:
        try:
            sys.modules["trio"].lowlevel.spawn_system_task(close_quietly)
        except RuntimeError:  # trio's run is ending.
            at_end()

    # No variable stores a task of asyncio: while the task waits for I/O, the loop refers to it.
    spawn = spawn_in_trio if hasattr(loop, "run_sync_soon") else partial(_gather, close)
    if is_current(loop):
        # `spawn` creates the task now and not in a callback: a loop that is about to end cancels
        # all existing tasks, but can drop callbacks.
        spawn()
        # The caller of `schedule_close` can be a signal handler that runs while the loop waits for
        # I/O. The callback `do_nothing` ends this wait, so that the new task starts at once.
        call_soon(loop, do_nothing)
        return True
    return call_soon(loop, spawn)


def run_without_loop(work: Awaitable[None]) -> None:
    """Run `work` up to its first wait, and ignore its errors, because its event loop cannot run."""
    steps = work.__await__()
    with suppress(Exception):
        next(steps)
    steps.close()


@coroutine
def _suspend() -> Generator[None, None, None]:
    yield


def _gather(close: Callable[[], Awaitable[None]]) -> Awaitable[Sequence[BaseException | None]]:
    """Start an asyncio task that awaits `close()`, and return a future with the task's error.

    If the event loop ends before it runs the task, Python warns about the task and its coroutine.
    To avoid both warnings, `asyncio.gather` creates the task, from a coroutine that has started.
    """
    import asyncio  # noqa: PLC0415 - slow to import, and already imported under asyncio

    async def close_when_resumed() -> None:
        # A loop that is about to end cancels the task, perhaps before its first step.
        with suppress(asyncio.CancelledError):
            await _suspend()
        await close()

    started = close_when_resumed()
    started.send(None)
    return asyncio.gather(started, return_exceptions=True)


async def shielded(close: Callable[[], Awaitable[None]]) -> None:
    """Await `close()`. If the caller is cancelled, `close()` still runs to its end."""
    trio = _running_trio()
    if trio is not None:
        with trio.CancelScope(shield=True):
            await close()
        return
    import asyncio  # noqa: PLC0415 - slow to import, and already imported under asyncio

    (error,) = await asyncio.shield(_gather(close))
    if error is not None:
        raise error


async def close_nested_generators(generator: AsyncGenerator[Any, None]) -> None:
    """Close a suspended async generator, and the inner generators that it iterates.

    `generator.aclose()` leaves the inner generators to the garbage collector, and trio warns about
    them. Therefore, this function resumes `generator` in a cancelled scope: the innermost generator
    raises the cancellation, which ends all generators. A generator of the user that never waits
    does not raise the cancellation, and is closed by `aclose` after `_MAX_RESUMED` values.
    """
    from anyio import CancelScope  # noqa: PLC0415 - needed only for bodies that are closed early

    with CancelScope() as scope, suppress(StopAsyncIteration):
        scope.cancel()
        for _ in range(_MAX_RESUMED):
            await anext(generator)
    await generator.aclose()


class PerLoop(Generic[T]):
    """One resource for each event loop, created at the first use and closed when the loop ends.

    Args:
        make: a function that creates the resource.
        close: an async function that closes the resource, called in the resource's loop.
    """

    def __init__(self, make: Callable[[], T], close: Callable[[T], Awaitable[None]]) -> None:
        self._make = make
        self._entries: _Entries[T] = _Entries(close)
        # A `PerLoop` has a finalizer and no `__del__`: the finalizer keeps the suspended generators
        # in memory until it runs. In a reference cycle, the garbage collector can close the
        # generators before it calls `__del__`, and the resources stay open.
        weakref.finalize(self, self._entries.schedule_close_all).atexit = False

    async def get(self) -> T:
        loop = running_loop()
        entry = self._entries.get(loop)
        if entry is not None:
            return entry[0]
        self._entries.close_ended_loops()
        resource = self._make()
        guard = self._entries.close_at_loop_end(loop)
        self._entries[loop] = (resource, guard)
        await guard.asend(None)
        return resource

    async def close_async(self) -> None:
        """Close the running event loop's resource. Resources of other loops stay open."""
        await self._entries.close(running_loop())


class _Entries(dict[Loop, tuple[T, AsyncGenerator[None, None]]]):
    """Maps each event loop to its resource and a guard.

    The guard is a suspended async generator that closes the resource when the loop ends.
    """

    def __init__(self, close_resource: Callable[[T], Awaitable[None]]) -> None:
        super().__init__()
        self._close_resource = close_resource

    async def close_at_loop_end(self, loop: Loop) -> AsyncGenerator[None, None]:
        # When an event loop ends, it closes its suspended async generators, such as this generator.
        # Therefore, the `finally` block closes the resource.
        try:
            yield
        finally:
            entry = self.pop(loop, None)
            if entry is not None:
                # trio closes this generator in a cancelled scope. `shielded` keeps the cancellation
                # away from `_close_resource`, which must run to its end.
                await shielded(partial(self._close_resource, entry[0]))

    async def close(self, loop: Loop) -> None:
        entry = self.pop(loop, None)
        if entry is not None:
            resource, guard = entry
            # `pop` has removed the entry, so `close_at_loop_end` ends without closing the resource.
            await guard.aclose()
            await shielded(partial(self._close_resource, resource))

    async def _close_later(self, loop: Loop) -> None:
        # If the event loop ends during `sleep`, the loop cancels the task that runs `_close_later`.
        # Then `close_at_loop_end` closes the loop's resource.
        await sleep(_CLOSE_DELAY)
        await self.close(loop)

    def schedule_close_all(self) -> None:
        self.close_ended_loops()
        for loop in self.copy():
            schedule_close(loop, partial(self._close_later, loop))

    def close_ended_loops(self) -> None:
        """Close the resources of event loops that ended without closing async generators."""
        for loop in self.copy():
            if has_ended(loop) and (entry := self.pop(loop, None)) is not None:
                # The garbage collector closes sockets that `_close_resource` leaves open.
                run_without_loop(self._close_resource(entry[0]))


def is_current(loop: Loop) -> bool:
    try:
        return running_loop() is loop
    except RuntimeError:
        return False


def _running_trio() -> Any:
    trio = sys.modules.get("trio")
    # While another thread imports trio, the module trio has no attribute `lowlevel` yet.
    if trio is not None and hasattr(trio, "lowlevel"):
        # `_running_trio` does not call trio's `in_trio_run`: old versions of trio lack this
        # function, and in guest mode it returns True in the host loop's asyncio tasks.
        with suppress(RuntimeError):
            trio.lowlevel.current_task()
            return trio
    return None
