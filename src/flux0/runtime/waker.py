"""Classes that let one thread, or one task, wait until it is woken."""

from __future__ import annotations

import sys
from _thread import allocate_lock
from contextlib import suppress
from math import inf

from flux0.runtime.event_loop import Loop, call_soon, is_current, running_loop


class Waker:
    """Lets one thread wait until another thread wakes it.

    `threading.Event` is not suitable: if a finalizer calls `Event.set` while the same thread is
    inside `Event.wait`, `set` waits forever for a lock that its own thread holds.
    """

    def __init__(self) -> None:
        self._woken = allocate_lock()
        self._woken.acquire()

    def wake(self) -> None:
        """End the wait of a thread. If no thread is waiting, the next `wait` returns at once.

        Safe in any thread and in finalizers.
        """
        with suppress(RuntimeError):  # `release` raises RuntimeError if the lock is free.
            self._woken.release()

    def wait(self, seconds: float | None) -> bool:
        return self._woken.acquire(timeout=-1 if seconds is None else seconds)


class AsyncWaker:
    """The async version of `Waker`, for tasks of the event loop in which it was created.

    In asyncio, the waits of an object share a timer, because creating a timer or a cancel scope for
    each wait takes more time than handling an event.

    Attributes:
        loop: The event loop.
    """

    def __init__(self) -> None:
        self.loop: Loop = running_loop()
        self._library = sys.modules["trio" if hasattr(self.loop, "run_sync_soon") else "asyncio"]
        self._woken = self._library.Event()
        self._deadline = inf
        self._timer_time = inf

    def wake(self) -> None:
        """End the wait of a task. If no task is waiting, the next `wait` returns at once.

        Safe in any thread, in signal handlers and in finalizers.
        """
        call_soon(self.loop, self._woken.set)

    def wake_from_task(self) -> None:
        """End the wait of a task, as `wake` does, but not in signal handlers and finalizers.

        If the caller runs in the same event loop as the waiting task, this method is faster than
        `wake`, because it does not write to the socket that wakes the loop.
        """
        (self._woken.set if is_current(self.loop) else self.wake)()

    async def wait(self, seconds: float | None) -> None:
        if hasattr(self.loop, "run_sync_soon"):
            with self._library.move_on_after(inf if seconds is None else seconds):
                await self._woken.wait()
            # Replace the event, because trio cannot clear an event. If another thread sets the old
            # event now, no change is lost: the caller of `wait` looks for changes after `wait`.
            self._woken = self._library.Event()
        else:
            self._deadline = inf if seconds is None else self.loop.time() + seconds
            if self._deadline < self._timer_time:
                self._set_timer()
            await self._woken.wait()
            self._woken.clear()
            self._deadline = inf

    def _set_timer(self) -> None:
        self._timer_time = self._deadline
        self.loop.call_at(self._deadline, self._check_deadline)

    def _check_deadline(self) -> None:
        self._timer_time = inf
        if self._deadline <= self.loop.time():
            self._woken.set()
        elif self._deadline < inf:
            self._set_timer()
