"""The base class of the sync and the async stream."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeAlias

from flux0.domain.enums import SessionStatus
from flux0.domain.errors import AgentError, ClientClosed, Flux0Error, StreamError, TransportError
from flux0.domain.headers import Headers
from flux0.domain.http import is_behind_proxy
from flux0.domain.messages.accumulator import MessageAccumulator
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.messages.history import answer_of, joined_history
from flux0.domain.messages.json_patch import copied
from flux0.domain.messages.tool_calls import joined_tool_calls, timed_tool_calls
from flux0.domain.safe_text import escaped
from flux0.domain.stored_models import Events, Participant, ToolCall
from flux0.domain.uncopyable import Uncopyable
from flux0.observers import TurnEnd
from flux0.ports import Response
from flux0.turns.reader import Reader, ReaderRole
from flux0.turns.turn import READABLE, LifeCycle, State, Transition, Turn
from flux0.turns.turn_content import TurnContent
from flux0.turns.turn_report import TurnReport

Ending: TypeAlias = Literal["confirmed", "unconfirmed", "interrupted"]

CLOSED_EARLY: Final = "the stream was closed before its end"
_DO_NOTHING: Final = int  # a function of C that has no effect
_CONNECTED: Final = (*READABLE, State.CLOSING)


class _NoBody:
    def read(self, timeout: float | None) -> None: ...

    async def read_async(self, timeout: float | None) -> None: ...

    def close(self) -> None: ...

    async def close_async(self) -> None: ...


class StreamState(Uncopyable):
    """The base class of `EventStream` and `AsyncEventStream`. It does no input or output.

    Attributes:
        headers: The response's header fields.
        raw_response: The HTTP library's response object.
    """

    def __init__(
        self,
        response: Response[Any],
        turn: Turn,
        accumulator: MessageAccumulator,
        list_stored: Callable[..., Any],
        report: TurnReport,
        clock: Callable[[], float],
    ) -> None:
        self.headers: Headers = response.headers
        self.raw_response: Any = response.raw_response
        self._turn = turn
        self._list_stored = list_stored
        self._clock = clock
        self._is_provable = not (response.close_delimited or is_behind_proxy(response.headers))
        self._content = TurnContent(accumulator)
        self._life = LifeCycle()
        self._role = ReaderRole(self._running, turn)
        self._lock = self._role.lock
        self._report = report
        self._bind(response.body)

    _running: ClassVar[staticmethod[[], object]]  # Returns the running thread or task.

    @abstractmethod
    def _bind(self, body: Any) -> None: ...

    @abstractmethod
    def _values(self, take: Callable[[], Any], reader: Reader | None = None) -> Any: ...

    if not TYPE_CHECKING:
        # At the end of a stream, a function of C replaces `_on_freed`: an exception of a signal
        # handler would be lost in Python code that runs when the stream is freed.
        __del__ = property(attrgetter("_on_freed"))

    def _on_freed(self) -> None:
        # No report: `__init__` was interrupted. No `State`: the module is cleared at exit (no GIL).
        report = globals()["State"] and getattr(self, "_report", None)
        if report is not None and report.seconds is None:
            self._close_from_finalizer(CLOSED_EARLY)

    def __repr__(self) -> str:
        state = self._life.current.state.value
        turn = "" if self.correlation_id is None else f" of {escaped(self.correlation_id)}"
        return f"<{type(self).__name__} {state}, {self.event_count} events{turn}>"

    @property
    def correlation_id(self) -> str | None:
        """The id that all events of this turn share; None until a status or chunk is received."""
        return self._turn.correlation_id

    @property
    def event_count(self) -> int:
        """The number of events received so far."""
        return self._turn.event_count

    @property
    def finished(self) -> bool:
        """Whether the stream was read to its end, and the end is confirmed: see `ending`."""
        return self.ending == "confirmed"

    @property
    def ending(self) -> Ending | None:
        """How the stream ended; None while it is open, or if it was closed early.

        - `"confirmed"`: the framing of the response proves that the turn is complete.
        - `"unconfirmed"`: the response ended without an error, but its framing does not prove that
          the turn is complete. Either the response has no length and no chunks: then it ends when
          the connection closes, even if the server was killed. Or the `via` or `server` header
          names a proxy: if the server is killed, a proxy such as nginx may still send a valid last
          chunk.
        - `"interrupted"`: reading raised an error.
        """
        state = self._life.current.state
        if state is State.FAILED:
            return "interrupted"
        if state is not State.ENDED:
            return None
        return "confirmed" if self._is_provable else "unconfirmed"

    @property
    def is_open(self) -> bool:
        """Whether the stream still has its connection: it has not ended, failed or been closed."""
        return self._life.current.state in _CONNECTED

    @property
    def is_being_read(self) -> bool:
        """Whether a thread or a task is waiting for the next event."""
        return self._lock.locked()

    @property
    def messages(self) -> tuple[TurnMessage, ...]:
        """The turn's messages, built from the events yielded so far.

        A tool call is included even if its arguments are incomplete; then `args` is a string.

        Any thread can use this attribute while another thread reads the stream. A signal handler
        that has interrupted a use of this attribute gets an empty tuple.
        """
        return self._content.messages

    @property
    def answer(self) -> str:
        """The agent's answer so far as text, without the agent's reasoning.

        A line break separates messages.
        """
        return answer_of(self.messages)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The agent's tool calls so far, each with its result if the result was received."""
        return joined_tool_calls(self.messages)

    @property
    def status(self) -> SessionStatus | str | None:
        """The status in the last `StatusEvent` that was yielded; None if there was none."""
        self._content.fold()
        return self._content.status

    @property
    def error(self) -> AgentError | None:
        """The last error that the agent reported, as an exception; None if there is none.

        Iterating over the events does not raise this error; `text` and `final_messages` do.
        """
        error = self._reported_error()
        if error is not None:
            error.attach_stream(self.messages, self._stored)
        return error

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self._report.session_id

    @property
    def agent(self) -> Participant | None:
        """The agent, from the metadata of the first chunk event.

        Before the first chunk, it is the agent that you passed to `conversation`, or the agent of
        the session that you passed; None if you passed only the id of a session.
        """
        chunks = self._content.first_chunks
        if not chunks:
            known = self._report.agent
            return None if known.id is None else known
        names = (chunks[0].metadata.get(key) for key in ("agent_id", "agent_name"))
        return Participant(*(None if name is None else str(name) for name in names))

    @property
    def seconds_to_first_event(self) -> float | None:
        """Seconds from sending the message to the first event; None before the first event."""
        return self._report.seconds_to_first_event

    @property
    def seconds(self) -> float | None:
        """Seconds from sending the message to the stream's end; None while it is open."""
        return self._report.seconds

    def mark_relayed(self) -> TurnReport:
        """Log the error of the turn, and end the turn soon after an error of the agent."""
        self._turn.mark_relayed()
        self._report.is_relayed = True
        return self._report

    def mark_closed(self, reason: str) -> None:
        """Mark the stream as closed, so that its reader raises `ClientClosed(reason)`.

        The connection stays open until `close`.
        """
        self._life.move(Transition(State.CLOSING, reason))

    def received(self, reader: Reader | None = None) -> Any:
        """Iterate over the events in lists. The events in one list were received together."""
        return self._values(self._content.take_all, reader)

    def _mark_released(self) -> None:
        self._life.move(Transition(State.CLOSED, self._life.current.reason))

    def _close_from_finalizer(self, reason: str) -> None:
        self.mark_closed(reason)
        # A finalizer cannot await `close_async` of an async response body. Drop the reference to
        # the body, so that the body's own finalizer releases the connection.
        self._bind(_NoBody())
        self._mark_released()
        self._report_end(later=True)

    def _report_end(self, *, later: bool = False) -> None:
        """Report the turn's end to the observers, unless it was reported already.

        If the garbage collector may call this method, pass `later=True`: the report then waits for
        the client's next call, because an observer may wait for a lock.
        """
        self._report.mark_ended()
        self.__dict__["_on_freed"] = _DO_NOTHING
        if later or self._content.is_interrupted:
            self._report.postpone(self._report_end)
        else:
            self._report.end(self._describe_end, failed=self._life.current.failure is not None)

    def _describe_end(self, with_messages: bool) -> TurnEnd:
        agent = self.agent
        # An observer can change the messages in a `TurnEnd`, so they must not be the same objects
        # as in `self.messages`, which the user gets.
        messages = self._content.finish(partial=True) if with_messages else ()
        times = {chunk.event_id: chunk.timestamp for chunk in self._content.first_chunks}
        return TurnEnd(
            ending=self.ending or "closed",
            error=self._life.current.failure,
            # `agent_error` must not be `self.error`: an observer can store the error, and
            # `self.error` keeps the messages and the client in memory.
            agent_error=self._reported_error(),
            session_id=self.session_id,
            correlation_id=self.correlation_id,
            agent_id=None if agent is None else agent.id,
            agent_name=None if agent is None else agent.name,
            event_count=self.event_count,
            seconds_to_first_event=self.seconds_to_first_event,
            seconds=self.seconds or 0.0,
            messages=messages,
            tool_calls=timed_tool_calls(messages, times),
        )

    def _reported_error(self) -> AgentError | None:
        self._content.fold()
        event = self._content.agent_error
        if event is None:
            return None
        # An observer can change the data of the error that it gets. The error has a copy of the
        # data, because the user gets the data in `event`.
        return self._turn.attach_request(AgentError(copied(event.data.data)))

    def _raise_agent_error(self) -> None:
        if (error := self.error) is not None:
            raise error

    @property
    def _stored(self) -> Callable[..., Any]:
        # The stream stores its error, and the error stores the function that `_stored` returns.
        # This function must not refer to the stream: such a cycle stays in memory.
        return partial(_stored_events, self._list_stored, self.correlation_id)

    def _enter(self) -> None:
        self._raise_failure()
        self._life.move(Transition(State.ENTERED))

    def _raise_failure(self) -> None:
        last = self._life.current
        if (failure := last.failure) is not None:
            if isinstance(failure, StreamError):
                failure.attach_stream(self.messages, self._stored)
            raise failure
        if last.reason:
            raise self._turn.attach_request(ClientClosed(last.reason))

    def _is_readable(self) -> bool:
        if self._life.current.state in READABLE:
            return True
        self._raise_failure()
        return False

    def _is_left(self) -> bool:
        is_read = self._role.has_loop() or self.is_being_read
        return not is_read and self._life.current.state is not State.ENTERED

    def _take_text(self) -> str:
        """Take events until one of them appends text to the answer, and return this text.

        Return an empty string if no unread event appends text. Raises `AgentError` and, in a signal
        handler that has interrupted this method, `StreamInUse`.
        """
        content = self._content
        if taken := content.exclusively(content.take_text):
            if content.agent_error is not None:
                self._raise_agent_error()
        elif content.unread and content.is_interrupted:
            raise self._role.in_use()
        return "".join(taken)

    def _interrupt(self, problem: str) -> None:
        failure = self._turn.interrupted(f"the stream ended, but {problem}")
        self._life.move(Transition(State.FAILED, failure=failure))

    @contextmanager
    def _checking(self) -> Generator[None, None, None]:
        try:
            yield
        except Flux0Error as error:
            self._interrupt(f"the stored events could not be listed: {error}")
        self._raise_failure()

    def _compare_with_stored(self, stored: Events) -> None:
        if joined_history(stored, self._content.finish()) != joined_history(stored, ()):
            self._interrupt("the server has not stored all messages of the turn")

    def _needs_check(self) -> bool:
        """Return whether `confirm` must compare the messages with the stored events.

        If the end is unconfirmed, log a warning. If the stream has not ended, raise an error.
        """
        if self._is_readable():
            problem = "the stream has not been read to its end: read all events before confirm()"
            raise self._turn.attach_request(Flux0Error(problem))
        if self.ending != "unconfirmed":
            return False
        self._report.unconfirmed_end()
        return bool(self._content.finish())

    def _feed_turn(self, began: float, data: bytes | None) -> Transition | None:
        """Process the body's next bytes (`data`), or None at the body's end.

        `began` is the time when the wait for `data` began. Return the transition that ends the
        stream, or None if the turn continues.
        """
        if data is None:
            failure = self._turn.on_end()
            return Transition(State.FAILED if failure else State.ENDED, failure=failure)
        events, failure = self._turn.feed(data, self._clock() - began)
        if events:
            self._content.add(events, len(data))
            if self._report.seconds_to_first_event is None:
                self._report.first_event()
        return None if failure is None else Transition(State.FAILED, failure=failure)

    def _on_transport_error(self, error: TransportError) -> Transition:
        if reason := self._life.current.reason:  # Another thread or task has closed the stream.
            raise self._turn.attach_request(ClientClosed(reason)) from error
        return Transition(State.FAILED, failure=self._turn.on_transport_error(error))


def _stored_events(
    list_stored: Callable[..., Any], correlation_id: str | None, **options: Any
) -> Any:
    if correlation_id is None:
        problem = "the stored events cannot be listed before the first event with a correlation id"
        raise Flux0Error(problem)
    return list_stored(correlation_id=correlation_id, **options)
