"""Cancel scopes under asyncio and trio."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from threading import Thread
from typing import Any

import anyio
import pytest

from flux0.runtime.cancel_scope import cancel_scope
from flux0.runtime.event_loop import sleep

Run = Callable[[Callable[[], Awaitable[Any]]], Any]
COUNTED = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="Python 3.10 does not count the cancellations of a task"
)


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Return a function that runs a coroutine function in a new event loop."""
    return lambda main: anyio.run(main, backend=request.param)


def test_block_ends_after_its_seconds(run: Run) -> None:
    async def main() -> str:
        async with cancel_scope(0.01):
            await sleep(60)
        await sleep(0)  # The task itself is not cancelled.
        return "continued"

    assert run(main) == "continued"


def test_any_thread_cancels_the_block(run: Run) -> None:
    async def main() -> str:
        scope = cancel_scope(None)
        async with scope:
            Thread(target=scope.cancel_soon).start()
            await sleep(60)
        return "continued"

    assert run(main) == "continued"


def test_block_that_has_ended_is_not_cancelled(run: Run) -> None:
    async def main() -> str:
        scope = cancel_scope(0.01)
        async with scope:
            result = "ended"
        scope.cancel_soon()
        await sleep(0.02)
        return result

    assert run(main) == "ended"


def test_errors_of_the_block_are_raised(run: Run) -> None:
    async def main() -> None:
        async with cancel_scope(60):
            raise KeyError

    with pytest.raises(KeyError):
        run(main)


def test_block_that_ends_while_it_is_cancelled_leaves_no_cancellation() -> None:
    async def main() -> str:
        scope = cancel_scope(None)
        async with scope:
            loop, ready = asyncio.get_running_loop(), asyncio.Event()
            loop.call_soon(ready.set)
            scope.cancel_soon()
            scope.cancel_soon()
            with suppress(asyncio.CancelledError):
                await ready.wait()
            result = "ended"
        await asyncio.sleep(0.01)
        return result

    assert asyncio.run(main()) == "ended"


def cancel_now(scope: Any) -> None:
    """Cancel a scope in its own task, so that asyncio raises the cancellation at the next await."""
    scope._cancel()


@pytest.mark.parametrize("error", [None, KeyError])
def test_pending_cancellation_is_not_raised_after_the_block(error: type[Exception] | None) -> None:
    async def main() -> str:
        with suppress(KeyError):
            scope = cancel_scope(None)
            async with scope:
                cancel_now(scope)
                if error is not None:
                    raise error
            assert error is None
        await asyncio.sleep(0)
        return "continued"

    assert asyncio.run(main()) == "continued"


@COUNTED
def test_cancellation_of_the_caller_is_raised_after_a_block_that_has_ended() -> None:
    async def main() -> None:
        scope = cancel_scope(None)
        task: Any = asyncio.current_task()
        async with scope:
            cancel_now(scope)
            task.cancel()

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())


@COUNTED
def test_cancellation_of_the_caller_is_raised() -> None:
    async def main() -> None:
        scope = cancel_scope(None)
        task: Any = asyncio.current_task()
        loop = asyncio.get_running_loop()
        async with scope:
            scope.cancel_soon()
            loop.call_soon(task.cancel)
            await sleep(60)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())


@COUNTED
def test_cancelled_scope_of_anyio_around_the_block_ends_as_usual() -> None:
    async def main() -> str:
        with anyio.CancelScope() as outer:
            loop, scope = asyncio.get_running_loop(), cancel_scope(None)
            async with scope:
                loop.call_soon(outer.cancel)
                scope.cancel_soon()
                while True:
                    await sleep(0)
        assert outer.cancelled_caught
        await sleep(0)
        return "continued"

    assert asyncio.run(main()) == "continued"
