"""The background turns that one process reads or copies, and its threads for Redis."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from os import urandom
from threading import Event, RLock, Thread
from time import monotonic
from typing import Final, final
from weakref import WeakKeyDictionary

from attrs import evolve

from flux0.adapters.redis import scripts
from flux0.adapters.redis.commands import Settings, TurnName, as_bytes, as_text, run_script
from flux0.adapters.redis.followed import FollowedTurn, lose, read
from flux0.adapters.redis.lease import Lease
from flux0.adapters.redis.published import PublishedTurn
from flux0.adapters.redis.subscription import Subscription
from flux0.adapters.redis.worker import CLOSED, RedisClient, Steps, T, Worker
from flux0.domain.background_errors import ReaderLost, TurnRunning, TurnStoreError
from flux0.domain.errors import ClientClosed, Flux0Error
from flux0.runtime.time import SystemTime
from flux0.runtime.turn_log import TurnLog
from flux0.turn_store import StoreState

_RUNNING: Final = 'a turn of the session is running: wait, or pass running="stop"'


@final
class StoreProcess:
    """The background turns that one process reads from the flux0 server or copies from Redis.

    The methods whose result is `Steps` run in the thread of the worker.

    Args:
        client: The client of Redis.
        owned_clients: The clients to close when the threads end.
        settings: The names that the process uses in Redis, and the times for all turns.
    """

    def __init__(
        self, client: RedisClient, owned_clients: Sequence[RedisClient], settings: Settings
    ) -> None:
        self._client = client
        self._owned_clients = owned_clients
        self._settings = settings
        self._worker = Worker(client, settings)
        # `_published` contains the turns that this process reads, and `_followed` the turns that it
        # copies from other processes, by their keys in Redis. Only the worker's thread changes the
        # two dictionaries.
        self._published: dict[str, PublishedTurn] = {}
        self._followed: dict[str, FollowedTurn] = {}
        self._subscription = Subscription(
            client, self._worker, self._check_turns, self._check_question
        )
        renew = self._subscription.renew
        self._lease = Lease(self._worker, self._published, self._followed, renew)
        # An alarm checks the copies, because both threads of the store can wait for Redis.
        self._time = SystemTime()
        self._is_checking = False
        # `_replaced` maps the log of each new turn to the name of the session's previous turn.
        self._replaced: WeakKeyDictionary[TurnLog, TurnName] = WeakKeyDictionary()
        self._is_permitted = False
        self._is_closed = False
        self._threads = (
            Thread(target=self._run_worker, name="flux0-redis", daemon=True),
            Thread(target=self._listen, name="flux0-redis-listener", daemon=True),
        )
        self._starting = RLock()
        self._worker_ended = Event()

    def claim(self, session_id: str, log: TurnLog, *, refuse: bool) -> TurnLog | None:
        return self._call(self._claim(self._settings.name(session_id, log.turn_id), log, refuse))

    def release(self, session_id: str, log: TurnLog) -> None:
        name = self._settings.name(session_id, log.turn_id)
        if turn := self._published.get(name.info):
            turn.is_released = True
        ends = monotonic() + self._settings.keep
        self._worker.submit(partial(self._release, name, log, ends), now=True)

    def find(self, session_id: str) -> TurnLog | None:
        name = self._settings.name(session_id, "")
        own = self._own_log(name)
        if own is not None and not own.is_ended:
            return own
        try:
            return self._call(self._find(name))
        except TurnStoreError:
            if own is None:
                raise
            return own

    def state(self) -> StoreState:
        logs = [turn.log() for turn in self._followed.copy().values()]
        running = sum(log is not None and not log.is_ended for log in logs)
        redis, lease = self._worker.redis, self._lease.outage
        return StoreState(not (redis.error or lease.error), self._worker.failures, running)

    def close(self) -> None:
        """Write the ends of this process's turns to Redis, and end the threads.

        The logs that were copied from other processes end with a `ClientClosed`.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._end_copies(ClientClosed, CLOSED)
        ends = monotonic() + self._settings.lease - self._worker.redis.seconds
        self._worker.stop()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(ends - monotonic(), 0))

    def retire(self) -> None:
        """End the threads when this process reads and copies no more turns. Safe in finalizers."""
        self._worker.stop(when_idle=True)
        # If Redis cannot be used, the lease waits for its next renewal.
        self._worker.submit(self._lease.steps, now=True)

    def _call(self, steps: Steps[T]) -> T:
        if self._is_closed:
            raise TurnStoreError(CLOSED)
        self._start()
        return self._worker.call(self._run(steps))

    def _start(self) -> None:
        with self._starting:
            try:
                for thread in self._threads:
                    if thread.ident is None:
                        thread.start()
            except RuntimeError as error:
                raise TurnStoreError("the threads of the store cannot be started") from error

    def _run(self, steps: Steps[T]) -> Steps[T]:
        # Other processes send requests to stop a turn over the channel of this process. If Redis
        # does not permit the client to use the channel, this command fails before a turn is
        # claimed.
        if not self._is_permitted:
            yield "PUBLISH", self._settings.process, ""
            self._is_permitted = True
        try:
            return (yield from steps)
        except TurnStoreError:
            # If Redis rejects all commands, the next call needs another connection.
            yield from self._lease.is_accepted()
            raise

    def _claim(self, name: TurnName, log: TurnLog, refuse: bool) -> Steps[TurnLog | None]:
        own, settings = self._own_log(name), self._settings
        # This process's own turns are checked first, because Redis may have lost its data.
        if refuse and own is not None and not own.is_ended:
            raise TurnRunning(_RUNNING)
        yield from self._lease.renew()
        while True:
            id_, process = yield "HMGET", name.session, "turn", "process"
            self._replaced[log] = expected = evolve(name, id=as_text(id_))
            # If the lease (the key `process`) has expired, the process that read the session's turn
            # is lost, and the turn is not running any more.
            refuses = refuse and process and (yield from self._has_lease(as_text(process)))
            keys = name.session, name.info, expected.info
            values = name.id, expected.id, int(bool(refuses)), settings.process, log.max_bytes
            if reply := (yield run_script(scripts.CLAIM, keys, *values, settings.ttl_ms)):
                break
        was_running, generation = reply
        if not generation:
            raise TurnRunning(_RUNNING)
        turn = PublishedTurn(name, int(generation), log, self._worker, self._lease, self._published)
        # If the caller of `claim` was cancelled, `log` has already ended, and the caller undoes the
        # claim.
        turn.is_released = log.is_ended
        self._published[name.info] = turn
        self._submit(turn)
        previous = (yield from self._join(expected)) if was_running else own
        return None if previous is None or previous.is_ended else previous

    def _has_lease(self, process: str) -> Steps[bool]:
        left = yield "PTTL", process
        if left > self._settings.expiry_ms:
            # The clock of Redis was set back, so the lease of a lost process would not expire.
            yield "PEXPIRE", process, self._settings.expiry_ms
        return bool(left > 0)

    def _release(self, name: TurnName, log: TurnLog, ends: float) -> Steps[None]:
        # The worker repeats `_release` until Redis responds, because Redis may have received the
        # claim of the turn although the caller got an error. If Redis has not received the claim,
        # the script RELEASE does not change the session.
        if monotonic() < ends:
            previous = self._replaced.get(log, name)
            keys = name.session, name.info, previous.info
            yield run_script(scripts.RELEASE, keys, name.id, previous.id)

    def _find(self, name: TurnName) -> Steps[TurnLog | None]:
        id_ = yield "HGET", name.session, "turn"
        return (yield from self._join(evolve(name, id=as_text(id_)))) if id_ else None

    def _join(self, name: TurnName) -> Steps[TurnLog | None]:
        log = self._known_log(name)
        if (
            log is None
            and (lost := self._lost_log(name))
            and (yield from self._is_lost(name, lost))
        ):
            log = lost
        if log is None:
            reply = yield read(name, self._settings.process, 1, asks=False)
            # While this call waited for Redis, another call may have created a copy of the same
            # turn. In this case, return the existing copy.
            log = self._known_log(name)
            if log is None and reply:
                log = TurnLog(name.id, int(reply[0]), partial(self._stop, name))
                turn = FollowedTurn(name, log, self._worker, self._lease, self._followed)
                turn.update(reply)
                self._followed[name.info] = turn
                self._submit(turn)
                self._check_copies_later()
        return log

    def _is_lost(self, name: TurnName, log: TurnLog) -> Steps[bool]:
        """Return whether a turn that was lost has not continued in its process since then."""
        reply = yield read(name, self._settings.process, log.last + 1, asks=False)
        end = log.end and log.end.to_json()
        return bool(reply and int(reply[2]) == log.last and as_bytes(reply[3]) == end)

    def _submit(self, turn: PublishedTurn | FollowedTurn) -> None:
        self._worker.submit(turn.steps)
        self._worker.submit(self._lease.steps)

    def _own_log(self, name: TurnName) -> TurnLog | None:
        turns = reversed(self._published.copy().values())
        own = (turn for turn in turns if turn.name.session == name.session)
        return next((turn.log for turn in own if not turn.is_released), None)

    def _known_log(self, name: TurnName) -> TurnLog | None:
        if own := self._published.get(name.info):
            return own.log
        log = self._followed_log(name)
        return None if log is None or (log.end is not None and log.end.is_of_copy) else log

    def _lost_log(self, name: TurnName) -> TurnLog | None:
        log = self._followed_log(name)
        return log if log and log.end and isinstance(log.end.error, ReaderLost) else None

    def _followed_log(self, name: TurnName) -> TurnLog | None:
        followed = self._followed.get(name.info)
        return followed and followed.log()

    def _stop(self, name: TurnName, reason: str) -> None:
        self._call(self._request_stop(name, reason))

    def _request_stop(self, name: TurnName, reason: str) -> Steps[None]:
        # A request to stop a turn starts with random characters, so that the process that reads the
        # turn can distinguish two requests with the same reason.
        yield run_script(scripts.STOP, (name.info,), f"{urandom(8).hex()} {reason}")

    def _run_worker(self) -> None:
        _suppress_instrumentation()
        self._worker.run()
        # `close` did not end the copies of turns that were created while it ran. End them here.
        self._end_copies(ClientClosed, CLOSED)
        self._worker_ended.set()
        # This message wakes the listener thread. If Redis fails, the listener thread ends after its
        # next timeout.
        with suppress(Exception):
            self._client.execute_command("PUBLISH", self._settings.process, "")

    def _listen(self) -> None:
        _suppress_instrumentation()
        self._subscription.run(self._worker_ended)
        self._threads[0].join()
        for client in self._owned_clients:
            client.close()

    def _check_question(self, key: str) -> None:
        self._worker.submit(partial(self._end_lost, key))

    def _check_turns(self, key: str | None) -> None:
        """Schedule a check of the turn with this key. If `key` is None, check all turns.

        All turns are checked if the connection failed, because messages may have been lost.
        """
        published, followed = self._published.copy(), self._followed.copy()
        for info in published if key is None else published.keys() & {key}:
            self._worker.submit(published[info].steps)
        if key is None:
            for turn in followed.values():
                turn.ask()
        elif key in followed:
            self._worker.submit(followed[key].steps)

    def _end_lost(self, key: str) -> Steps[None]:
        """End a turn in Redis that this process has finished.

        Redis has the turn as a running turn if Redis was restored from older data.
        """
        followed = self._followed.get(key)
        is_own = followed is None or followed.process == self._settings.process
        if (
            is_own
            and key not in self._published
            and (yield lose(key, self._settings.process, self._settings))
        ):
            yield "PUBLISH", self._settings.everyone, key

    def _check_copies_later(self) -> None:
        if not self._is_checking:
            self._is_checking = True
            self._time.alarm(monotonic() + self._settings.check, self._check_copies)

    def _check_copies(self) -> None:
        # A copy that is added during this call starts a new alarm, or this call finds the copy.
        self._is_checking = False
        turns = self._followed.copy().values()
        for turn in turns:
            turn.check()
        if any(turn.is_running for turn in turns):
            self._check_copies_later()

    def _end_copies(self, kind: type[Flux0Error], problem: str) -> None:
        for turn in self._followed.copy().values():
            turn.give_up(kind, problem)


def _suppress_instrumentation() -> None:
    """Prevent spans of OpenTelemetry's instrumentation of redis in this thread.

    The thread does not belong to a request, so the instrumentation records each command as a
    separate trace.
    """
    if context := sys.modules.get("opentelemetry.context"):
        context.attach(context.set_value("suppress_instrumentation", value=True))
