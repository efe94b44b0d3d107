"""Queues in which the messages of a session wait, whichever thread or event loop sends them.

A sender joins the queue of its session, sends when it is the first, and leaves. Whoever leaves
(sent, cancelled, timed out or garbage-collected) wakes the sender that is the first then. No lock
guards a queue, because one operation of a `deque` is atomic, and because the garbage collector may
finalize an abandoned task, which leaves its queue, in a thread that would hold the lock.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from threading import Lock, get_ident
from typing import TypeAlias
from weakref import WeakValueDictionary

from flux0.runtime.event_loop import call_soon, running_loop
from flux0.runtime.processes import PerProcess
from flux0.runtime.waker import Waker

SessionKey: TypeAlias = tuple[str, str]  # the server's URL and the session's id


class ThreadSender(Waker):
    """A sync call that sends a message, or waits in order to send one."""


class TaskSender:
    """An async call that sends a message, or waits in order to send one."""

    def __init__(self) -> None:
        from anyio import Event  # noqa: PLC0415 - slow to import; comes with httpx

        self.thread: int = get_ident()
        self._loop = running_loop()
        self._woken = Event()

    @property
    def is_woken(self) -> bool:
        """Whether the wait has ended."""
        return self._woken.is_set()

    def wake(self) -> None:
        """End the wait, from any thread and in finalizers."""
        call_soon(self._loop, self._woken.set)

    async def wait(self) -> None:
        """Wait to be woken."""
        await self._woken.wait()


Sender: TypeAlias = ThreadSender | TaskSender


class SessionQueue:
    """The senders of one session, in the order in which they send."""

    def __init__(self) -> None:
        self._senders: deque[Sender] = deque()

    def join(self, sender: Sender) -> tuple[Sender, ...]:
        """Add `sender` at the end, and return the senders ahead of it."""
        self._senders.append(sender)
        ahead = tuple(self._senders.copy())
        return ahead[: ahead.index(sender)]

    def is_first(self, sender: Sender) -> bool:
        """Return whether it is the turn of `sender`."""
        return self._senders[0] is sender

    def leave(self, sender: Sender) -> None:
        """Remove `sender`, and wake the first of the others."""
        self._senders.remove(sender)
        with suppress(IndexError):  # The queue is empty.
            self._senders[0].wake()


class SessionQueues:
    """One queue for each session that has senders; after a fork, the child starts without any."""

    def __init__(self) -> None:
        self._queues: PerProcess[_Queues] = PerProcess(_Queues)

    def of(self, session: SessionKey) -> SessionQueue:
        """Return the queue of a session, which lasts as long as a sender references it."""
        return self._queues.get().of(session)


class _Queues:
    def __init__(self) -> None:
        self._creating = Lock()
        self._queues: WeakValueDictionary[SessionKey, SessionQueue] = WeakValueDictionary()

    def of(self, session: SessionKey) -> SessionQueue:
        with self._creating:
            return self._queues.setdefault(session, SessionQueue())
