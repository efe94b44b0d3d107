"""A class that lets one thread wait until another thread wakes it."""

from __future__ import annotations

from _thread import allocate_lock
from contextlib import suppress


class Waker:
    """Lets one thread wait until another thread wakes it.

    `threading.Event` is not suitable: if a finalizer called `Event.set` while the same thread is
    inside `Event.wait`, `set` would wait forever for a lock that its own thread holds.
    """

    def __init__(self) -> None:
        self._woken = allocate_lock()
        self._woken.acquire()

    def wake(self) -> None:
        """End the current wait, or the next wait if no thread waits.

        Safe in any thread and in finalizers.
        """
        with suppress(RuntimeError):  # release() fails if `wake` was already called.
            self._woken.release()

    def wait(self, seconds: float) -> bool:
        """Wait until `wake` is called; return False if `wake` is not called within `seconds`."""
        return self._woken.acquire(timeout=seconds)
