"""The messages of a session, for a chat component."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from flux0.adapters.ui.ag_ui import unique_id
from flux0.adapters.ui.ai_sdk import without_prototypes
from flux0.domain.enums import EventSource
from flux0.domain.json_text import json_text
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.stored_models import (
    ContentPart,
    Event,
    MessageData,
    ReasoningPart,
    ToolCall,
    ToolCallPart,
    ToolData,
)

_Message: TypeAlias = Event | TurnMessage


def ui_messages(
    history: Iterable[Event | TurnMessage], *, is_running: bool = False
) -> list[dict[str, Any]]:
    """Return the messages of a session as `UIMessage` objects, for `useChat`.

    Args:
        history: The result of `Conversation.history`.
        is_running: True to leave out the agent's messages in the turn of the last user message.
            Pass True only while the turn is running, and only for old versions of `useChat`, which
            append the text of a joined turn to its message. Current versions replace the message.
    """
    messages: dict[str, dict[str, Any]] = {}
    for event in _shown(history, is_running):
        key, role = event.correlation_id, "assistant"
        if event.source == EventSource.USER:
            key, role = f"{key}-user", "user"
        message = messages.setdefault(key, {"id": key, "role": role, "parts": []})
        _add_parts(message["parts"], event)
    return list(messages.values())


def ag_ui_messages(
    history: Iterable[Event | TurnMessage], *, is_running: bool = False
) -> list[dict[str, Any]]:
    """Return the messages of a session as messages of AG-UI, for `AgUiFormat(messages=)`.

    Args:
        history: The result of `Conversation.history`.
        is_running: True to leave out the agent's messages in the turn of the last user message,
            because the relay of this turn has them.
    """
    called: set[str] = set()
    return [
        {"id": f"{_id(event)}-{number}", **message}
        for event in _shown(history, is_running)
        for number, message in enumerate(_ag_ui(event, called), 1)
    ]


def _shown(history: Iterable[_Message], is_running: bool) -> Iterator[_Message]:
    events = tuple(history)
    sent = [event.correlation_id for event in events if event.source == EventSource.USER]
    hidden = sent[-1] if sent and is_running else None
    for event in events:
        if event.source == EventSource.USER or event.correlation_id != hidden:
            yield event


def _id(event: _Message) -> str:
    return event.id if isinstance(event, Event) else event.event_id


def _ag_ui(event: _Message, called: set[str]) -> Iterator[dict[str, Any]]:
    data = event.data
    role = "user" if event.source == EventSource.USER else "assistant"
    for part in data.parts if isinstance(data, MessageData) else ():
        match part:
            case ContentPart(content=str(text)):
                yield {"role": role, "content": text}
            case ReasoningPart(reasoning=str(text)):
                yield {"role": "reasoning", "content": text}
            case ContentPart(content=content) | ReasoningPart(reasoning=content):
                activity = {"activityType": "content", "content": {"content": content}}
                yield {"role": "activity", **activity}
            case ToolCallPart():
                called.add(call_id := _call_id(event, part))
                yield _ag_ui_call(part, call_id)
            case _:
                pass
    for call in data.tool_calls if isinstance(data, ToolData) else ():
        if (call_id := _call_id(event, call)) not in called:
            yield _ag_ui_call(call, call_id)
        result = call.result and call.result.data
        text = result if isinstance(result, str) else json_text(result)
        yield {"role": "tool", "toolCallId": call_id, "content": text}


def _call_id(event: _Message, call: ToolCall | ToolCallPart) -> str:
    return unique_id(event.correlation_id, str(call.tool_call_id))


def _ag_ui_call(call: ToolCall | ToolCallPart, call_id: str) -> dict[str, Any]:
    function = {"name": str(call.tool_name), "arguments": json_text(call.args)}
    tool = {"id": call_id, "type": "function", "function": function}
    return {"role": "assistant", "toolCalls": [tool]}


def _add_parts(parts: list[dict[str, Any]], event: _Message) -> None:
    message = event.data
    for part in message.parts if isinstance(message, MessageData) else ():
        match part:
            case ContentPart(content=str(text)):
                parts.append({"type": "text", "text": text})
            case ReasoningPart(reasoning=str(text)):
                parts.append({"type": "reasoning", "text": text})
            case ContentPart(content=content) | ReasoningPart(reasoning=content):
                parts.append(
                    {"type": "data-content", "id": _id(event), "data": without_prototypes(content)}
                )
            case ToolCallPart():
                parts.append(_tool_part(part))
            case _:
                pass
    for call in message.tool_calls if isinstance(message, ToolData) else ():
        id_ = str(call.tool_call_id)
        open_calls = (p for p in parts if p.get("toolCallId") == id_ and "output" not in p)
        if (tool := next(open_calls, None)) is None:
            parts.append(tool := _tool_part(call))
        output: Any = call.result and call.result.data
        tool.update(state="output-available", output=without_prototypes(output))


def _tool_part(call: ToolCall | ToolCallPart) -> dict[str, Any]:
    args: Any = call.args
    ids = {"toolCallId": str(call.tool_call_id), "toolName": str(call.tool_name)}
    state = {"providerExecuted": True, "state": "input-available"}
    return {"type": "dynamic-tool", **ids, **state, "input": without_prototypes(args)}
