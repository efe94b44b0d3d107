"""The reply of one turn, and the history of a session that may have a turn in progress."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from flux0.domain.enums import EventSource, EventType, SessionStatus
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.messages.tool_calls import joined_tool_calls
from flux0.domain.stored_models import Event, StatusData, ToolCall

# The types of events that contain messages or tool calls. Status events show only the agent's
# state.
MESSAGE_TYPES = (EventType.MESSAGE, EventType.TOOL)


@frozen
class Reply:
    """The reply of an agent in one turn.

    Attributes:
        messages: the messages and tool results, in order.
        tool_calls: the agent's tool calls, each with its result if the result is known.
        finished: whether the turn's end is confirmed. If False, the reply may be incomplete,
            because a proxy may hide that the server was killed.
    """

    messages: tuple[TurnMessage, ...]
    tool_calls: tuple[ToolCall, ...]
    finished: bool = True

    @property
    def text(self) -> str:
        """The answer's text, without the reasoning; a line break separates messages."""
        return answer_of(self.messages)

    def __str__(self) -> str:
        return self.text


@frozen
class StoredTurn:
    """A turn as the server has stored it so far.

    The stored events do not show whether the turn is complete, or whether the agent is running.

    Attributes:
        message: the user's message that started the turn.
        messages: the agent's messages and tool results, in order.
        statuses: the statuses that the agent reported, in order.
    """

    message: Event
    messages: tuple[Event, ...]
    statuses: tuple[StatusData, ...] = ()

    @property
    def correlation_id(self) -> str:
        """The id that all events of this turn share."""
        return self.message.correlation_id

    @property
    def offset(self) -> int:
        """The offset of the user's message."""
        return self.message.offset

    @property
    def text(self) -> str:
        """The answer's text so far, without the reasoning; a line break separates messages."""
        return answer_of(self.messages)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The agent's tool calls, each with its result if the result is stored."""
        return joined_tool_calls(self.messages)

    @property
    def error(self) -> StatusData | None:
        """The agent's last status `error`, with its `data`; None if no such status is stored."""
        errors = (each for each in reversed(self.statuses) if each.status == SessionStatus.ERROR)
        return next(errors, None)


def answer_of(messages: Iterable[Event | TurnMessage]) -> str:
    """Return the messages' text, without the reasoning; a line break separates messages."""
    return "\n".join(message.text for message in messages if message.text)


def stored_turn(events: Iterable[Event], content: str | None) -> StoredTurn | None:
    """Return the first turn whose user message has the text `content`.

    If `content` is None, return the first turn. If no turn matches, return None.
    """
    stored = tuple(events)
    for message in stored:
        is_message = message.type == EventType.MESSAGE and message.source == EventSource.USER
        if is_message and content in (None, message.text):
            turn = [event for event in stored if event.correlation_id == message.correlation_id]
            shown = (event for event in turn if event.type in MESSAGE_TYPES)
            replies = tuple(event for event in shown if event is not message)
            statuses = tuple(event.data for event in turn if isinstance(event.data, StatusData))
            return StoredTurn(message, replies, statuses)
    return None


def joined_history(
    stored: Iterable[Event], live: Iterable[TurnMessage]
) -> tuple[Event | TurnMessage, ...]:
    """Return the message and tool events of a session, without duplicates.

    The result has the stored events first, and then the messages of `live` that the server has not
    stored yet. The id of a message in its stream differs from the id of the stored event, so
    messages and stored events are compared by turn id, type, data and metadata.

    Args:
        stored: the session's stored events.
        live: the messages of a turn, built from its stream.
    """
    history, messages = [each for each in stored if each.type in MESSAGE_TYPES], tuple(live)
    turns = {message.correlation_id for message in messages}
    # The stored events in `unmatched` have the same order as the live messages, so `remove` finds
    # most messages at the list's start, in a short time.
    unmatched = [_content(event) for event in history if event.correlation_id in turns]
    not_stored: list[TurnMessage] = []
    for message in messages:
        try:
            unmatched.remove(_content(message))
        except ValueError:
            not_stored.append(message)
    return (*history, *not_stored)


def _content(event: Event | TurnMessage) -> tuple[object, ...]:
    return event.correlation_id, event.type, event.data, event.metadata
