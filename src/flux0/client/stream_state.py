"""What the synchronous and the asynchronous stream both know about their turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any

from flux0.domain.enums import SessionStatus
from flux0.domain.errors import AgentError, ClientClosed, Flux0Error, StreamError, TransportError
from flux0.domain.headers import Headers
from flux0.domain.messages.accumulator import MessageAccumulator
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.messages.history import joined_history
from flux0.domain.messages.tool_calls import joined_tool_calls
from flux0.domain.models import Events, ToolCall
from flux0.domain.stream_events import StatusEvent, StreamEvent
from flux0.ports import Response
from flux0.usecases.turn import Turn

LEFT = "the stream was closed before its end"


class StreamInUse(Flux0Error, RuntimeError):
    """A stream has one reader at a time; the one that it has goes on."""

    def __init__(self) -> None:
        super().__init__("another thread or task is reading this stream; a stream has one reader")


class StreamState:
    """What both streams know about their turn.

    Attributes:
        headers: the header fields of the server's answer.
        raw_response: the HTTP library's own response.
    """

    def __init__(
        self,
        response: Response[Any],
        turn: Turn,
        accumulator: MessageAccumulator,
        list_stored: Callable[..., Any],
        clock: Callable[[], float],
    ) -> None:
        self.headers: Headers = response.headers
        self.raw_response: Any = response.raw_response
        self._turn = turn
        self._list_stored = list_stored
        self._clock = clock
        self._proven = not (response.close_delimited or _is_behind_proxy(response.headers))
        self._accumulator = accumulator
        self._text = ""  # What the last event added to the answer.
        self._status: SessionStatus | str | None = None
        self._agent_error: StatusEvent | None = None
        self._batch: Iterator[StreamEvent] = iter(())
        self._entered = False
        self._closed = ""  # Why, once it is.
        self._ended = False
        self._reading = Lock()

    def __repr__(self) -> str:
        failed = self._turn.failure is not None
        state = (
            "broken" if failed else "ended" if self._ended else "closed" if self._closed else "open"
        )
        turn = "" if self.correlation_id is None else f" of {self.correlation_id}"
        return f"<{type(self).__name__} {state}, {self.event_count} events{turn}>"

    @property
    def correlation_id(self) -> str | None:
        """The id that all events of this turn share; None until the first event that has one."""
        return self._turn.correlation_id

    @property
    def event_count(self) -> int:
        """How many events have arrived so far."""
        return self._turn.event_count

    @property
    def finished(self) -> bool:
        """Whether the stream was read to its end, and the end is known to be that of the turn.

        Where only closing the connection ends a stream, a server that was killed looks as if it had
        finished. A proxy may hide that: nginx makes a whole end of it by default. So behind a proxy
        that names itself, as in HTTP/1.0, `confirm` has to ask what the server has stored.
        """
        return self._ended and self._proven

    @property
    def messages(self) -> tuple[TurnMessage, ...]:
        """The turn's messages as they stand after the last event that was handed out.

        A tool call shows up while its arguments are on their way, as text.
        """
        return self._accumulator.messages

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tools that the agent has asked for so far, each with its result once there is one."""
        return joined_tool_calls(self.messages)

    @property
    def status(self) -> SessionStatus | str | None:
        """The last status that was handed out; None before the first."""
        return self._status

    @property
    def error(self) -> AgentError | None:
        """What the agent reported to have gone wrong, not raised; None if it reported nothing."""
        event = self._agent_error
        if event is None:
            return None
        error = AgentError(event.data.data)
        self._turn.attach_request(error)
        error.attach_stream(self.messages, self._stored)
        return error

    def _fold(self, event: StreamEvent) -> None:
        """Take in an event that is about to be handed out."""
        if type(event) is StatusEvent:
            self._text = ""
            self._status = event.data.status
            if self._status == SessionStatus.ERROR:
                self._agent_error = event
        else:
            self._text = self._accumulator.feed(event)

    def _raise_error(self) -> None:
        if (error := self.error) is not None:
            raise error

    def _stored(self) -> Any:
        if self.correlation_id is None:
            raise Flux0Error("no event has named the turn yet, so its events cannot be listed")
        return self._list_stored(correlation_id=self.correlation_id)

    def _enter(self) -> None:
        self._check()
        self._entered = True

    def _check(self) -> None:
        """Raise if nothing more can be pulled for a bad reason."""
        failure = self._turn.failure
        if failure is not None:
            if isinstance(failure, StreamError):
                failure.attach_stream(self.messages, self._stored)
            raise failure
        if self._closed and not self._ended:
            raise ClientClosed(self._closed)

    def _compare(self, stored: Events) -> None:
        """Take what the server has stored of a turn whose end nothing else proves."""
        said = self._accumulator.finish()
        if said and joined_history(stored, said) == joined_history(stored, ()):
            self._proven = True
        else:
            self._turn.mark_interrupted(
                "the stream ended, and the server has not stored what it said"
            )

    def _take(self, data: bytes | None, waited: float) -> bool:
        """Take the next piece of the body, or its end; say whether it was the last."""
        if data is None:
            if self._closed:  # Which a body may take for its end.
                raise ClientClosed(self._closed)
            self._turn.end()
            self._ended = self._turn.failure is None
        else:
            self._batch = iter(self._turn.feed(data, waited))
        return self._ended or self._turn.failure is not None

    def _check_end(self) -> None:
        """Raise if the stream has no end that could be confirmed."""
        self._check()
        if not self._ended:
            raise Flux0Error("the stream has not been read to its end yet")

    def _fail(self, error: TransportError) -> None:
        if self._closed:  # By another thread or task, which is what made the transport fail.
            raise ClientClosed(self._closed) from error
        self._turn.on_transport_error(error)


def _is_behind_proxy(headers: Headers) -> bool:
    """Return whether the answer comes from another than the server, which is run by uvicorn."""
    return "via" in headers or not headers.get("server", "uvicorn").lower().startswith("uvicorn")
