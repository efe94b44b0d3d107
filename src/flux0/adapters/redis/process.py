"""The turns of one process, and its threads."""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from os import urandom
from threading import Thread
from time import monotonic
from typing import Final, final
from weakref import WeakKeyDictionary

from attrs import define, evolve

from flux0.adapters.redis.commands import Command, Commands, Lease, TurnName, as_text, stop_request
from flux0.adapters.redis.followed import FollowedTurn
from flux0.adapters.redis.listener import Listener
from flux0.adapters.redis.published import PublishedTurn
from flux0.adapters.redis.worker import RedisClient, SharedObjects, Steps, T, Worker
from flux0.domain.errors import ClientClosed, TurnRunning, TurnStoreError
from flux0.runtime.turn_log import TurnLog

_RUNNING: Final = "a turn of the session is running"
_CLOSED: Final = "the store of background turns is closed"


@final
class StoreProcess:
    """The turns that one process reads or follows.

    The methods whose result is `Steps` run in the thread of the worker.
    """

    def __init__(
        self, client: RedisClient, prefix: str, keep_seconds: float, lease_seconds: float
    ) -> None:
        self._client = client
        self._keep_seconds = keep_seconds
        self._lease = lease = Lease.of(lease_seconds)
        self._commands = Commands(prefix, urandom(12).hex(), keep_seconds, lease)
        self._worker = Worker(client, lease.renew_seconds)
        self._shared = SharedObjects(self._commands, self._worker, lease)
        channel, actions = self._commands.channel, (self._on_message, self._check_failure)
        self._listener = Listener(client, channel, *actions, lease.renew_seconds)
        self._published: dict[str, PublishedTurn] = {}
        self._followed: dict[str, FollowedTurn] = {}
        # For each log that was claimed: the turn that its session had before.
        self._replaced: WeakKeyDictionary[TurnLog, TurnName] = WeakKeyDictionary()
        self._is_closed = False
        self._threads = (
            Thread(target=self._run_worker, name="flux0-redis", daemon=True),
            Thread(target=self._listener.run, name="flux0-redis-listener", daemon=True),
        )
        self._start_once = allocate_lock()

    def claim(self, session_id: str, log: TurnLog, *, refuse: bool) -> TurnLog | None:
        """Make `log` the turn of the session; see `TurnStore.claim`."""
        return self._call(self._claim(self._name(session_id, log.turn_id), log, refuse))

    def release(self, session_id: str, log: TurnLog) -> None:
        """Undo `claim`; see `TurnStore.release`."""
        published = self._published.get(log.turn_id)
        if published is not None:
            published.is_released = True
        name = self._name(session_id, log.turn_id)

        def command() -> Command:
            # If the claim was not sent, the session has another turn, which this command keeps.
            return self._commands.release(name, self._replaced.get(log, name))

        self._worker.submit(_Release(command, self._worker, monotonic() + self._keep_seconds))

    def find(self, session_id: str) -> TurnLog | None:
        """Return the turn of the session; see `TurnStore.find`."""
        session = self._commands.session(session_id)
        try:
            return self._call(self._find(session))
        except TurnStoreError:
            if (log := self._own_running_log(session)) is None:
                raise
            return log

    def close(self) -> None:
        """Publish the ends of the turns, end the copies of other turns, and end the threads."""
        if self._is_closed:
            return
        self._is_closed = True
        for followed in self._followed.copy().values():
            followed.give_up(ClientClosed(_CLOSED))
        if self._threads[0].is_alive():
            with suppress(TurnStoreError):
                self._worker.call(self._finish())
            for thread in self._threads:
                thread.join(self._lease.total_seconds)

    def _call(self, steps: Steps[T]) -> T:
        if self._is_closed:
            raise TurnStoreError(_CLOSED)
        self._start()
        return self._worker.call(steps)

    def retire(self) -> None:
        """End the threads when no turn is running or followed. Safe in finalizers."""
        self._worker.stop_when_idle()

    def _start(self) -> None:
        """Start the threads, unless they were started before."""
        if self._start_once.acquire(blocking=False):
            try:
                for thread in self._threads:
                    if thread.ident is None:
                        thread.start()
            except RuntimeError as error:
                self._start_once.release()
                raise TurnStoreError("the threads of the store cannot be started") from error

    def _claim(self, name: TurnName, log: TurnLog, refuse: bool) -> Steps[TurnLog | None]:
        own = self._own_running_log(name.session)  # Redis may have lost its data.
        if own is not None and refuse:
            raise TurnRunning(_RUNNING)
        expected = evolve(name, id=as_text((yield self._commands.find(name.session))))
        while True:
            self._replaced[log] = expected
            claim = self._commands.claim(name, log.max_bytes, expected, refuse=refuse)
            result, value = yield claim
            if as_text(result) != "changed":
                break
            expected = evolve(name, id=as_text(value))
        if as_text(result) == "running":
            raise TurnRunning(_RUNNING)
        published = PublishedTurn(name, log, self._shared, self._published)
        # The caller may have been cancelled in the meantime.
        published.is_released = log.is_ended
        self._published[name.id] = published
        self._worker.submit(published)
        previous = (yield from self._join(expected)) if value else own
        return None if previous is None or previous.is_ended else previous

    def _find(self, session: str) -> Steps[TurnLog | None]:
        id_ = as_text((yield self._commands.find(session)))
        return (yield from self._join(TurnName(session, id_))) if id_ else None

    def _join(self, name: TurnName) -> Steps[TurnLog | None]:
        """Return the log of a turn, which this process reads, follows, or begins to follow."""
        log = self._known_log(name.id)
        if log is None:
            reply = yield self._commands.read(name, 1)
            # Another call may have begun to follow the turn in the meantime.
            log = self._known_log(name.id)
            if log is None and reply:
                log = TurnLog(name.id, int(reply[0]), partial(self._stop, name))
                followed = FollowedTurn(name, log, self._shared, self._followed)
                self._followed[name.id] = followed
                if followed.update(reply):
                    self._worker.submit(followed)
        return log

    def _own_running_log(self, session: str) -> TurnLog | None:
        logs = (own.log for own in self._published.copy().values() if own.name.session == session)
        return next((log for log in logs if not log.is_ended), None)

    def _known_log(self, turn_id: str) -> TurnLog | None:
        if (published := self._published.get(turn_id)) is not None:
            return published.log
        followed = self._followed.get(turn_id)
        log = None if followed is None else followed.log()
        return None if log is None or (log.end is not None and log.end.is_of_copy) else log

    def _stop(self, name: TurnName, reason: str) -> None:
        self._call(self._request_stop(name, reason))

    def _request_stop(self, name: TurnName, reason: str) -> Steps[None]:
        yield self._commands.stop(name, stop_request(reason))

    def _finish(self) -> Steps[None]:
        """Publish the ends of the turns, and end both threads."""
        for published in tuple(self._published.values()):
            yield from published.steps()
            if published.log.is_ended and published in self._published.values():
                break  # Redis cannot be reached.
        self._worker.stop()

    def _run_worker(self) -> None:
        self._worker.run()
        self._listener.stop()
        with suppress(Exception):  # The listener ends without a message, too, but later.
            self._client.execute_command(*self._commands.wake_listener())

    def _on_message(self, turn_id: str | None) -> None:
        """Check a turn after a message about it, or all turns if messages may have been lost."""
        for turns in (self._published, self._followed):
            jobs = turns.copy().values() if turn_id is None else (turns.get(turn_id),)
            for job in jobs:
                if job is not None:
                    self._worker.submit(job)

    def _check_failure(self) -> None:
        """End the copies if the worker has been waiting for Redis for too long."""
        seconds = self._worker.sending_seconds
        if seconds >= self._lease.total_seconds:
            for followed in self._followed.copy().values():
                followed.check_failure(seconds)

    def _name(self, session_id: str, turn_id: str) -> TurnName:
        return TurnName(self._commands.session(session_id), turn_id)


@final
@define(eq=False)
class _Release:
    """The release of a claim. It is repeated until it succeeds.

    If Redis did not respond to a claim, it may still receive the claim later.
    """

    _command: Callable[[], Command]
    _worker: Worker
    _ends: float
    is_repeated: bool = False  # Later calls see the effect of the first attempt.

    def steps(self) -> Steps[None]:
        try:
            yield self._command()
        except Exception:  # noqa: BLE001 - the client may be of another library
            self.is_repeated = True
            if monotonic() < self._ends:
                self._worker.retry(self)
