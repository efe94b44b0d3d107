"""What the server's values are called on the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

from flux0.models import (
    ConnectError,
    ContentPart,
    EventData,
    Flux0Error,
    MessageData,
    MessagePart,
    ReasoningPart,
    StatusData,
    ToolCall,
    ToolCallPart,
    ToolData,
)

Item: TypeAlias = MessagePart | ToolCall

# A terminal is for looking on; the JSON of `flux0 events` has all of it. In characters.
LONGEST_ARGS = 400
_LONGEST_RESULT = 1200


def json_in_words(value: Any) -> str:
    """Return a text as it is, and anything else as JSON on one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def content_in_words(content: Any) -> str:
    """Return a text as it is, and anything else as JSON for people."""
    return (
        content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False)
    )


def status_in_words(status: str, data: Any) -> str:
    """Return a status with what the agent added to it."""
    if isinstance(data, Mapping):
        values = [*cast("Mapping[str, Any]", data).values()]
        if len(values) == 1 and isinstance(values[0], str):
            data = values[0]
    return f"{status}: {json_in_words(data)}" if data else str(status)


def call_in_words(call: ToolCall | ToolCallPart) -> str:
    """Return a tool call as it is written in code."""
    args: Any = call.args
    if isinstance(args, Mapping):
        given = cast("Mapping[str, Any]", args).items()
        args = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given)
    return f"{call.tool_name}({_cut(json_in_words(args), LONGEST_ARGS)})"


def result_in_words(call: ToolCall) -> str:
    """Return what a tool gave back."""
    if call.error is not None:
        return call.error
    return _cut(json_in_words(call.result and call.result.data), _LONGEST_RESULT)


def data_in_words(data: EventData) -> str:
    """Return the data of an event in a few words."""
    if isinstance(data, StatusData):
        return status_in_words(data.status, data.data)
    if isinstance(data, (MessageData, ToolData)):
        return " ".join(map(_item_in_words, items_of(data)))
    return json_in_words(data)


def error_in_words(error: Flux0Error, server_url: str) -> str:
    """Return what went wrong, and where it is likely to help, what to look at."""
    if isinstance(error, ConnectError):
        return f"No connection to {server_url}: {error.problem}. Is the server running?"
    return error.problem


def items_of(data: EventData) -> Sequence[Item]:
    """Return the parts of a message, or the tool calls whose results an event holds."""
    if isinstance(data, MessageData):
        return data.parts
    return data.tool_calls if isinstance(data, ToolData) else ()


def _item_in_words(item: Item) -> str:
    match item:
        case ContentPart(content):
            return json_in_words(content)
        case ReasoningPart(reasoning):
            return f"(reasoning) {json_in_words(reasoning)}"
        case ToolCallPart():
            return call_in_words(item)
        case ToolCall():
            return f"{item.tool_name}: {result_in_words(item)}"
        case _:
            return json_in_words(item)


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    return f"{text[:longest]}… ({len(text) - longest:,} more characters)"
