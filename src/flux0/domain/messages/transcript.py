"""What a turn has said so far, folded event by event."""

from __future__ import annotations

from flux0.domain.enums import SessionStatus
from flux0.domain.messages.accumulator import DEFAULT_MAX_TURN_BYTES, MessageAccumulator
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.stream_events import StatusEvent, StreamEvent


class Transcript:
    """The messages, the status and the agent's error of one turn, as of the last event taken in.

    Attributes:
        text: what the last event added to the answer's text; empty for most events.
        status: the last status; None before the first.
        error: the event in which the agent reported an error; None if it did not.
    """

    def __init__(self, *, max_turn_bytes: int = DEFAULT_MAX_TURN_BYTES) -> None:
        self._accumulator = MessageAccumulator(max_turn_bytes=max_turn_bytes)
        self._accumulate = self._accumulator.feed
        self.text: str = ""
        self.status: SessionStatus | str | None = None
        self.error: StatusEvent | None = None

    def take(self, event: StreamEvent) -> None:
        """Take in the next event."""
        if type(event) is StatusEvent:
            self.text = ""
            self.status = event.data.status
            if self.status == SessionStatus.ERROR:
                self.error = event
        else:
            self.text = self._accumulate(event)

    @property
    def messages(self) -> tuple[TurnMessage, ...]:
        """The messages as they stand now."""
        return self._accumulator.messages

    def finish(self) -> tuple[TurnMessage, ...]:
        """Return the events that the server stores for this turn."""
        return self._accumulator.finish()
