"""What a fake server keeps, as the JSON that the released server lists.

The server stores what its agents say unchecked. Where it then cannot list an event, the data here
is None.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from itertools import count
from typing import Any, TypeAlias

from attrs import define, evolve, field

from flux0.domain.enums import SessionStatus
from flux0.domain.messages.accumulator import MessageAccumulator
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.messages.json_patch import copied
from flux0.domain.models import ToolCallPart, ToolData
from flux0.domain.stream_events import ChunkEvent

JSONObject: TypeAlias = dict[str, Any]

# The server names everybody so, whatever the cookie says.
_USER_NAME = "Anonymous"
# Of the members of a message's and of a tool event's data.
_ORDER = ("type", "tags", "flagged", "parts", "participant", "tool_calls")
_TICK = timedelta(microseconds=1)


@define
class _Draft:
    content: MessageAccumulator = field(factory=MessageAccumulator)
    last_seq: int = -1


class Drafts:
    """All messages in the making, of all sessions: the server does not keep turns apart."""

    def __init__(self) -> None:
        self._drafts: defaultdict[str, _Draft] = defaultdict(_Draft)

    def add(self, chunk: ChunkEvent) -> bool:
        """Apply `chunk`, and return whether the server sends it on.

        It does not if a patch does not apply; or if the chunk does not append to anything, and its
        `seq` does not follow that of the last chunk that was sent (flux0-stream 0.1.0b2).
        """
        draft = self._drafts[chunk.event_id]
        appends = any(patch.path.endswith("/-") for patch in chunk.patches)
        if not appends and chunk.seq != draft.last_seq + 1:
            # Nothing of it counts but, if it is the first, its metadata.
            draft.content.feed(evolve(chunk, patches=()))
            return False
        before = len(draft.content.problems)
        draft.content.feed(chunk)
        if len(draft.content.problems) > before:
            return False
        draft.last_seq = chunk.seq
        return True

    def finish(self, event_id: str) -> TurnMessage | None:
        """Return what the server stores of a message that is ready, if anything, and forget it."""
        draft = self._drafts.pop(event_id, None)
        messages = () if draft is None else draft.content.finish()
        return messages[0] if messages else None


class FakeStore:
    """Plain lists, in the order in which things were made, as the server's store in memory.

    Attributes:
        agents: by their ids.
        sessions: all of them; some may share an id.
        events: of each session, by its id; sessions that share an id share them.
        drafts: the messages in the making.
        user_ids: the ids of users, by what the cookie calls them; each is made on first sight.
    """

    def __init__(self) -> None:
        self.agents: dict[str, JSONObject] = {}
        self.sessions: list[JSONObject] = []
        self.events: defaultdict[str, list[JSONObject]] = defaultdict(list)
        self.drafts: Drafts = Drafts()
        self.user_ids: defaultdict[str, str] = defaultdict(lambda: self.new_id("user"))
        self._counters: defaultdict[str, count[int]] = defaultdict(lambda: count(1))
        self._last = datetime.min.replace(tzinfo=timezone.utc)

    def next_number(self, kind: str) -> int:
        """Return how many things of a kind there are, one more included."""
        return next(self._counters[kind])

    def new_id(self, kind: str) -> str:
        """Return an id of 10 characters, as the server's are: `s000000001` for a first session."""
        return f"{kind[0]}{self.next_number(kind):09}"

    def created_at(self, moment: float) -> str:
        """Return a time as the server writes it; each is later than the one before."""
        given = datetime.fromtimestamp(moment, timezone.utc)
        self._last = max(given, self._last + _TICK)
        return self._last.isoformat().replace("+00:00", "Z")

    def create_agent(
        self, name: str, type: str, description: str | None, *, id: str | None = None, at: float
    ) -> JSONObject:
        """Keep a new agent, made at so many seconds since 1970."""
        agent: JSONObject = {
            "id": self.new_id("agent") if id is None else id,
            "name": name,
            "type": type,
            "description": description,
            "created_at": self.created_at(at),
        }
        self.agents[agent["id"]] = agent
        return agent

    def session(self, session_id: str) -> JSONObject | None:
        """Return the first session of that id, if there is one."""
        return next((one for one in self.sessions if one["id"] == session_id), None)

    def create_event(
        self,
        session_id: str,
        *,
        correlation_id: str,
        type: str,
        source: str,
        data: JSONObject | None,
        metadata: Mapping[str, Any] | None = None,
        at: float,
    ) -> None:
        """Keep a new event. Without `data` the server could not list it."""
        events = self.events[session_id]
        events.append(
            {
                "id": self.new_id("event"),
                "correlation_id": correlation_id,
                "type": str(type),
                "source": str(source),
                "offset": len(events),
                "data": data,
                "deleted": False,
                "metadata": metadata,
                "created_at": self.created_at(at),
            }
        )


def user_data(content: str, user_id: str) -> JSONObject:
    """Return the data of the event that a user's message becomes."""
    return {
        "type": "message",
        "tags": [],
        "flagged": False,
        "parts": [{"type": "content", "content": content}],
        "participant": {"id": user_id, "name": _USER_NAME},
    }


def status_data(reported: JSONObject) -> JSONObject | None:
    """Return the data of the event that a status becomes."""
    if reported["status"] not in set(SessionStatus):
        return None
    # JSON has no number for NaN and the infinities, though the stream shows them.
    return {**reported, "data": copied(reported["data"], finite=True)}


def agent_data(message: TurnMessage) -> JSONObject | None:
    """Return the data of the message or tool event that an agent's message becomes."""
    from flux0.adapters.json import JsonCodec  # noqa: PLC0415 - loads cattrs

    data = message.data
    if isinstance(data, ToolData):
        calls: tuple[Any, ...] = data.tool_calls
        listed = all(_has_names(call) and isinstance(call.args, Mapping) for call in calls)
    else:
        listed = all(
            _has_names(part) if isinstance(part, ToolCallPart) else not isinstance(part, Mapping)
            for part in data.parts
        )
    if not listed:
        return None
    plain = JsonCodec().to_dict(data)
    return {name: plain[name] for name in _ORDER if name in plain}


def _has_names(call: Any) -> bool:
    # Whatever the fields' types are, an agent sends what it likes.
    return isinstance(call.tool_call_id, str) and isinstance(call.tool_name, str)
