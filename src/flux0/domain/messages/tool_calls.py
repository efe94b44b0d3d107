"""Tool calls joined with their results, which come in different messages of a turn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flux0.domain.messages.finalizing import TurnMessage, tool_results
from flux0.domain.models import Event, MessageData, ToolCall, ToolCallPart


def joined_tool_calls(messages: Iterable[Event | TurnMessage]) -> tuple[ToolCall, ...]:
    """Return the tool calls that messages ask for, in order, each with its result if there is one.

    The two are joined by `tool_call_id`; of a call without a result, `result` is None.
    """
    known = tuple(messages)
    results = tool_results(known)
    return tuple(
        _joined(part, results)
        for message in known
        if isinstance(message.data, MessageData)
        for part in message.data.parts
        if isinstance(part, ToolCallPart)
    )


def _joined(part: ToolCallPart, results: Mapping[str, ToolCall]) -> ToolCall:
    call_id = part.tool_call_id
    if isinstance(call_id, str) and call_id in results:  # pyright: ignore[reportUnnecessaryIsInstance] - an agent's chunks may say anything
        return results[call_id]
    return ToolCall(call_id, part.tool_name, part.args)
