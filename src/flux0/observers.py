"""Observers: objects that a client calls when calls, attempts and turns start and end.

Use observers for metrics, traces and logs. An example is `flux0.adapters.opentelemetry`.

    class CountTurns(Observer):
        def on_turn_end(self, call: Call, turn: TurnEnd) -> None:
            turns[turn.ending] += 1

    client = Flux0(observers=[CountTurns()])
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from attrs import frozen

from flux0.domain.errors import AgentError, Flux0Error
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.messages.tool_calls import TimedToolCall

TurnEnding: TypeAlias = Literal["confirmed", "unconfirmed", "interrupted", "closed"]
"""How a turn ended: as in `EventStream.ending`, or "closed" if its stream was closed early."""


@frozen(eq=False)
class Call:
    """An API call.

    All methods of an observer get the same object for one call, so the object can be the key of a
    dict.

    Attributes:
        operation: the call's name, such as `agents.list`.
        method: the HTTP method of the call's requests.
        url: the URL of the call's requests, without credentials.
        route: the path with placeholders instead of ids.
        session_id: the session id, if the call belongs to a session; otherwise None.
        agent_id: the agent's id, if you passed an agent (or its id) or a `Session` object to
            `conversation`; otherwise None.
        agent_name: the agent's name, if you passed an `Agent` object to `conversation`; otherwise
            None.
        content: the user's message, if the call starts a turn; otherwise None.
    """

    operation: str
    method: str
    url: str
    route: str
    session_id: str | None = None
    agent_id: str | None = None
    agent_name: str | None = None
    content: str | None = None

    @property
    def starts_turn(self) -> bool:
        """Whether a turn starts if the call succeeds."""
        return self.content is not None


@frozen
class AttemptEnd:
    """The end of one attempt. For a stream, an attempt ends when the response head was received.

    Attributes:
        number: the attempt's number; the first attempt is 1.
        seconds: the attempt's duration in seconds.
        status_code: the HTTP status of the response; None if no response was received.
        error: the exception that the attempt raised, for example an `APIError` for an error status;
            None if the attempt succeeded.
    """

    number: int
    seconds: float
    status_code: int | None
    error: BaseException | None


@frozen
class CallEnd:
    """The end of a call with all its attempts.

    Attributes:
        seconds: the call's duration in seconds, including the waits between the attempts.
        error: the exception that the call raises, or the cancellation if closing the client ends an
            async call; None if the call succeeded.
    """

    seconds: float
    error: BaseException | None


@frozen
class TurnEnd:
    """The end of a turn. A turn ends when its stream ends or is closed.

    Attributes:
        ending: `"closed"` if the stream was closed or garbage-collected before its end; otherwise
            the value of `EventStream.ending`.
        error: the exception that reading the stream raised; None if reading did not fail.
        agent_error: the last error that the agent reported; None if there was none.
        session_id: the id of the turn's session.
        correlation_id: the turn's id; None if no status or chunk was received.
        agent_id: the agent's id, from the first chunk or the `Call`; None if unknown.
        agent_name: the agent's name, from the first chunk or the `Call`; None if unknown.
        event_count: the number of events that were received.
        seconds_to_first_event: the seconds from sending the message to the first event; None if no
            event was received.
        seconds: the seconds from sending the message to the turn's end.
        messages: the messages and tool results that were received.
        tool_calls: the tool calls that were received, with their durations.
    """

    ending: TurnEnding
    error: Flux0Error | None
    agent_error: AgentError | None
    session_id: str
    correlation_id: str | None
    agent_id: str | None
    agent_name: str | None
    event_count: int
    seconds_to_first_event: float | None
    seconds: float
    messages: tuple[TurnMessage, ...] = ()
    tool_calls: tuple[TimedToolCall, ...] = ()


class Observer:
    """The base class of observers. Override the methods that you need.

    The methods run in the thread or task that makes the call or reads the stream. They must return
    quickly, and several threads may call them at the same time. Exceptions of an observer do not
    affect the call: the first exception is logged, and later exceptions are ignored.
    """

    def on_call_start(self, call: Call) -> None:
        """Handle the start of a call, before its first attempt."""

    def on_attempt_start(self, call: Call, number: int) -> Mapping[str, str] | None:
        """Handle the start of an attempt. The first attempt has the number 1.

        Return header fields to add to the request, such as `traceparent`, or None.
        """

    def on_attempt_end(self, call: Call, attempt: AttemptEnd) -> None:
        """Handle the end of an attempt."""

    def trace_parent(self, call: Call) -> str | None:  # noqa: ARG002 - for subclasses
        """Return the value of a header `traceparent` for the span of a background turn, or None.

        The client calls this method after the message of a background turn was sent. W3C Trace
        Context, section 3.2, defines the format of the value. `BackgroundTurn.trace_parent` returns
        the value, even in other processes. A value that no header field can have is logged as an
        error of the observer, and ignored.
        """
        return None

    def on_call_end(self, call: Call, end: CallEnd) -> None:
        """Handle the end of a call. If the call started a turn, `on_turn_end` is called later."""

    def on_first_event(self, call: Call, seconds: float) -> None:
        """Handle the first event of a turn, `seconds` after the message was sent."""

    def on_turn_end(self, call: Call, turn: TurnEnd) -> None:
        """Handle the end of a turn. This method is called once for each turn.

        Usually, this method is called when the turn ends. If the garbage collector closes the
        stream, or your generator is closed while it is suspended in the `with` block of a sync
        stream, the call is delayed until the client's next call, or until the client is closed. The
        reason: an observer that waits for a lock while the garbage collector runs may wait forever.
        """
