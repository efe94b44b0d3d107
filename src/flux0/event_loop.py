"""What asynchronous adapters need of the running event loop, be it asyncio's or trio's.

A connection belongs to the loop that opened it. So a resource is kept per loop, and closed while
its loop still runs: on use elsewhere it would fail, and left behind it would warn.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


async def sleep(seconds: float) -> None:
    """Wait for `seconds` in whichever loop is running."""
    trio = _running_trio()
    if trio is None:
        import asyncio  # noqa: PLC0415 - slow to import, and loaded already where it runs

        await asyncio.sleep(seconds)
    else:
        await trio.sleep(seconds)


def close_soon(close: Callable[[], Awaitable[None]]) -> None:
    """Have the running loop call `close`, from where nothing can be awaited, such as `__del__`.

    Without a running loop nothing is left to do: a loop that ended has closed its resources.
    """

    async def closing() -> None:
        with suppress(Exception):  # There is nobody left to tell.
            await close()

    trio = _running_trio()
    if trio is not None:
        trio.lowlevel.spawn_system_task(closing)
        return
    import asyncio  # noqa: PLC0415 - as above

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    # The loop holds what the task waits for, and that holds the task until it is done.
    loop.create_task(closing())  # noqa: RUF006


async def unwind(generator: AsyncGenerator[Any, None]) -> None:
    """End a generator that stands in the middle of others, those within it included.

    Closing the outermost leaves the inner ones to the garbage collector. asyncio then closes them;
    trio warns. So under trio it is cancelled where it waits, which ends the innermost first.
    """
    trio = _running_trio()
    if trio is None:
        await generator.aclose()
        return
    with trio.CancelScope() as scope:
        scope.cancel()
        async for _ in generator:
            pass


class PerLoop(Generic[T]):
    """One resource for each event loop, made when first asked for and closed when its loop ends."""

    def __init__(self, make: Callable[[], T], close: Callable[[T], Awaitable[None]]) -> None:
        self._make = make
        self._close = close
        self._guarded: WeakKeyDictionary[Any, tuple[T, AsyncGenerator[None, None]]]
        self._guarded = WeakKeyDictionary()

    async def get(self) -> T:
        """Return the resource of the running loop."""
        loop = _running_loop()
        known = self._guarded.get(loop)
        if known is not None:
            return known[0]
        resource = self._make()
        guard = _guard(resource, self._close)
        self._guarded[loop] = (resource, guard)
        await guard.asend(None)
        return resource

    async def close_async(self) -> None:
        """Close the running loop's resource; those of other loops are closed as those end."""
        known = self._guarded.pop(_running_loop(), None)
        if known is not None:
            await known[1].aclose()

    def __del__(self) -> None:
        for _, guard in self._guarded.values():
            close_soon(guard.aclose)


async def _guard(resource: T, close: Callable[[T], Awaitable[None]]) -> AsyncGenerator[None, None]:
    # Both loops close the asynchronous generators that are left when they end.
    try:
        yield
    finally:
        await close(resource)


def _running_loop() -> object:
    trio = _running_trio()
    if trio is not None:
        return trio.lowlevel.current_trio_token()
    import asyncio  # noqa: PLC0415 - as above

    return asyncio.get_running_loop()


def _running_trio() -> Any:
    """Return the trio module if the caller runs under it; never imports it."""
    trio = sys.modules.get("trio")
    return trio if trio is not None and trio.lowlevel.in_trio_run() else None
