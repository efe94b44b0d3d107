"""The JSON of what a fake server stores, as the released server lists it.

The server stores what its agents say unchecked. Where it then cannot list an event, the data here
is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, TypeAlias

from flux0.domain.enums import SessionStatus
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.messages.json_patch import copied
from flux0.domain.models import (
    ContentPart,
    MessagePart,
    ReasoningPart,
    ToolCall,
    ToolCallPart,
    ToolData,
)

JSONObject: TypeAlias = dict[str, Any]


def time_text(moment: float) -> str:
    """Return a time in seconds since 1970 as the server writes it."""
    return datetime.fromtimestamp(moment, timezone.utc).isoformat().replace("+00:00", "Z")


def user_data(content: str, user_id: str, user_name: str) -> JSONObject:
    """Return the data of the event that a user's message becomes."""
    return {
        "type": "message",
        "tags": [],
        "flagged": False,
        "parts": [{"type": "content", "content": content}],
        "participant": {"id": user_id, "name": user_name},
    }


def status_data(status: str, acknowledged_offset: int | None, data: Any) -> JSONObject | None:
    """Return the data of a status event."""
    if not isinstance(SessionStatus.of(status), SessionStatus):
        return None
    return {
        "type": "status",
        "status": status,
        "acknowledged_offset": acknowledged_offset,
        # JSON has no number for NaN and the infinities, though the stream shows them.
        "data": copied(data, finite=True),
    }


def agent_data(message: TurnMessage) -> JSONObject | None:
    """Return the data of the message or tool event that an agent's message becomes."""
    data = message.data
    if isinstance(data, ToolData):
        if not all(_has_names(call) and _is_object(call.args) for call in data.tool_calls):
            return None
        return {"type": data.type, "tool_calls": [_tool_call(call) for call in data.tool_calls]}
    parts = [_part(part) for part in data.parts]
    participant = data.participant
    return (
        None
        if None in parts
        else {
            "type": data.type,
            "tags": None,
            "flagged": None,
            "parts": parts,
            "participant": participant and {"id": participant.id, "name": participant.name},
        }
    )


def _part(part: MessagePart) -> JSONObject | None:
    match part:
        case ContentPart(content):
            return {"type": part.type, "content": content}
        case ReasoningPart(reasoning):
            return {"type": part.type, "reasoning": reasoning}
        case ToolCallPart(tool_call_id, tool_name, args) if _has_names(part):
            return {
                "type": part.type,
                "tool_call_id": tool_call_id,
                "tool_name": tool_name,
                "args": args,
            }
        case _:
            return None


def _tool_call(call: ToolCall) -> JSONObject:
    result = call.result
    return {
        "tool_call_id": call.tool_call_id,
        "tool_name": call.tool_name,
        "args": call.args,
        "result": result
        and {
            "data": result.data,
            "metadata": result.metadata,
            "control": {"mode": result.control.mode},
        },
        "error": call.error,
    }


def _has_names(call: ToolCall | ToolCallPart) -> bool:
    return _is_text(call.tool_call_id) and _is_text(call.tool_name)


# Whatever the fields' types say, an agent sends what it likes.


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping)
