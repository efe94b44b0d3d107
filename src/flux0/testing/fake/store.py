"""What a fake server keeps: users, agents, sessions and their events, as JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import count
from typing import Any, Literal, TypeAlias

from flux0.testing.fake.stored_json import JSONObject, time_text

# The server names everybody so, whatever the cookie says.
USER_NAME = "Anonymous"

Kind: TypeAlias = Literal["agent", "session", "user", "event", "message", "request", "turn"]


class FakeStore:
    """Plain lists, in the order in which things were made, as the server's store in memory."""

    def __init__(self) -> None:
        self._counters: defaultdict[str, count[int]] = defaultdict(lambda: count(1))
        self._user_ids: dict[str, str] = {}
        self._agents: dict[str, JSONObject] = {}
        self._sessions: list[JSONObject] = []
        # Sessions may share an id: the first is found by it, and all share the events.
        self._by_id: dict[str, JSONObject] = {}
        self._events: defaultdict[str, list[JSONObject]] = defaultdict(list)

    def new_id(self, kind: Kind) -> str:
        """Return an id of 10 characters, as the server's are: `s000000001` for a first session."""
        return f"{kind[0]}{next(self._counters[kind]):09}"

    def user_id(self, sub: str) -> str:
        """Return the id of the user whom a cookie calls `sub`, who is made on first sight."""
        if sub not in self._user_ids:
            self._user_ids[sub] = self.new_id("user")
        return self._user_ids[sub]

    def create_agent(
        self, name: str, type: str, description: str | None, *, id: str | None = None, at: float
    ) -> JSONObject:
        """Keep a new agent, made at so many seconds since 1970."""
        agent: JSONObject = {
            "id": self.new_id("agent") if id is None else id,
            "name": name,
            "type": type,
            "description": description,
            "created_at": time_text(at),
        }
        self._agents[agent["id"]] = agent
        return agent

    def agent(self, agent_id: str) -> JSONObject | None:
        """Return an agent, if there is one of that id."""
        return self._agents.get(agent_id)

    def agent_of(self, session: JSONObject) -> JSONObject:
        """Return the agent that a session is with."""
        return self._agents[session["agent_id"]]

    def agents(self) -> list[JSONObject]:
        """Return all agents."""
        return list(self._agents.values())

    def create_session(
        self, agent_id: str, user_id: str, *, id: str | None, title: str | None, at: float
    ) -> JSONObject:
        """Keep a new session, even where there is one of that id."""
        session: JSONObject = {
            "id": self.new_id("session") if id is None else id,
            "agent_id": agent_id,
            "user_id": user_id,
            "title": title,
            "consumption_offsets": {"client": 0},
            "created_at": time_text(at),
        }
        self._sessions.append(session)
        self._by_id.setdefault(session["id"], session)
        return session

    def session(self, session_id: str) -> JSONObject | None:
        """Return the first session of that id, if there is one."""
        return self._by_id.get(session_id)

    def sessions(self, user_id: str, agent_id: str | None) -> list[JSONObject]:
        """Return a user's sessions, with one agent or with all."""
        return [
            session
            for session in self._sessions
            if session["user_id"] == user_id and agent_id in {None, session["agent_id"]}
        ]

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
        events = self._events[session_id]
        events.append(
            {
                "id": self.new_id("event"),
                "correlation_id": correlation_id,
                "type": type,
                "source": source,
                "offset": len(events),
                "data": data,
                "deleted": False,
                "metadata": metadata,
                "created_at": time_text(at),
            }
        )

    def events(
        self,
        session_id: str,
        *,
        min_offset: int | None = None,
        source: str | None = None,
        correlation_id: str | None = None,
        types: list[str] | None = None,
    ) -> list[JSONObject]:
        """Return a session's events that pass every filter given; no types are no filter."""
        return [
            event
            for event in self._events[session_id]
            if (min_offset is None or event["offset"] >= min_offset)
            and source in {None, event["source"]}
            and correlation_id in {None, event["correlation_id"]}
            and (not types or event["type"] in types)
        ]
