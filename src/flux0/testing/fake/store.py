"""The store of a fake server: agents, sessions and events, as the JSON that the server returns.

The real server stores events without checking them. If a stored event is invalid, listing the
events of its session fails. In this store, the `data` of an invalid event is None.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import evolve

from flux0.domain.enums import SessionStatus
from flux0.domain.messages.accumulator import MessageAccumulator
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.messages.json_patch import copied
from flux0.domain.stored_models import Event, Events, ToolCallPart, ToolData
from flux0.domain.stream_events import ChunkEvent

if TYPE_CHECKING:
    from flux0.testing.fake.steps import Report, UserMessage

JSONObject: TypeAlias = dict[str, Any]

# In the `data` of message and tool events, the real server stores the members in the order of
# `_ORDER`.
_ORDER = ("type", "tags", "flagged", "parts", "participant", "tool_calls")
_TICK = timedelta(microseconds=1)


class _OpenMessage(MessageAccumulator):
    last_seq = -1


class FakeStore:
    def __init__(self, now: Callable[[], float]) -> None:
        self.agents: dict[str, JSONObject] = {}
        # The sessions are in a list instead of a dict, because two sessions can have the same id.
        self.sessions: list[JSONObject] = []
        self.events: defaultdict[str, list[JSONObject]] = defaultdict(list)
        # `_open_messages` maps event ids to unfinished messages. As in the real server, all
        # sessions share `_open_messages`.
        self._open_messages: defaultdict[str, _OpenMessage] = defaultdict(_OpenMessage)
        # `user_ids` maps each value of the cookie `flux0_user_sub` to the id of the user.
        self.user_ids: defaultdict[str, str] = defaultdict(lambda: self.new_id("user"))
        self._counters: defaultdict[str, count[int]] = defaultdict(lambda: count(1))
        self._now = now
        self._last_created_at = datetime.min.replace(tzinfo=timezone.utc)

    def next_number(self, kind: str) -> int:
        return next(self._counters[kind])

    def new_id(self, kind: str) -> str:
        return f"{kind[0]}{self.next_number(kind):09}"

    def created_at(self, moment: float | None = None) -> str:
        """Return `moment`, by default the current time, as text in the server's format.

        Times are distinct and increase, as on the real server, so that code can sort events by
        time. If the fake's clock has not moved since the last call, the result is a later time.
        """
        requested = datetime.fromtimestamp(self._now() if moment is None else moment, timezone.utc)
        self._last_created_at = max(requested, self._last_created_at + _TICK)
        return self._last_created_at.isoformat().replace("+00:00", "Z")

    def create_agent(
        self, name: str, type: str, description: str | None = None, *, id: str = ""
    ) -> JSONObject:
        agent: JSONObject = {
            "id": id or self.new_id("agent"),
            "name": name,
            "type": type,
            "description": description,
            "created_at": self.created_at(),
        }
        self.agents[agent["id"]] = agent
        return agent

    def create_event(
        self,
        message: UserMessage,
        type: str,
        source: str,
        data: JSONObject | None,
        metadata: Mapping[str, Any] | None = None,
        at: float | None = None,
    ) -> None:
        events = self.events[message.session_id]
        event: JSONObject = {
            "id": self.new_id("event"),
            "correlation_id": message.correlation_id,
            "type": str(type),
            "source": str(source),
            "offset": len(events),
            "data": data,
            "deleted": False,
            "metadata": metadata,
            "created_at": self.created_at(at),
        }
        events.append(event)

    def add_chunk(self, chunk: ChunkEvent) -> bool:
        """Apply a chunk to its message, and return whether the server streams the chunk.

        The server drops a chunk with a patch that cannot be applied. It also drops a chunk whose
        `seq` does not follow the last streamed `seq`, unless one of its patches appends to a list.
        Observed with flux0-stream 0.1.0b2.
        """
        message = self._open_messages[chunk.event_id]
        appends = any(patch.path.endswith("/-") for patch in chunk.patches)
        if not appends and chunk.seq != message.last_seq + 1:
            # If the `seq` of a chunk does not follow the last `seq`, the real server ignores the
            # chunk's patches. If this chunk is the first chunk of a message, the server still uses
            # the chunk's metadata.
            message.feed(evolve(chunk, patches=()))
            return False
        before = len(message.problems)
        message.feed(chunk)
        applies = len(message.problems) == before
        if applies:
            message.last_seq = chunk.seq
        return applies

    def finish_message(self, event_id: str) -> TurnMessage | None:
        message = self._open_messages.pop(event_id, None)
        return next(iter(message.finish()), None) if message else None


def without_nulls(data: JSONObject) -> JSONObject:
    return {name: value for name, value in data.items() if value is not None}


def models_of(events: list[JSONObject]) -> tuple[Event, ...]:
    from flux0.adapters.json import JsonCodec  # noqa: PLC0415 - loads cattrs

    return JsonCodec().from_dict(Events, {"data": events}).data


def status_data(reported: Report) -> JSONObject | None:
    if reported.status not in set(SessionStatus):
        return None
    return {
        "type": "status",
        "status": reported.status,
        "acknowledged_offset": reported.acknowledged_offset,
        # The stored JSON cannot contain NaN or infinities, although the JSON in a stream can.
        "data": copied(reported.data, finite=True),
    }


def agent_data(message: TurnMessage) -> JSONObject | None:
    from flux0.adapters.json import JsonCodec  # noqa: PLC0415 - loads cattrs

    data = message.data
    if isinstance(data, ToolData):
        calls: tuple[Any, ...] = data.tool_calls
        is_valid = all(_is_call(call) and isinstance(call.args, Mapping) for call in calls)
    else:
        is_valid = all(
            _is_call(part) if isinstance(part, ToolCallPart) else not isinstance(part, Mapping)
            for part in data.parts
        )
    plain: JSONObject = JsonCodec().to_dict(data) if is_valid else {}
    return {name: plain[name] for name in _ORDER if name in plain} or None


def _is_call(call: Any) -> bool:
    # Check the types of the values, because an agent can send values of any type.
    return isinstance(call.tool_call_id, str) and isinstance(call.tool_name, str)
