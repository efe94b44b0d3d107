"""Wakers: a thread or task is woken before or during its wait."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio.lowlevel
import anyio.to_thread
import pytest

from flux0.runtime.waker import AsyncWaker, Waker
from support.in_memory import in_both_loops, in_simulated_time
from support.transports import Mode

TOO_LONG = 20.0


def test_several_wakes_end_one_wait() -> None:
    waker = Waker()
    assert not waker.wait(0)
    waker.wake()
    waker.wake()
    assert waker.wait(0)
    assert not waker.wait(0)


def test_wake_in_another_thread_ends_the_wait() -> None:
    waker = Waker()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(waker.wait, TOO_LONG)
        waker.wake()
        assert waiting.result(TOO_LONG)


def test_wait_without_a_limit_ends_when_it_is_woken() -> None:
    waker = Waker()
    waker.wake()
    assert waker.wait(None)


@in_both_loops
async def test_wake_before_an_async_wait_ends_it(mode: Mode) -> None:
    waker = AsyncWaker()
    for wake in (waker.wake, waker.wake_from_task):
        wake()
        await waker.wait(None)


@in_both_loops
async def test_wake_during_an_async_wait_ends_it(mode: Mode) -> None:
    waker, waits = AsyncWaker(), list[int]()

    async def wait() -> None:
        for number in range(3):
            await waker.wait(TOO_LONG)
            waits.append(number)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        for number, wake in enumerate((waker.wake, waker.wake_from_task), 1):
            await anyio.wait_all_tasks_blocked()
            wake()
            while len(waits) < number:
                await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()
        await anyio.to_thread.run_sync(waker.wake_from_task)
    assert waits == [0, 1, 2]


@in_simulated_time
async def test_async_wait_ends_after_its_seconds(mode: Mode) -> None:
    waker = AsyncWaker()
    start = anyio.current_time()
    await waker.wait(2.0)
    await waker.wait(3.0)
    assert anyio.current_time() - start == 5.0


@in_simulated_time
async def test_earlier_waits_do_not_change_the_limit_of_an_async_wait(mode: Mode) -> None:
    waker = AsyncWaker()
    start = anyio.current_time()
    waker.wake()
    await waker.wait(5.0)
    with anyio.move_on_after(1.0):
        await waker.wait(7.0)
    await waker.wait(2.0)  # It ends before both earlier limits.
    assert anyio.current_time() - start == 3.0
    await waker.wait(6.0)  # It ends after both earlier limits.
    assert anyio.current_time() - start == 9.0
    waker.wake()
    await waker.wait(1.0)
    await anyio.sleep(2.0)  # The limit of the ended wait passes.
    with anyio.move_on_after(4.0) as scope:
        await waker.wait(None)
    assert scope.cancelled_caught
    assert anyio.current_time() - start == 15.0
    waker.wake()
    await waker.wait(1.0)
    await waker.wait(3.0)  # Only the limit of the ended wait passes earlier.
    assert anyio.current_time() - start == 18.0


def test_waits_of_a_task_share_a_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay waits for each event, and has many events within its heartbeat's interval."""

    async def wait() -> None:
        loop, timers = asyncio.get_running_loop(), list[float]()
        call_at = loop.call_at

        def counted(when: float, *args: Any, **options: Any) -> asyncio.TimerHandle:
            timers.append(when)
            return call_at(when, *args, **options)

        monkeypatch.setattr(loop, "call_at", counted)
        waker = AsyncWaker()
        for _ in range(3):
            waker.wake()
            await waker.wait(TOO_LONG)
        assert len(timers) == 1

    asyncio.run(wait())


def test_wake_of_an_ended_event_loop_has_no_effect() -> None:
    async def make() -> AsyncWaker:
        return AsyncWaker()

    waker = asyncio.run(make())
    waker.wake()
    waker.wake_from_task()
