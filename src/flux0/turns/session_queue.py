"""Queues that order the messages of each session, from all threads and event loops.

A sender joins the queue of its session, sends its message when it is the first in the queue, and
leaves the queue, even if sending failed. A sender that leaves wakes the new first sender.

An exception of a signal handler can interrupt the leaving. Therefore a sender holds its lock
`active` while it is in the queue, and the other senders ignore a sender whose lock is free. The
`with` statement of a lock of C cannot be interrupted between the end of its block and the release.

A queue has no lock, because single operations of a `list` are atomic, also without the GIL. (The
`copy` of a `deque` is not atomic without the GIL.) A lock can deadlock: if the garbage collector
finalizes a task in a thread that holds the lock, the task must leave its queue and waits for the
lock forever.
"""

from __future__ import annotations

from contextlib import suppress
from threading import Lock, get_ident
from typing import TypeAlias

from flux0.runtime.event_loop import running_task
from flux0.runtime.processes import PerProcess
from flux0.runtime.waker import AsyncWaker, Waker
from flux0.runtime.weak_values import WeakValues

# A `SessionKey` identifies a session by the server's URL and the session id.
SessionKey: TypeAlias = tuple[str, str]


class ThreadSender(Waker):
    """A sync call that waits in the queue of its session before it sends its message."""

    def __init__(self) -> None:
        super().__init__()
        self.thread: int = get_ident()
        self.active: Lock = Lock()


class TaskSender(AsyncWaker):
    def __init__(self) -> None:
        super().__init__()
        self.thread: int = get_ident()
        self.active: Lock = Lock()
        self.task: object = running_task()


Sender: TypeAlias = ThreadSender | TaskSender


class SessionQueue:
    """The calls that wait to send a message on one session, in the order of sending."""

    def __init__(self) -> None:
        self._senders: list[Sender] = []

    def join(self, sender: Sender) -> tuple[Sender, ...]:
        self._senders.append(sender)
        return self._ahead(sender)

    def is_first(self, sender: Sender) -> bool:
        return not self._ahead(sender)

    def _ahead(self, sender: Sender) -> tuple[Sender, ...]:
        everyone = self._senders.copy()
        ahead = everyone[: everyone.index(sender)]
        return tuple(other for other in ahead if other.active.locked())

    def leave(self, sender: Sender) -> None:
        # If an exception has interrupted `join`, the queue does not contain `sender`.
        with suppress(ValueError):
            self._senders.remove(sender)
        for other in self._senders.copy():
            if other.active.locked():
                other.wake()
                break


class SessionQueues:
    """The queues of all sessions with waiting calls. A forked child starts without queues."""

    def __init__(self) -> None:
        self._queues = PerProcess(WeakValues[SessionKey, SessionQueue])

    def of(self, session: SessionKey) -> SessionQueue:
        """Return a session's queue, which exists as long as a waiting call refers to it."""
        return self._queues.get().setdefault(session, SessionQueue)
