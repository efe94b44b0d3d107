"""Background turns: turns that are read to their end, even if no reader is left."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, final

from flux0.client.conversation import AsyncConversation, Conversation
from flux0.client.resources import Message
from flux0.domain import arguments
from flux0.domain.background_errors import ReaderLost, TurnRunning, TurnStoreError
from flux0.domain.errors import ClientClosed, Flux0Error, InvalidArgument, fresh
from flux0.domain.timeouts import duration
from flux0.domain.uncopyable import Uncopyable
from flux0.runtime.event_loop import has_ended
from flux0.runtime.processes import PerProcess
from flux0.runtime.time import SystemTime
from flux0.runtime.turn_log import TurnLog
from flux0.turn_store import TurnStats, TurnStore
from flux0.turns.background_turn import BackgroundTurn, TaskReading, ThreadReading, TurnReading
from flux0.turns.log_relay import OpenRelays, check_loop, wait_for_end, wait_for_end_async
from flux0.turns.memory_store import MemoryTurnStore
from flux0.usecases.options import TurnOptions, show_options

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")
R = TypeVar("R", ThreadReading, TaskReading)

# The longest time in seconds that `stop`, `start` and `close` wait until a stopped turn has ended.
_MAX_STOP_SECONDS: Final = 10.0
# The seconds between two checks whether an event loop that reads turns has ended. The checks are
# necessary, because an event loop does not notify other threads when it ends.
_CHECK_SECONDS: Final = 0.5
# The seconds between two searches of `stop` for a running turn.
_FIND_SECONDS: Final = 0.1

_STOPPED: Final = "the turn was stopped"
_ANOTHER_MESSAGE: Final = (
    "the turn was stopped by another message on its session: a session has one turn at a time"
)
_CLOSED: Final = "this BackgroundTurns is closed"


class _OwnTurns:
    def __init__(self) -> None:
        self.relays: OpenRelays = OpenRelays()
        self._readings: dict[TurnReading[Any], None] = {}
        self._is_watching = False
        self.time: SystemTime = SystemTime()

    def add(self, reading: TurnReading[Any]) -> None:
        self._readings[reading] = None
        if isinstance(reading, TaskReading):
            self._watch()

    def remove(self, reading: TurnReading[Any]) -> None:
        self._readings.pop(reading, None)

    def running(self) -> tuple[TurnReading[Any], ...]:
        # The thread of a turn calls `remove` just after the end of the log.
        return tuple(each for each in self._readings.copy() if not each.log.is_ended)

    def _watch(self) -> None:
        if not self._is_watching:
            self._is_watching = True
            self.time.alarm(monotonic() + _CHECK_SECONDS, self._check_loops)

    def _check_loops(self) -> None:
        self._is_watching = False
        readings = [each for each in self.running() if isinstance(each, TaskReading)]
        for reading in readings:
            if has_ended(reading.loop):
                reading.lose()
        if readings:
            self._watch()


@final
@show_options
class BackgroundTurns(Uncopyable):
    """Sends messages, and reads their turns to the end in the background, even without a relay.

        turns = BackgroundTurns()
        turn = turns.start(conversation, "Hello")
        for piece in turn.relay():  # the turn continues if the relay is closed
            print(piece)

    A session has at most one running turn. If several processes share a store, a reader can join or
    stop a turn in any of these processes.

    Sync methods take a `Conversation`, and read its turn in a daemon thread. Async methods take an
    `AsyncConversation`, and read its turn in a task of the running loop, under asyncio or trio.
    Sync and async code can join each turn. If the event loop or the process ends before the turn,
    the relays end with a `ReaderLost`.

    Turns are found by their session id, so use one `BackgroundTurns` for each server. If several
    `BackgroundTurns` share a Redis, give each `RedisTurnStore` its own prefix.

    Call `close` or `close_async` before the process or the event loop ends.

    Args:
        store: The store of the turns. With a `MemoryTurnStore` (the default), only this process
            finds the turns; with a `RedisTurnStore`, all processes that use the same Redis find
            them. Create a store for each `BackgroundTurns`, because `close` also closes the store.
        max_turn_bytes: The size limit of all kept events of one turn. Default: 16 MiB. When a turn
            exceeds this limit, its oldest events are dropped, and the turn continues. A reader that
            has not yet read a dropped event gets a `TurnTooLarge`.
    """

    def __init__(
        self, store: TurnStore | None = None, *, max_turn_bytes: int = 16 * 1024 * 1024
    ) -> None:
        store = MemoryTurnStore() if store is None else store
        self._store = arguments.instance("store", TurnStore, store)  # type: ignore[type-abstract]
        self._max_bytes = arguments.integer("max_turn_bytes", max_turn_bytes, smallest=1)
        self._own = PerProcess(_OwnTurns)
        self._is_closed = False

    def start(
        self,
        conversation: Conversation,
        content: str,
        *,
        running: Literal["stop", "refuse"] = "stop",
        **options: Unpack[TurnOptions],
    ) -> BackgroundTurn:
        """Send a message, and read the turn to its end in the background.

        The options are the same as for `Conversation.send`.

        Args:
            conversation: The conversation of the session in which to send the message.
            content: The message's text.
            running: The action if the session has a running background turn, in any process that
                shares the store. `"stop"` stops that turn, waits until it has ended, and then sends
                the message; `"refuse"` raises `TurnRunning`.

        Raises:
            TurnRunning: A turn is running, and `running` is `"refuse"`, or the turn did not end
                within 10 s after it was stopped. The message was not sent.
            TurnStoreError: The store cannot be used. The message was not sent.
            ClientClosed: This `BackgroundTurns` is closed. The message was not sent.
            Flux0Error: The errors of `Conversation.send`.
        """
        _check_conversation(Conversation, conversation, AsyncConversation, "start_async")
        # Create the message first, which checks the options: an invalid option must not stop the
        # session's running turn.
        message = Message(conversation.sessions, conversation.session_id, content, options)
        with self._starting(ThreadReading, conversation.session_id, running) as (reading, claim):
            _stop(claim(), _ANOTHER_MESSAGE)
            reading.start(message.send())
        return self._turn(conversation.session_id, reading.log)

    async def start_async(
        self,
        conversation: AsyncConversation,
        content: str,
        *,
        running: Literal["stop", "refuse"] = "stop",
        **options: Unpack[TurnOptions],
    ) -> BackgroundTurn:
        """The async version of `start`."""
        _check_conversation(AsyncConversation, conversation, Conversation, "start")
        session_id = conversation.session_id
        message = Message(conversation.sessions, session_id, content, options, is_async=True)
        with self._starting(TaskReading, session_id, running) as (reading, claim):
            await self._stop_async(await self._run(claim), _ANOTHER_MESSAGE)
            reading.start(await message.send_async())
        return self._turn(session_id, reading.log)

    def join(self, session_id: str) -> BackgroundTurn | None:
        """Return the running turn of a session, or the last turn if it is still kept.

        The store keeps a turn for a while after its end (`keep_seconds`). If the result is None,
        the server may have stored the reply: call `Conversation.find_turn`. Before you join a
        session whose id comes from a browser, check that it belongs to the user
        (`Conversation.belongs_to_user`).

        Raises:
            TurnStoreError: The store cannot be used.
        """
        log = self._store.find(arguments.identifier("session_id", session_id))
        return None if log is None else self._turn(session_id, log)

    async def join_async(self, session_id: str) -> BackgroundTurn | None:
        """The async version of `join`."""
        return await self._run(partial(self.join, session_id))

    def stop(self, session_id: str, *, wait_ms: int = 0) -> bool:
        """Stop the running turn of a session, and wait until it has ended.

        Stopping a turn closes its stream, which cancels the agent. The turn's relays end with a
        `TurnStopped`, in all processes. Return False if no turn was running.

        Args:
            session_id: The session's id.
            wait_ms: The longest time in milliseconds to wait for a turn to stop. If a user stops a
                message right after sending it, the request to stop may arrive before the other
                request has called `start`, in this process or in another process. Pass it only
                while the page waits for a reply: a later message within this time is stopped, too.

        Raises:
            TurnRunning: The turn did not end within 10 s.
            TurnStoreError: The store cannot be used.
        """
        log = self._find_running(session_id)
        for seconds in _intervals(wait_ms):
            if log is not None:
                break
            self._own.get().time.sleep(seconds)
            log = self._find_running(session_id)
        return _stop(log, _STOPPED)

    async def stop_async(self, session_id: str, *, wait_ms: int = 0) -> bool:
        """The async version of `stop`."""
        find = partial(self._find_running, session_id)
        log = await self._run(find)
        for seconds in _intervals(wait_ms):
            if log is not None:
                break
            await self._own.get().time.sleep_async(seconds)
            log = await self._run(find)
        return await self._stop_async(log, _STOPPED)

    def stats(self) -> TurnStats:
        """Return the numbers of turns and relays in this process. Acquires no lock."""
        own = self._own.get()
        is_draining = self._is_closed or own.relays.are_ended
        return TurnStats(len(own.running()), len(own.relays), is_draining, self._store.state())

    def end_relays(self) -> None:
        """End all relays in this process now. The turns continue, and their readers connect again.

        Call this method when the process must exit, and then `close` with `drain_seconds`: the web
        server need not wait until the turns have ended. The last event of each relay asks the
        browser to connect again (see `RelayEnded`). Relays that are opened later in this process
        end in the same way. Safe in any thread and in signal handlers: it acquires no lock.
        """
        self._own.get().relays.end()

    def close(self, *, drain_seconds: float = 0.0) -> None:
        """Wait for the running turns of this process, then stop them, and close the store.

        The relays of stopped turns end with a `ClientClosed`. Later calls of `start` raise
        `ClientClosed`. If the wait is interrupted or cancelled, the turns are stopped at once, and
        another call of `close` closes the store. In async code, call `close_async`.

        Args:
            drain_seconds: The longest time in seconds to wait until the turns have ended.
        """
        for reading in self._own.get().running():
            check_loop(reading.log)
        with closing(self._closing(drain_seconds)) as waits:
            for log, seconds in waits:
                wait_for_end(log, seconds)
        self._store.close()

    async def close_async(self, *, drain_seconds: float = 0.0) -> None:
        """The async version of `close`."""
        with closing(self._closing(drain_seconds)) as waits:
            for log, seconds in waits:
                await wait_for_end_async(log, seconds)
        await self._run(self._store.close)

    def _closing(self, drain_seconds: float) -> Generator[tuple[TurnLog, float], None, None]:
        """Close, and yield each log for whose end the caller must wait, with the longest wait."""
        ends = monotonic() + arguments.interval("drain_seconds", drain_seconds)
        self._is_closed = True
        readings = self._own.get().running()
        try:
            for reading in readings:
                yield reading.log, ends - monotonic()
        finally:
            for reading in readings:
                reading.stop(ClientClosed(_CLOSED))
        ends = monotonic() + _MAX_STOP_SECONDS
        for reading in readings:
            yield reading.log, ends - monotonic()

    @contextmanager
    def _starting(
        self, kind: type[R], session_id: str, running: str
    ) -> Generator[tuple[R, Callable[[], TurnLog | None]], None, None]:
        """Yield the reading of a new turn, and a function that claims the session for the turn.

        The function returns the log of a running turn that the caller must stop, or None. If the
        `with` block raises an error, the new turn ends with this error, and the claim is undone.
        """
        if running not in {"stop", "refuse"}:
            raise InvalidArgument("running", f'must be "stop" or "refuse", not {running!r}')
        own = self._own.get()
        reading = kind(partial(TurnLog, os.urandom(12).hex(), self._max_bytes), own.remove)
        own.add(reading)
        # `close` in another thread sets `_is_closed` before it lists the turns to stop. If `close`
        # has not found the turn that `own.add` has added, `_is_closed` is True here.
        if self._is_closed:
            reading.end()
            raise ClientClosed(_CLOSED)
        # The log before the new turn. The thread that takes it from the list undoes the claim: an
        # async caller can be cancelled while `claim` continues in its thread.
        claimed: list[TurnLog | None] = []

        def claim() -> TurnLog | None:
            previous: TurnLog | None = None
            try:
                previous = self._store.claim(session_id, reading.log, refuse=running == "refuse")
            finally:
                claimed.append(previous)
                if reading.log.is_ended:
                    undo()
            return None if reading.log.is_ended else _running(previous)

        def undo() -> None:
            with suppress(IndexError):
                self._store.release(session_id, reading.log, claimed.pop())

        try:
            yield reading, claim
        except BaseException as error:
            problem = f"the message could not be sent: {type(error).__name__}"
            reading.stop(fresh(error) if isinstance(error, Flux0Error) else Flux0Error(problem))
            reading.end()
            undo()
            raise

    def _turn(self, session_id: str, log: TurnLog) -> BackgroundTurn:
        return BackgroundTurn(session_id, log, self._own.get().relays)

    def _find_running(self, session_id: str) -> TurnLog | None:
        return _running(self._store.find(arguments.identifier("session_id", session_id)))

    async def _stop_async(self, log: TurnLog | None, reason: str) -> bool:
        if log is not None:
            await self._run(partial(log.stop, reason))
            await wait_for_end_async(log, _MAX_STOP_SECONDS)
            _check_ended(log)
        return log is not None

    async def _run(self, function: Callable[[], T]) -> T:
        if not self._store.blocking:
            return function()
        from flux0.runtime.threads import run_in_thread  # noqa: PLC0415 - loads anyio

        return await run_in_thread(function, TurnStoreError)


def _check_conversation(kind: type[Any], value: object, other: type[Any], method: str) -> None:
    if isinstance(value, other):
        problem = f"must be of type {kind.__name__}, not {other.__name__}: pass it to {method}"
        raise InvalidArgument("conversation", problem)
    arguments.instance("conversation", kind, value)


def _intervals(wait_ms: float) -> Iterator[float]:
    """Yield seconds to wait, until `wait_ms` have passed."""
    ends = monotonic() + arguments.interval("wait_ms", wait_ms) / 1000
    while (left := ends - monotonic()) > 0:
        yield min(left, _FIND_SECONDS)


def _running(log: TurnLog | None) -> TurnLog | None:
    return None if log is None or log.is_ended else log


def _stop(log: TurnLog | None, reason: str) -> bool:
    if log is not None:
        check_loop(log)
        log.stop(reason)
        wait_for_end(log, _MAX_STOP_SECONDS)
        _check_ended(log)
    return log is not None


def _check_ended(log: TurnLog) -> None:
    if log.end is None:
        limit = duration(_MAX_STOP_SECONDS)
        raise TurnRunning(f"the running turn did not end within {limit} after it was stopped")
    # This process's copy of the turn's log has ended, for example because Redis failed. The turn
    # itself can still be running in another process. After a `ReaderLost`, all processes that can
    # reach Redis know that the turn does not run.
    if log.end.is_of_copy and not isinstance(log.end.error, ReaderLost):
        raise TurnStoreError(f"the end of the running turn is not known: {log.end.error}")
