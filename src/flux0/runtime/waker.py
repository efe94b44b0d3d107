"""A wait of a thread that another thread can end."""

from __future__ import annotations

from _thread import allocate_lock
from contextlib import suppress


class Waker:
    """Lets one thread wait until another thread wakes it.

    `threading.Event` would not do: a finalizer that calls its `set` while the same thread is inside
    `wait` would wait for a lock of its own thread.
    """

    def __init__(self) -> None:
        self._woken = allocate_lock()
        self._woken.acquire()

    def wake(self) -> None:
        """End the wait, now or as soon as it starts; from any thread, and in finalizers."""
        with suppress(RuntimeError):  # It was woken before.
            self._woken.release()

    def wait(self, seconds: float) -> bool:
        """Wait until `wake` is called; return False if that takes longer than `seconds`."""
        return self._woken.acquire(timeout=seconds)
