"""Tool calls joined with their results, which come in different messages of a turn."""

from __future__ import annotations

from collections.abc import Iterable

from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.models import Event, MessageData, ToolCall, ToolData


def joined_tool_calls(messages: Iterable[Event | TurnMessage]) -> tuple[ToolCall, ...]:
    """Return the tool calls that messages ask for, in order, each with its result if there is one.

    The two are joined by `tool_call_id`; of a call without a result, `result` is None.
    """
    known = tuple(messages)
    results = {
        call.tool_call_id: call
        for message in known
        if isinstance(message.data, ToolData)
        for call in message.tool_calls
        if _has_an_id(call)
    }
    return tuple(
        results.get(call.tool_call_id, call) if _has_an_id(call) else call
        for message in known
        if isinstance(message.data, MessageData)
        for call in message.tool_calls
    )


def _has_an_id(call: ToolCall) -> bool:
    return isinstance(call.tool_call_id, str)  # pyright: ignore[reportUnnecessaryIsInstance] - an agent's chunks may say anything
