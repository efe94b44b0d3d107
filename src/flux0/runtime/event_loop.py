"""What asynchronous adapters need of the running event loop, be it asyncio's or trio's.

A connection belongs to the loop that opened it. So a resource is kept per loop, and closed while
its loop still runs: on use elsewhere it would fail, and left behind it would warn.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

T = TypeVar("T")
_GRACE = 0.1  # seconds

Loop: TypeAlias = Any  # asyncio.AbstractEventLoop, or trio's token of a run


async def sleep(seconds: float) -> None:
    """Wait for `seconds` in whichever loop is running."""
    trio = _running_trio()
    if trio is None:
        import asyncio  # noqa: PLC0415 - slow to import, and loaded already where it runs

        await asyncio.sleep(seconds)
    else:
        await trio.sleep(seconds)


def running_loop() -> Loop:
    """Return what stands for the running loop."""
    trio = _running_trio()
    if trio is not None:
        return trio.lowlevel.current_trio_token()
    import asyncio  # noqa: PLC0415 - as above

    return asyncio.get_running_loop()


def start(run: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], object]:
    """Have the running loop call `run` beside its caller; return a function that cancels it."""
    trio = _running_trio()
    if trio is None:
        import asyncio  # noqa: PLC0415 - as above

        return asyncio.get_running_loop().create_task(run()).cancel
    scope = trio.CancelScope()

    async def in_scope() -> None:
        with scope:
            await run()

    trio.lowlevel.spawn_system_task(in_scope)
    cancel: Callable[[], object] = scope.cancel
    return cancel


def call_soon(loop: Loop, act: Callable[[], object]) -> None:
    """Have `loop` call `act`, from any thread, and from a finalizer: no lock is taken.

    Nothing is done if the loop has ended.
    """
    with suppress(RuntimeError):  # What both libraries raise then.
        (loop.run_sync_soon if hasattr(loop, "run_sync_soon") else loop.call_soon_threadsafe)(act)


def close_soon(loop: Loop, close: Callable[[], Awaitable[None]]) -> None:
    """Have `loop` await what `close` returns, from where nothing can be awaited, as `call_soon`."""

    async def closing() -> None:
        with suppress(Exception):  # There is nobody left to tell.
            await close()

    def spawn_in_trio() -> None:
        with suppress(RuntimeError):  # The run takes no more tasks, and closes all it has.
            sys.modules["trio"].lowlevel.spawn_system_task(closing)

    def spawn_in_asyncio() -> None:
        # The loop holds what the task waits for, and that holds the task until it is done.
        loop.create_task(closing())

    spawn = spawn_in_trio if hasattr(loop, "run_sync_soon") else spawn_in_asyncio
    if _is_running(loop):
        spawn()  # At once, so that a loop that is about to end cancels the task.
    else:
        call_soon(loop, spawn)


async def shielded(close: Callable[[], Awaitable[None]]) -> None:
    """Await `close`, which goes on to its end even if the caller is cancelled."""
    trio = _running_trio()
    if trio is not None:
        with trio.CancelScope(shield=True):
            await close()
        return
    import asyncio  # noqa: PLC0415 - as above

    await asyncio.shield(close())


async def unwind(generator: AsyncGenerator[Any, None]) -> None:
    """End a generator that stands in the middle of others, those within it included.

    Closing the outermost would leave the inner ones to the garbage collector, of which trio
    warns. Cancelled where it waits, the innermost ends first.
    """
    from anyio import CancelScope  # noqa: PLC0415 - not needed where nothing is left early

    with CancelScope() as scope:
        scope.cancel()
        async for _ in generator:
            pass


class PerLoop(Generic[T]):
    """One resource for each event loop, made when first asked for and closed when its loop ends."""

    def __init__(self, make: Callable[[], T], close: Callable[[T], Awaitable[None]]) -> None:
        self._make = make
        self._close = close
        self._known: _Known[T] = {}
        # Not __del__, which comes too late for guards that are garbage together with this.
        weakref.finalize(self, _close_all_later, self._known, close).atexit = False

    async def get(self) -> T:
        """Return the resource of the running loop."""
        loop = running_loop()
        known = self._known.get(loop)
        if known is not None:
            return known[0]
        _let_go(self._known, self._close)
        resource = self._make()
        guard = _guard(self._known, loop, self._close)
        self._known[loop] = (resource, guard)
        await guard.asend(None)
        return resource

    async def close_async(self) -> None:
        """Close the running loop's resource; those of other loops are closed as those end."""
        await _close(self._known, running_loop(), self._close)


_Known: TypeAlias = dict[Loop, tuple[T, AsyncGenerator[None, None]]]


async def _guard(
    known: _Known[T], loop: Loop, close: Callable[[T], Awaitable[None]]
) -> AsyncGenerator[None, None]:
    # Both loops close the asynchronous generators that are left when they end.
    try:
        yield
    finally:
        left = known.pop(loop, None)
        if left is not None:
            await shielded(partial(close, left[0]))  # trio cancels what it closes.


async def _close(known: _Known[T], loop: Loop, close: Callable[[T], Awaitable[None]]) -> None:
    left = known.pop(loop, None)
    if left is not None:
        resource, guard = left
        await guard.aclose()  # At once, for it finds nothing left to close.
        await close(resource)


async def _close_later(known: _Known[T], loop: Loop, close: Callable[[T], Awaitable[None]]) -> None:
    # asyncio cancels this if it ends meanwhile. Then the guard closes the resource.
    await sleep(_GRACE)
    await _close(known, loop, close)


def _close_all_later(known: _Known[T], close: Callable[[T], Awaitable[None]]) -> None:
    _let_go(known, close)
    for loop in tuple(known):
        close_soon(loop, partial(_close_later, known, loop, close))


def _let_go(known: _Known[T], close: Callable[[T], Awaitable[None]]) -> None:
    """Close the resources of loops that were closed with their asynchronous generators open."""
    for loop in tuple(known):
        if hasattr(loop, "is_closed") and loop.is_closed():
            resource, _ = known.pop(loop)
            closing = close(resource).__await__()
            with suppress(Exception):  # What would wait for the loop; its sockets are garbage then.
                next(closing)
            closing.close()


def _is_running(loop: Loop) -> bool:
    try:
        return running_loop() is loop
    except RuntimeError:
        return False


def _running_trio() -> Any:
    """Return the trio module if the caller runs under it; never imports it."""
    trio = sys.modules.get("trio")
    if trio is not None:
        # Not in_trio_run, which is newer, and true for asyncio's tasks as well where trio is a
        # guest of asyncio.
        with suppress(RuntimeError):
            trio.lowlevel.current_task()
            return trio
    return None
