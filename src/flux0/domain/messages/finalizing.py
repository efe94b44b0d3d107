"""Convert a message's JSON document into the event that the server stores.

The patches in chunk events build the document. The server converts it when the agent reports the
status `ready`, and this module follows the rules in its package flux0-stream 0.1.0b2.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from attrs import frozen

from flux0.domain.enums import EventSource, EventType
from flux0.domain.messages.json_patch import JSON, MAX_DEPTH, copied, measure
from flux0.domain.stored_models import (
    ContentPart,
    ControlOptions,
    HasMessageData,
    MessageData,
    Participant,
    ReasoningPart,
    ToolCall,
    ToolCallPart,
    ToolData,
    ToolResult,
)

if TYPE_CHECKING:
    from flux0.domain.stream_events import ChunkEvent

# The value of `kind` in the metadata of chunks with reasoning.
REASONING = "reasoning"


@frozen
class TurnMessage(HasMessageData):
    """A message or tool event of a turn, built from its chunk events.

    The stored event has the same `type`, `data`, `metadata` and `correlation_id`, but a different
    id: `event_id` is used only in the stream.

    Attributes:
        event_id: the message's id in the stream.
        correlation_id: the id of the message's turn.
        type: `EventType.MESSAGE` or `EventType.TOOL`.
        data: the message's content, as in the stored event.
        metadata: further data of the agent, as plain JSON; None if there are none.
    """

    event_id: str
    correlation_id: str
    type: EventType
    data: MessageData | ToolData
    metadata: Mapping[str, Any] | None = None

    @property
    def source(self) -> EventSource:
        """The event's source: always the agent."""
        return EventSource.AI_AGENT


def is_stored(first: ChunkEvent) -> bool:
    """Return whether the server stores a message: only if its first chunk names the agent."""
    return "agent_name" in first.metadata


def finalize(first: ChunkEvent, root: JSON, *, partial: bool = False) -> TurnMessage | None:
    """Return the event that the server stores for a message, or None if it stores nothing.

    Args:
        first: the first chunk; its metadata apply to the whole message.
        root: the JSON document that the message's patches built; it is not modified.
        partial: whether the arguments of a tool call may be incomplete. If True, arguments that are
            not valid JSON become a string in `args`. If False, the result is None for such
            arguments, because the server stores nothing.
    """
    if not root or not is_stored(first):
        return None
    try:
        data, metadata = _finalized(first, root, partial=partial)
    except (KeyError, TypeError, ValueError, RecursionError):
        # The JSON document is not a valid message: the server cannot convert or store it.
        return None
    kind = EventType.TOOL if isinstance(data, ToolData) else EventType.MESSAGE
    return TurnMessage(first.event_id, first.correlation_id, kind, data, metadata)


# The private functions of this module raise KeyError, TypeError or ValueError if a JSON document
# does not have the form of a message. `finalize` catches these errors.


def _finalized(
    first: ChunkEvent, root: JSON, *, partial: bool
) -> tuple[MessageData | ToolData, Mapping[str, Any] | None]:
    metadata = dict(first.metadata)
    agent_id, agent_name = metadata.pop("agent_id", ""), metadata.pop("agent_name")
    participant = Participant(id=str(agent_id), name=str(agent_name))
    is_reasoning = metadata.pop("kind", None) == REASONING
    if isinstance(root, dict) and "tool_calls" in root:
        calls: Any = root["tool_calls"]
        parts = tuple(_tool_call_part(call, partial=partial) for call in calls)
        if not parts:
            raise ValueError("the message has no parts")
        return MessageData(parts, participant), None
    if isinstance(root, dict) and "tool_call_results" in root:
        results: Any = root["tool_call_results"]
        return ToolData(tuple(_tool_call(result) for result in results)), None
    if not isinstance(root, (str, list, dict)):
        raise TypeError("the document is not a string, list or object")
    is_text = isinstance(root, list) and all(isinstance(item, str) for item in root)
    content = "".join(cast("list[str]", root)) if is_text else _as_stored(root)
    part = ReasoningPart(content) if is_reasoning else ContentPart(content)
    return MessageData((part,), participant), _as_stored(metadata)


def _tool_call_part(item: Any, *, partial: bool) -> ToolCallPart | Mapping[str, Any]:
    part = {name: _as_stored(item[name]) for name in ("tool_call_id", "tool_name")}
    part["args"] = _as_stored(_args(item["args"], partial=partial))
    if item["type"] == ToolCallPart.type:
        return ToolCallPart(**part)
    return {"type": _as_stored(item["type"]), **part}


def _args(args: Any, *, partial: bool) -> Any:
    if isinstance(args, dict):
        return cast("Any", args)
    if not isinstance(args, list):
        raise TypeError("args are neither a list nor an object")
    import json  # noqa: PLC0415 - not needed to import this package

    text = "".join(cast("list[str]", args))
    with suppress(ValueError, RecursionError):
        value = json.loads(text)
        if measure(value)[1] <= MAX_DEPTH:
            return value
    if partial:
        return text
    raise ValueError("args are not JSON that the server can store")


def _tool_call(item: Any) -> ToolCall:
    data = item["data"]["result"] if isinstance(item["data"], dict) else None
    result = ToolResult(data=_as_stored(data), metadata={}, control=ControlOptions(mode="auto"))
    call = {name: _as_stored(item[name]) for name in ("tool_call_id", "tool_name", "args")}
    return ToolCall(**call, result=result)


def _as_stored(value: Any) -> Any:
    # The server's responses have null for NaN and the infinities.
    return copied(value, finite=True)
