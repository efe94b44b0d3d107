"""Queues that order the messages of each session, from all threads and event loops.

A sender joins the queue of its session, sends its message when it is the first in the queue, and
leaves the queue, even if sending failed. A sender that leaves wakes the new first sender.

A queue has no lock, because single operations of a `deque` are atomic. A lock can deadlock: if the
garbage collector finalizes a task in a thread that holds the lock, the task must leave its queue
and waits for the lock forever.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from threading import RLock, get_ident
from typing import TypeAlias
from weakref import WeakValueDictionary

from flux0.runtime.event_loop import running_task
from flux0.runtime.processes import PerProcess
from flux0.runtime.waker import AsyncWaker, Waker

# A `SessionKey` identifies a session by the server's URL and the session id.
SessionKey: TypeAlias = tuple[str, str]


class ThreadSender(Waker):
    """A sync call that waits in the queue of its session before it sends its message."""

    def __init__(self) -> None:
        super().__init__()
        self.thread: int = get_ident()


class TaskSender(AsyncWaker):
    def __init__(self) -> None:
        super().__init__()
        self.thread: int = get_ident()
        self.task: object = running_task()


Sender: TypeAlias = ThreadSender | TaskSender


class SessionQueue:
    """The calls that wait to send a message on one session, in the order of sending."""

    def __init__(self) -> None:
        self._senders: deque[Sender] = deque()

    def join(self, sender: Sender) -> tuple[Sender, ...]:
        self._senders.append(sender)
        ahead = tuple(self._senders.copy())
        return ahead[: ahead.index(sender)]

    def is_first(self, sender: Sender) -> bool:
        return self._senders[0] is sender

    def leave(self, sender: Sender) -> None:
        self._senders.remove(sender)
        # If the queue is empty, `_senders[0]` raises IndexError, and there is no sender to wake.
        with suppress(IndexError):
            self._senders[0].wake()


class SessionQueues:
    """The queues of all sessions with waiting calls. A forked child starts without queues."""

    def __init__(self) -> None:
        self._queues = PerProcess(WeakValueDictionary[SessionKey, SessionQueue])
        # The lock is reentrant, because a signal handler can send a message in a thread that holds
        # the lock. With a normal lock, this thread waits forever.
        self._creating = PerProcess(RLock)

    def of(self, session: SessionKey) -> SessionQueue:
        """Return a session's queue, which exists as long as a waiting call refers to it."""
        with self._creating.get():
            return self._queues.get().setdefault(session, SessionQueue())
