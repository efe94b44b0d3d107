"""Functions and resources for async code that works under asyncio and under trio.

A connection belongs to the event loop that opened it and fails in any other loop. `PerLoop`
therefore keeps one resource for each loop, and closes it while its loop is still running.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

T = TypeVar("T")
_CLOSE_DELAY = 0.1  # seconds

Loop: TypeAlias = Any  # asyncio.AbstractEventLoop, or the TrioToken of a trio run


async def sleep(seconds: float) -> None:
    """Wait for `seconds` in the running event loop."""
    trio = _running_trio()
    if trio is None:
        import asyncio  # noqa: PLC0415 - slow to import, and already imported under asyncio

        await asyncio.sleep(seconds)
    else:
        await trio.sleep(seconds)


def running_loop() -> Loop:
    """Return the running asyncio loop or the token of the running trio run.

    Raises:
        RuntimeError: no event loop is running in this thread.
    """
    trio = _running_trio()
    if trio is not None:
        return trio.lowlevel.current_trio_token()
    import asyncio  # noqa: PLC0415 - slow to import, and already imported under asyncio

    return asyncio.get_running_loop()


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

    Safe in any thread and in finalizers, because it takes no lock.
    """
    try:
        (loop.run_sync_soon if hasattr(loop, "run_sync_soon") else loop.call_soon_threadsafe)(act)
    except RuntimeError:  # asyncio and trio raise it if the loop has ended.
        return False
    return True


def has_ended(loop: Loop) -> bool:
    """Return whether `loop` has ended, so that it runs nothing any more."""
    return not call_soon(loop, _do_nothing)


def _do_nothing() -> None:
    """Show that a loop accepts callbacks."""


def schedule_close(loop: Loop, close: Callable[[], Awaitable[None]]) -> bool:
    """Start a task on `loop` that awaits `close()` and ignores its errors.

    For sync code such as finalizers. Safe in any thread, because it takes no lock. Returns False if
    the loop has ended.
    """

    async def close_quietly() -> None:
        with suppress(Exception):  # No caller waits for the task, so it could not report an error.
            await close()

    def spawn_in_trio() -> None:
        with suppress(RuntimeError):  # An ending run starts no more tasks; it closes its resources.
            sys.modules["trio"].lowlevel.spawn_system_task(close_quietly)

    def spawn_in_asyncio() -> None:
        # No reference to the task is needed: the loop references the I/O that the task waits for.
        loop.create_task(close_quietly())

    spawn = spawn_in_trio if hasattr(loop, "run_sync_soon") else spawn_in_asyncio
    if _is_running(loop):
        spawn()  # Start it now, so that a loop that is about to end still cancels the task.
        return True
    return call_soon(loop, spawn)


async def shielded(close: Callable[[], Awaitable[None]]) -> None:
    """Await `close()`, which runs to its end even if the caller is cancelled."""
    trio = _running_trio()
    if trio is not None:
        with trio.CancelScope(shield=True):
            await close()
        return
    import asyncio  # noqa: PLC0415 - slow to import, and already imported under asyncio

    await asyncio.shield(close())


async def close_nested_generators(generator: AsyncGenerator[Any, None]) -> None:
    """Close a suspended async generator and the generators that it iterates.

    `generator.aclose()` would leave the inner generators to the garbage collector, and trio warns
    about these. Resuming the generator in a cancelled scope ends the innermost generator first.
    """
    from anyio import CancelScope  # noqa: PLC0415 - needed only for bodies that are closed early

    with CancelScope() as scope:
        scope.cancel()
        async for _ in generator:
            pass


class PerLoop(Generic[T]):
    """One resource for each event loop, created at the first use and closed when the loop ends.

    Args:
        make: creates the resource.
        close: closes the resource; it is awaited in the loop that created the resource.
    """

    def __init__(self, make: Callable[[], T], close: Callable[[T], Awaitable[None]]) -> None:
        self._make = make
        self._close = close
        self._entries: _Entries[T] = {}
        # Not __del__, which runs too late if this object and the guards are collected together.
        weakref.finalize(self, _schedule_close_all, self._entries, close).atexit = False

    async def get(self) -> T:
        """Return the resource of the running loop."""
        loop = running_loop()
        entry = self._entries.get(loop)
        if entry is not None:
            return entry[0]
        _close_dead_loops(self._entries, self._close)
        resource = self._make()
        guard = _close_at_loop_end(self._entries, loop, self._close)
        self._entries[loop] = (resource, guard)
        await guard.asend(None)
        return resource

    async def close_async(self) -> None:
        """Close the resource of the running loop; other loops close theirs when they end."""
        await _close_entry(self._entries, running_loop(), self._close)


# For each loop: the resource, and the suspended generator that closes it when the loop ends.
_Entries: TypeAlias = dict[Loop, tuple[T, AsyncGenerator[None, None]]]


async def _close_at_loop_end(
    entries: _Entries[T], loop: Loop, close: Callable[[T], Awaitable[None]]
) -> AsyncGenerator[None, None]:
    # An ending loop closes its suspended async generators, under asyncio and under trio.
    try:
        yield
    finally:
        entry = entries.pop(loop, None)
        if entry is not None:
            await shielded(partial(close, entry[0]))  # trio closes generators in a cancelled scope.


async def _close_entry(
    entries: _Entries[T], loop: Loop, close: Callable[[T], Awaitable[None]]
) -> None:
    entry = entries.pop(loop, None)
    if entry is not None:
        resource, guard = entry
        await guard.aclose()  # The entry is removed already, so the guard closes nothing.
        await close(resource)


async def _close_entry_later(
    entries: _Entries[T], loop: Loop, close: Callable[[T], Awaitable[None]]
) -> None:
    # If the loop ends during the delay, asyncio cancels this task and the guard closes the
    # resource.
    await sleep(_CLOSE_DELAY)
    await _close_entry(entries, loop, close)


def _schedule_close_all(entries: _Entries[T], close: Callable[[T], Awaitable[None]]) -> None:
    _close_dead_loops(entries, close)
    for loop in tuple(entries):
        schedule_close(loop, partial(_close_entry_later, entries, loop, close))


def _close_dead_loops(entries: _Entries[T], close: Callable[[T], Awaitable[None]]) -> None:
    """Close the resources of asyncio loops that were closed without closing their generators."""
    for loop in tuple(entries):
        if hasattr(loop, "is_closed") and loop.is_closed():
            resource, _ = entries.pop(loop)
            # Run `close` to its first wait. The garbage collector closes the remaining sockets.
            closing = close(resource).__await__()
            with suppress(Exception):
                next(closing)
            closing.close()


def _is_running(loop: Loop) -> bool:
    try:
        return running_loop() is loop
    except RuntimeError:
        return False


def _running_trio() -> Any:
    """Return the trio module if the caller runs under trio, else None; never import trio."""
    trio = sys.modules.get("trio")
    if trio is not None:
        # Not in_trio_run: older trio lacks it, and in guest mode it is also true for the tasks of
        # the asyncio host.
        with suppress(RuntimeError):
            trio.lowlevel.current_task()
            return trio
    return None
