"""Joining tool calls with their results, which are in different messages of a turn."""

from __future__ import annotations

from collections.abc import Iterable

from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.models import Event, MessageData, ToolCall, ToolData


def joined_tool_calls(messages: Iterable[Event | TurnMessage]) -> tuple[ToolCall, ...]:
    """Return the tool calls in `messages`, in order, each with its result if there is one.

    `tool_call_id` joins a call and its result. If a call has no result, `result` is None.
    """
    items = tuple(messages)
    results = {
        call.tool_call_id: call
        for message in items
        if isinstance(message.data, ToolData)
        for call in message.tool_calls
        if _has_an_id(call)
    }
    return tuple(
        results.get(call.tool_call_id, call) if _has_an_id(call) else call
        for message in items
        if isinstance(message.data, MessageData)
        for call in message.tool_calls
    )


def _has_an_id(call: ToolCall) -> bool:
    return isinstance(call.tool_call_id, str)  # pyright: ignore[reportUnnecessaryIsInstance] - the chunks of an agent may have any JSON
