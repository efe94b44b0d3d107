"""Joining tool calls with their results. Calls and results are in different messages of a turn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from attrs import frozen

from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.stored_models import Event, MessageData, ToolCall, ToolData


@frozen
class TimedToolCall:
    """A tool call of a turn, with its times on the server's clock.

    Attributes:
        call: the tool call, with its result if the result was received.
        started_at: the time of the call's first chunk, in seconds since 1970, UTC; None if the
            chunk has no timestamp.
        seconds: the time from the call's first chunk to its result's first chunk; None if there is
            no result, or one of these chunks has no timestamp.
    """

    call: ToolCall
    started_at: float | None
    seconds: float | None


def timed_tool_calls(
    messages: Iterable[TurnMessage], times: Mapping[str, float | None]
) -> tuple[TimedToolCall, ...]:
    """Return the tool calls in `messages` with their times.

    Args:
        messages: the messages of a turn.
        times: a mapping from the `event_id` of each message to the time of its first chunk.
    """
    items = tuple(messages)
    starts: dict[str, float | None] = {}
    ends: dict[str, float | None] = {}
    for message in items:
        moments = ends if isinstance(message.data, ToolData) else starts
        for call in message.tool_calls:
            moments.setdefault(str(call.tool_call_id), times.get(message.event_id))
    timed: list[TimedToolCall] = []
    for call in joined_tool_calls(items):
        start, end = starts[str(call.tool_call_id)], ends.get(str(call.tool_call_id))
        seconds = None if start is None or end is None else max(end - start, 0.0)
        timed.append(TimedToolCall(call, start, seconds))
    return tuple(timed)


def joined_tool_calls(messages: Iterable[Event | TurnMessage]) -> tuple[ToolCall, ...]:
    """Return the tool calls in `messages`, in order, each with its result.

    A call and its result have the same `tool_call_id`. If a call has no result, `result` is None.
    """
    items = tuple(messages)
    results = {each.tool_call_id: each for each in _calls(items, ToolData) if _has_an_id(each)}
    calls = _calls(items, MessageData)
    return tuple(
        results.get(each.tool_call_id, each) if _has_an_id(each) else each for each in calls
    )


def _calls(messages: Iterable[Event | TurnMessage], kind: type[object]) -> Iterator[ToolCall]:
    for message in messages:
        if isinstance(message.data, kind):
            yield from message.tool_calls


def _has_an_id(call: ToolCall) -> bool:
    return isinstance(call.tool_call_id, str)  # pyright: ignore[reportUnnecessaryIsInstance] - the chunks of an agent may have any JSON
