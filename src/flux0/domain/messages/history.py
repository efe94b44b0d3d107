"""What was said: in one turn, and in a session together with a turn that still streams in."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from flux0.domain.enums import EventType
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.models import Event, ToolCall

# The events that are said, rather than said about the agent.
MESSAGE_TYPES = (EventType.MESSAGE, EventType.TOOL)


@frozen
class Reply:
    """The whole of a turn, as it was read to its end.

    `messages` are its messages and tool results, `tool_calls` the tools that the agent asked for,
    each with its result.
    """

    messages: tuple[TurnMessage, ...]
    tool_calls: tuple[ToolCall, ...]

    @property
    def text(self) -> str:
        """The text of the answer, without the agent's reasoning; messages are apart by a line."""
        return "\n".join(message.text for message in self.messages if message.text)

    def __str__(self) -> str:
        return self.text


def joined_history(
    stored: Iterable[Event], live: Iterable[TurnMessage]
) -> tuple[Event | TurnMessage, ...]:
    """Return the message and tool events of a session, each once.

    `live` are the messages of a turn as its stream rebuilt them. Those that are stored by now are
    left out: the ids differ, so they are told by turn, type, data and metadata. What is not stored
    comes after what is, in its own order.
    """
    history = [event for event in stored if event.type in MESSAGE_TYPES]
    unmatched: dict[str, list[Event]] = {}
    for event in history:
        unmatched.setdefault(event.correlation_id, []).append(event)
    rest: list[TurnMessage] = []
    for message in live:
        turn = unmatched.get(message.correlation_id, [])
        twin = next((event for event in turn if _are_one(event, message)), None)
        if twin is None:
            rest.append(message)
        else:
            turn.remove(twin)
    return (*history, *rest)


def _are_one(event: Event, message: TurnMessage) -> bool:
    """Whether an event of the same turn is this message."""
    return (
        event.type == message.type
        and event.data == message.data
        and event.metadata == message.metadata
    )
