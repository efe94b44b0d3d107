"""What a fake server keeps, as the JSON that the released server lists.

Where the server could not list an event, which it stores unchecked, the data here is None.
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
from flux0.domain.models import Event, Events, StatusData, ToolCallPart, ToolData
from flux0.domain.stream_events import ChunkEvent

if TYPE_CHECKING:
    from flux0.testing.fake.steps import UserMessage

JSONObject: TypeAlias = dict[str, Any]

# Of the members of a message's and of a tool event's data.
_ORDER = ("type", "tags", "flagged", "parts", "participant", "tool_calls")
_TICK = timedelta(microseconds=1)


class _StoredDraft(MessageAccumulator):
    last_seq = -1


class FakeStore:
    """Plain lists, in the order in which things were made, as the server's store in memory."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.agents: dict[str, JSONObject] = {}
        self.sessions: list[JSONObject] = []  # Some may share an id, and then share their events.
        self.events: defaultdict[str, list[JSONObject]] = defaultdict(list)
        # The messages in the making, of all sessions: the server does not keep turns apart.
        self._drafts: defaultdict[str, _StoredDraft] = defaultdict(_StoredDraft)
        # By what the cookie calls them.
        self.user_ids: defaultdict[str, str] = defaultdict(lambda: self.new_id("user"))
        self._counters: defaultdict[str, count[int]] = defaultdict(lambda: count(1))
        self._now = now
        self._last = datetime.min.replace(tzinfo=timezone.utc)

    def next_number(self, kind: str) -> int:
        """Return how many things of a kind there are, one more included."""
        return next(self._counters[kind])

    def new_id(self, kind: str) -> str:
        """Return an id of 10 characters, as the server's are: `s000000001` for a first session."""
        return f"{kind[0]}{self.next_number(kind):09}"

    def created_at(self, moment: float | None = None) -> str:
        """Return a time as the server writes it, now by default; each is later than the last."""
        given = datetime.fromtimestamp(self._now() if moment is None else moment, timezone.utc)
        self._last = max(given, self._last + _TICK)
        return self._last.isoformat().replace("+00:00", "Z")

    def create_agent(
        self, name: str, type: str, description: str | None = None, *, id: str = ""
    ) -> JSONObject:
        """Keep a new agent."""
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
        """Keep a new event of the turn of `message`. Without `data` it cannot be listed."""
        events = self.events[message.session_id]
        events.append(
            {
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
        )

    def add_chunk(self, chunk: ChunkEvent) -> bool:
        """Apply a chunk to its message, and return whether the server sends it on.

        It does not if a patch does not apply; or if the chunk does not append to anything, and its
        `seq` does not follow that of the last chunk that was sent (flux0-stream 0.1.0b2).
        """
        draft = self._drafts[chunk.event_id]
        appends = any(patch.path.endswith("/-") for patch in chunk.patches)
        if not appends and chunk.seq != draft.last_seq + 1:
            # Nothing of it counts but, if it is the first, its metadata.
            draft.feed(evolve(chunk, patches=()))
            return False
        before = len(draft.problems)
        draft.feed(chunk)
        applies = len(draft.problems) == before
        if applies:
            draft.last_seq = chunk.seq
        return applies

    def finish_message(self, event_id: str) -> TurnMessage | None:
        """Return what the server stores of a message that is ready, if anything, and forget it."""
        draft = self._drafts.pop(event_id, None)
        return next(iter(draft.finish()), None) if draft else None


def without_nulls(data: JSONObject) -> JSONObject:
    """Return the members that are not null."""
    return {name: value for name, value in data.items() if value is not None}


def models_of(events: list[JSONObject]) -> tuple[Event, ...]:
    """Return events as a client has them."""
    from flux0.adapters.json import JsonCodec  # noqa: PLC0415 - loads cattrs

    return JsonCodec().from_dict(Events, {"data": events}).data


def status_data(reported: StatusData) -> JSONObject | None:
    """Return the data of the event that a status becomes."""
    if reported.status not in set(SessionStatus):
        return None
    return {
        "type": "status",
        "status": reported.status,
        "acknowledged_offset": reported.acknowledged_offset,
        # JSON has no number for NaN and the infinities, though the stream shows them.
        "data": copied(reported.data, finite=True),
    }


def agent_data(message: TurnMessage) -> JSONObject | None:
    """Return the data of the message or tool event that an agent's message becomes."""
    from flux0.adapters.json import JsonCodec  # noqa: PLC0415 - loads cattrs

    data = message.data
    if isinstance(data, ToolData):
        calls: tuple[Any, ...] = data.tool_calls
        listed = all(_is_call(call) and isinstance(call.args, Mapping) for call in calls)
    else:
        listed = all(
            _is_call(part) if isinstance(part, ToolCallPart) else not isinstance(part, Mapping)
            for part in data.parts
        )
    plain: JSONObject = JsonCodec().to_dict(data) if listed else {}
    return {name: plain[name] for name in _ORDER if name in plain} or None


def _is_call(call: Any) -> bool:
    # Whatever the fields' types are, an agent sends what it likes.
    return isinstance(call.tool_call_id, str) and isinstance(call.tool_name, str)
