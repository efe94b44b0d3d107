"""The base class of the sync and the async stream."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any, Literal, TypeAlias

from flux0.client.turn_report import TurnReport
from flux0.client.uncopyable import Uncopyable
from flux0.domain.enums import SessionStatus
from flux0.domain.errors import AgentError, ClientClosed, Flux0Error, StreamError, TransportError
from flux0.domain.headers import Headers
from flux0.domain.messages.accumulator import MessageAccumulator
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.messages.history import answer_of, joined_history
from flux0.domain.messages.tool_calls import joined_tool_calls, timed_tool_calls
from flux0.domain.safe_text import escaped
from flux0.domain.stored_models import Events, Participant, ToolCall
from flux0.domain.stream_events import StatusEvent, StreamEvent
from flux0.observers import TurnEnd
from flux0.ports import Response
from flux0.usecases.turn import Turn

Ending: TypeAlias = Literal["confirmed", "unconfirmed", "interrupted"]

CLOSED_EARLY = "the stream was closed before its end"


class StreamState(Uncopyable):
    """The base class of `EventStream` and `AsyncEventStream`. It does no input or output.

    Attributes:
        headers: The header fields of the response.
        raw_response: The response object of the HTTP library.
    """

    def __init__(
        self,
        response: Response[Any],
        turn: Turn,
        accumulator: MessageAccumulator,
        list_stored: Callable[..., Any],
        report: TurnReport,
    ) -> None:
        self.headers: Headers = response.headers
        self.raw_response: Any = response.raw_response
        self._turn = turn
        self._list_stored = list_stored
        self._clock = report.clock
        self._is_provable = not (response.close_delimited or _is_behind_proxy(response.headers))
        self._accumulator = accumulator
        self._text = ""  # The text that the last event appended to the answer.
        self._status: SessionStatus | str | None = None
        self._agent_error: StatusEvent | None = None
        self._batch: Iterator[StreamEvent] = iter(())
        self._entered = False
        self._closed = ""  # The reason why the stream was closed; empty while it is open.
        self._ended = False
        self._released = False  # Whether the connection was released.
        self._reader_lock = Lock()
        self._report = report
        # Whether `_report_end` must call the observers later: True if the garbage collector may be
        # calling `_report_end`, because observers may wait for locks.
        self._report_later = False
        self._bind(response.body)

    @abstractmethod
    def _bind(self, body: Any) -> None:
        """Store the functions that read and close `body`."""

    def __del__(self) -> None:
        if self._report.seconds is None:
            self._report_later = True
            self._report_end()

    def __repr__(self) -> str:
        failed = self._turn.failure is not None
        state = (
            "failed" if failed else "ended" if self._ended else "closed" if self._closed else "open"
        )
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
        if self._turn.failure is not None:
            return "interrupted"
        if not self._ended:
            return None
        return "confirmed" if self._is_provable else "unconfirmed"

    @property
    def is_open(self) -> bool:
        """Whether the stream still has its connection: it has not ended, failed or been closed."""
        return not (self._ended or self._released)

    @property
    def is_being_read(self) -> bool:
        """Whether a thread or a task is waiting for the next event."""
        return self._reader_lock.locked()

    @property
    def messages(self) -> tuple[TurnMessage, ...]:
        """The messages of the turn, built from the events yielded so far.

        A tool call is included even if its arguments are incomplete; then `args` is a string.
        """
        return self._accumulator.messages

    @property
    def answer(self) -> str:
        """The text of the agent's answer so far, without the reasoning, as in `Reply.text`.

        A line break separates messages.
        """
        return answer_of(self.messages)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls of the agent so far, each with its result if the result was received."""
        return joined_tool_calls(self.messages)

    @property
    def status(self) -> SessionStatus | str | None:
        """The status in the last `StatusEvent` that was yielded; None if there was none."""
        return self._status

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
        """The id of the session."""
        return self._report.session_id

    @property
    def agent(self) -> Participant | None:
        """The agent, from the metadata of the first chunk event.

        Before the first chunk, it is the agent that you passed to `conversation`, or the agent of
        the session that you passed; None if you passed only the id of a session.
        """
        chunks = self._accumulator.first_chunks
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
        """Seconds from sending the message to the end of the stream; None while it is open."""
        return self._report.seconds

    def mark_closed(self, reason: str) -> None:
        """Record why the stream is closed. Its reader then raises `ClientClosed(reason)`."""
        self._closed = self._closed or reason

    def _fold(self, event: StreamEvent) -> None:
        """Update the messages, the status and the agent error with `event`."""
        if type(event) is StatusEvent:
            self._text = ""
            self._status = event.data.status
            if self._status == SessionStatus.ERROR:
                self._agent_error = event
        else:
            self._text = self._accumulator.feed(event)

    def _report_end(self) -> None:
        """Report the end of the turn, unless it was reported already."""
        self._report.end(self._describe_end, later=self._report_later)

    def _describe_end(self, with_messages: bool) -> TurnEnd:
        agent = self.agent
        # Do not use `self.messages`: the user gets these objects, and an observer may change them.
        messages = self._accumulator.finish(partial=True) if with_messages else ()
        times = {chunk.event_id: chunk.timestamp for chunk in self._accumulator.first_chunks}
        return TurnEnd(
            ending=self.ending or "closed",
            error=self._turn.failure,
            # Do not use `self.error`: it refers to this stream, and an observer may store it.
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
        event = self._agent_error
        return None if event is None else self._turn.attach_request(AgentError(event.data.data))

    def _raise_agent_error(self) -> None:
        if (error := self.error) is not None:
            raise error

    def _stored(self, **options: Any) -> Any:
        if self.correlation_id is None:
            raise Flux0Error(
                "the stored events cannot be listed before the first event with a correlation id"
            )
        return self._list_stored(correlation_id=self.correlation_id, **options)

    def _enter(self) -> None:
        self._raise_failure()
        self._entered = True

    def _raise_failure(self) -> None:
        """Raise an error if the turn has failed, or if the stream was closed before its end."""
        failure = self._turn.failure
        if failure is not None:
            if isinstance(failure, StreamError):
                failure.attach_stream(self.messages, self._stored)
            raise failure
        if self._closed and not self._ended:
            raise self._client_closed()

    def _client_closed(self) -> ClientClosed:
        return self._turn.attach_request(ClientClosed(self._closed))

    def _compare_with_stored(self, stored: Events) -> None:
        """Mark the turn as interrupted unless the server has stored all received messages."""
        if joined_history(stored, self._accumulator.finish()) != joined_history(stored, ()):
            self._turn.mark_interrupted(
                "the stream ended, but the server has not stored all its messages"
            )

    def _needs_check(self) -> bool:
        """Return whether `confirm` must compare the messages with the stored events.

        If the end is unconfirmed, log a warning. If the stream has not ended, raise an error.
        """
        self._raise_failure()
        if not self._ended:
            problem = (
                "the stream has not been read to its end yet: read all events before confirm()"
            )
            raise self._turn.attach_request(Flux0Error(problem))
        if self.ending != "unconfirmed":
            return False
        self._report.unconfirmed_end()
        return bool(self._accumulator.finish())

    def _feed_turn(self, data: bytes | None, began: float) -> bool:
        """Feed `data`, a piece of the body or None for its end. Return whether the turn ended.

        `began` is the time when the wait for `data` began.
        """
        if data is None:
            # If another thread or task closes the body, some transports end it without an error.
            if self._closed:
                raise self._client_closed()
            self._turn.on_end()
            self._ended = self._turn.failure is None
        else:
            events = self._turn.feed(data)
            if not events:
                self._turn.add_wait(self._clock() - began)
            elif self._report.seconds_to_first_event is None:
                self._report.first_event()
            self._batch = iter(events)
        return self._ended or self._turn.failure is not None

    def _on_transport_error(self, error: TransportError) -> None:
        if self._closed:  # The error occurred because another thread or task closed the stream.
            raise self._client_closed() from error
        self._turn.on_transport_error(error)


def _is_behind_proxy(headers: Headers) -> bool:
    """Return whether the `via` or `server` header names a proxy.

    The `server` header of a flux0 server is "uvicorn".
    """
    return "via" in headers or not headers.get("server", "uvicorn").lower().startswith("uvicorn")
