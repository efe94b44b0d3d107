"""The messages of a chat component: the user's new message, and the messages of a session."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from flux0.domain.enums import EventSource
from flux0.domain.errors import InvalidArgument
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.stored_models import (
    ContentPart,
    Event,
    EventData,
    MessageData,
    ReasoningPart,
    ToolCall,
    ToolCallPart,
    ToolData,
)


def user_text(body: Any) -> str:
    """Return the text of the user's new message.

    Args:
        body: The body of a request of `useChat` or of an AG-UI client, as plain JSON.

    Raises:
        InvalidArgument: The body has another shape, or its last message is not a message of the
            user that has only text.
    """
    with suppress(LookupError, TypeError):
        message = body["messages"][-1]
        parts = message["parts"] if "parts" in message else message["content"]
        parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
        if message["role"] == "user" and all(part["type"] == "text" for part in parts):
            return "".join(part["text"] for part in parts)
    raise InvalidArgument("body", "must end with a user message that contains only text parts")


def ui_messages(
    history: Iterable[Event | TurnMessage], *, is_running: bool = False
) -> list[dict[str, Any]]:
    """Return the messages of a session as `UIMessage` objects, for `useChat`.

    Args:
        history: The result of `Conversation.history`.
        is_running: Whether the page will join the turn of the last user message. If so, the
            messages of the agent in this turn are left out, because the relay yields them.
    """
    messages: dict[str, dict[str, Any]] = {}
    newest = ""
    for event in history:
        key, role = event.correlation_id, "assistant"
        if event.source == EventSource.USER:
            newest, key, role = key, f"{key}-user", "user"
        message = messages.setdefault(key, {"id": key, "role": role, "parts": []})
        _add_parts(message["parts"], event.data)
    return [each for key, each in messages.items() if not is_running or key != newest]


def _add_parts(parts: list[dict[str, Any]], data: EventData) -> None:
    for part in data.parts if isinstance(data, MessageData) else ():
        match part:
            case ContentPart(content=str(text)):
                parts.append({"type": "text", "text": text})
            case ReasoningPart(reasoning=str(text)):
                parts.append({"type": "reasoning", "text": text})
            case ContentPart(content=content) | ReasoningPart(reasoning=content):
                parts.append({"type": "data-content", "data": content})
            case ToolCallPart():
                parts.append(_tool_part(part))
            case _:
                pass
    for call in data.tool_calls if isinstance(data, ToolData) else ():
        known = (each for each in parts if each.get("toolCallId") == str(call.tool_call_id))
        if (tool := next(known, None)) is None:
            parts.append(tool := _tool_part(call))
        tool.update(state="output-available", output=call.result and call.result.data)


def _tool_part(call: ToolCall | ToolCallPart) -> dict[str, Any]:
    ids = {"toolCallId": str(call.tool_call_id), "toolName": str(call.tool_name)}
    return {"type": "dynamic-tool", **ids, "state": "input-available", "input": call.args}
