"""The turns of one process, and its threads."""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import Thread
from time import monotonic
from typing import Final, final
from weakref import WeakKeyDictionary

from attrs import define, evolve

from flux0.adapters.redis.commands import Command, Commands, Times, TurnName, as_text
from flux0.adapters.redis.followed import FollowedTurn
from flux0.adapters.redis.lease import LeaseJob
from flux0.adapters.redis.listener import Listener
from flux0.adapters.redis.published import PublishedTurn
from flux0.adapters.redis.worker import RedisClient, SharedObjects, Steps, T, Worker
from flux0.domain.errors import ClientClosed, TurnRunning, TurnStoreError
from flux0.runtime.turn_log import TurnLog

_RUNNING: Final = "a turn of the session is running"
_UNREACHABLE: Final = "Redis, which has the events of the turn, could not be reached"
_CLOSED: Final = "the store of background turns is closed"


@final
class StoreProcess:
    """The turns that one process reads or follows.

    The methods whose result is `Steps` run in the thread of the worker.
    """

    def __init__(self, client: RedisClient, prefix: str, times: Times) -> None:
        self._client = client
        self._times = times
        self._commands = commands = Commands(prefix, times)
        self._worker = Worker(client, times.renew)
        self._shared = SharedObjects(commands, self._worker, times)
        self._turns = self._shared.turns
        self._lease = LeaseJob(self._shared)
        channels = commands.process, commands.everyone
        actions = self._on_message, self._check_failure
        self._listener = Listener(client, channels, *actions, times.check)
        # For each log that was claimed: the turn that its session had before.
        self._replaced: WeakKeyDictionary[TurnLog, TurnName] = WeakKeyDictionary()
        self._is_permitted = False
        self._is_closed = False
        self._threads = (
            Thread(target=self._run_worker, name="flux0-redis", daemon=True),
            Thread(target=self._listener.run, name="flux0-redis-listener", daemon=True),
        )
        self._start_once = allocate_lock()

    def claim(self, session_id: str, log: TurnLog, *, refuse: bool) -> TurnLog | None:
        return self._call(self._claim(self._name(session_id, log.turn_id), log, refuse))

    def release(self, session_id: str, log: TurnLog) -> None:
        name = self._name(session_id, log.turn_id)
        if isinstance(turn := self._turns.get(name.info), PublishedTurn):
            turn.is_released = True

        def command() -> Command:
            # If the claim was not sent, the session has another turn, which this command keeps.
            return self._commands.release(name, self._replaced.get(log, name))

        self._worker.submit(_Release(command, self._worker, monotonic() + self._times.keep))

    def find(self, session_id: str) -> TurnLog | None:
        session = self._commands.session(session_id)
        own = self._own_log(session)
        if own is not None and not own.is_ended:
            return own
        try:
            return self._call(self._find(session))
        except TurnStoreError:
            if own is None:
                raise
            return own

    def close(self) -> None:
        """Publish the ends of the turns, end the copies of other turns, and end the threads."""
        if self._is_closed:
            return
        self._is_closed = True
        for followed in self._lease.followed:
            followed.give_up(ClientClosed(_CLOSED))
        if self._threads[0].is_alive():
            ends = monotonic() + self._times.lease - self._worker.waiting_seconds
            with suppress(TurnStoreError):
                self._worker.call(self._finish(), max(ends - monotonic(), 0))
            for thread in self._threads:
                thread.join(max(ends - monotonic(), 0))

    def _call(self, steps: Steps[T]) -> T:
        if self._is_closed:
            raise TurnStoreError(_CLOSED)
        self._start()
        return self._worker.call(self._run(steps))

    def _run(self, steps: Steps[T]) -> Steps[T]:
        if not self._is_permitted:  # Without the channel, no stop would arrive.
            yield self._commands.wake(self._commands.process)
            self._is_permitted = True
        return (yield from steps)

    def retire(self) -> None:
        """End the threads when no turn is running or followed. Safe in finalizers."""
        self._worker.stop_when_idle()

    def _start(self) -> None:
        if self._start_once.acquire(blocking=False):
            try:
                for thread in self._threads:
                    if thread.ident is None:
                        thread.start()
            except RuntimeError as error:
                self._start_once.release()
                raise TurnStoreError("the threads of the store cannot be started") from error

    def _claim(self, name: TurnName, log: TurnLog, refuse: bool) -> Steps[TurnLog | None]:
        own = self._own_log(name.session)  # Redis may have lost its data.
        if refuse and own is not None and not own.is_ended:
            raise TurnRunning(_RUNNING)
        yield from self._lease.renew()
        while True:
            id_, process = yield self._commands.find(name.session)
            self._replaced[log] = expected = evolve(name, id=as_text(id_))
            # The turn of a lost process is not running.
            refuse = refuse and bool(process and (yield self._commands.lease(as_text(process))))
            reply = yield self._commands.claim(name, log.max_bytes, expected, refuse=refuse)
            if reply:
                break
        was_running, generation = reply
        if not generation:
            raise TurnRunning(_RUNNING)
        published = PublishedTurn(name, int(generation), log, self._shared)
        # The caller may have been cancelled in the meantime.
        published.is_released = log.is_ended
        self._add(name, published)
        previous = (yield from self._join(expected)) if was_running else own
        return None if previous is None or previous.is_ended else previous

    def _find(self, session: str) -> Steps[TurnLog | None]:
        id_, _ = yield self._commands.find(session)
        return (yield from self._join(TurnName(session, as_text(id_)))) if id_ else None

    def _join(self, name: TurnName) -> Steps[TurnLog | None]:
        """Return the log of a turn, which this process reads, follows, or begins to follow."""
        log = self._known_log(name)
        if log is None:
            reply = yield self._commands.read(name, 1)
            # Another call may have begun to follow the turn in the meantime.
            log = self._known_log(name)
            if log is None and reply:
                log = TurnLog(name.id, int(reply[0]), partial(self._stop, name))
                followed = FollowedTurn(name, log, self._shared)
                followed.update(reply)
                self._add(name, followed)
        return log

    def _add(self, name: TurnName, turn: PublishedTurn | FollowedTurn) -> None:
        self._turns[name.info] = turn
        self._worker.submit(turn)
        self._worker.submit(self._lease)

    @property
    def _published(self) -> list[PublishedTurn]:
        return [turn for turn in self._turns.copy().values() if isinstance(turn, PublishedTurn)]

    def _own_log(self, session: str) -> TurnLog | None:
        """Return the turn of a session that this process reads or has still to publish."""
        own = (turn for turn in reversed(self._published) if turn.name.session == session)
        return next((turn.log() for turn in own if not turn.is_released), None)

    def _known_log(self, name: TurnName) -> TurnLog | None:
        turn = self._turns.get(name.info)
        log = None if turn is None else turn.log()
        return None if log is None or (log.end is not None and log.end.is_of_copy) else log

    def _stop(self, name: TurnName, reason: str) -> None:
        self._call(self._request_stop(name, reason))

    def _request_stop(self, name: TurnName, reason: str) -> Steps[None]:
        yield self._commands.stop(name, reason)

    def _finish(self) -> Steps[None]:
        for turn in self._published:
            yield from turn.steps()
            if self._worker.waiting_seconds:
                break
        self._worker.stop()

    def _run_worker(self) -> None:
        self._worker.run()
        self._listener.stop()
        wake = self._commands.wake(self._commands.process)
        with suppress(Exception):  # The listener ends without a message, too, but later.
            self._client.execute_command(*wake)

    def _on_message(self, message: str | None) -> None:
        turns = self._turns.copy()
        for turn in turns.values() if message is None else filter(None, (turns.get(message),)):
            self._worker.submit(turn)

    def _check_failure(self) -> None:
        """End the copies if Redis has not responded for almost `lease_seconds`."""
        if self._worker.waiting_seconds >= self._times.lease - self._times.check:
            for followed in self._lease.followed:
                followed.give_up(TurnStoreError(_UNREACHABLE))

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
