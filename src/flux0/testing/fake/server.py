"""A flux0 server in memory: requests in, answers out, as the released server gives them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlsplit

from attrs import define, evolve, field

from flux0.domain.enums import EventSource, EventType
from flux0.domain.headers import Headers
from flux0.domain.models import Event, Events
from flux0.ports import Request, Response
from flux0.testing.fake.agents import UserMessage
from flux0.testing.fake.calls import (
    USER_COOKIE,
    Target,
    cookie_pairs,
    is_route,
    server_failure,
    target_of,
    whole_answer,
)
from flux0.testing.fake.clock import FakeClock
from flux0.testing.fake.store import FakeStore, JSONObject, user_data
from flux0.testing.fake.turn import FakeTurn
from flux0.testing.fake.validation import (
    IS_ID,
    Form,
    Refusal,
    ServerFailure,
    choice,
    flag,
    integer,
    integer_of,
    text,
)

_TYPE = choice(*(kind.value for kind in EventType))
_SOURCE = choice(*(source.value for source in EventSource))

_FORMS: Mapping[str, Form] = {
    "agents.create": Form(
        members={"name": text(1, 100), "type": text(1, 100), "description": text()},
        optional=frozenset({"description"}),
    ),
    # A greeting is neither streamed nor stored by the released server, so none is made.
    "sessions.create": Form(
        query={"allow_greeting": flag},
        members={"agent_id": IS_ID, "id": IS_ID, "title": text(longest=200)},
        optional=frozenset({"id", "title"}),
    ),
    "sessions.create_event": Form(
        members={"type": _TYPE, "source": _SOURCE, "content": text()},
        optional=frozenset({"content"}),
    ),
    # The query's `types` counts for nothing in the released server.
    "sessions.list_events": Form(query={"min_offset": integer, "source": _SOURCE}, items=_TYPE),
}

# The user of requests without a cookie.
_ANONYMOUS = "anonymous"


@define(eq=False)
class FakeServer:
    """Answers requests out of a store in memory, and makes turns, in which agents are to act.

    Args:
        agent_types: the types that agents can have.
        clock: tells the time.
        lock: is held while an agent does something.
    """

    _agent_types: tuple[str, ...]
    _clock: FakeClock
    _lock: AbstractContextManager[Any]
    store: FakeStore = field(factory=FakeStore, init=False)
    # The last turn of each session.
    _turns: dict[str, FakeTurn] = field(factory=dict[str, FakeTurn], init=False)
    _operations: Mapping[str, Callable[[Request, Target, Any], Response[Any]]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._operations = {
            "agents.create": self._create_agent,
            "agents.retrieve": self._retrieve_agent,
            "agents.list": self._list_agents,
            "sessions.create": self._create_session,
            "sessions.retrieve": self._retrieve_session,
            "sessions.list": self._list_sessions,
            "sessions.create_event": self._create_event,
            "sessions.list_events": self._list_events,
        }

    def answer(self, request: Request) -> Response[Any]:
        """Return what the server answers to `request`."""
        try:
            try:
                answer = self._answer(request)
            except Refusal as refusal:
                answer = _json(refusal.status_code, {"detail": refusal.detail})
        except ServerFailure:
            answer = server_failure()
        date = formatdate(self._clock.now(), usegmt=True)
        headers = Headers((("date", date), ("server", "uvicorn"), *answer.headers.pairs))
        body = b"" if request.method == "HEAD" else answer.body
        return Response(answer.status_code, headers, body)

    def leave(self, turn: FakeTurn) -> None:
        """Take note that a client has gone from a turn's stream before its end.

        The server then cancels whatever the session is at, even if that is another turn by now;
        but nothing if the turn had ended, whether or not its end was read.
        """
        if turn.completed:
            return
        turn.cancel()
        current = self._turns.pop(turn.message.session_id, None)
        if current is not None:
            current.cancel()

    def _answer(self, request: Request) -> Response[Any]:
        target = target_of(request)
        if target.operation:
            given = _FORMS.get(target.operation, Form()).read(request, target)
            return self._operations[target.operation](request, target, given)
        if target.allowed:
            answer = _json(405, {"detail": HTTPStatus(405).phrase})
            headers = Headers((("allow", target.allowed[0]), *answer.headers.pairs))
            return evolve(answer, headers=headers)
        shorter = target.path.rstrip("/")
        if shorter != target.path and is_route(shorter):
            url = urlsplit(request.url)._replace(path=shorter).geturl()
            location = quote(url, safe=":/%#?=@[]!$&'()*+,;")
            return Response(307, Headers((("content-length", "0"), ("location", location))), b"")
        raise Refusal(404, HTTPStatus(404).phrase)

    def _create_agent(self, _: Request, __: Target, given: JSONObject) -> Response[bytes]:
        if given["type"] not in self._agent_types:
            raise Refusal(422, f"Agent type '{given['type']}' is not supported")
        agent = self.store.create_agent(
            given["name"], given["type"], given.get("description") or None, at=self._clock.now()
        )
        return _json(201, _without_nulls(agent))

    def _retrieve_agent(self, _: Request, target: Target, __: Any) -> Response[bytes]:
        return _json(200, self._agent(target.arguments["agent_id"], 404))

    def _list_agents(self, _: Request, __: Target, ___: Any) -> Response[bytes]:
        return _json(200, {"data": list(self.store.agents.values())})

    def _create_session(self, request: Request, _: Target, given: JSONObject) -> Response[bytes]:
        agent = self._agent(given["agent_id"], 400)
        session: JSONObject = {
            "id": given.get("id") or self.store.new_id("session"),
            "agent_id": agent["id"],
            "user_id": self._user_id(request),
            "title": given.get("title"),
            "consumption_offsets": {"client": 0},
            "created_at": self.store.created_at(self._clock.now()),
        }
        self.store.sessions.append(session)  # Even where there is one of that id.
        return _json(201, _without_nulls(session))

    def _retrieve_session(self, _: Request, target: Target, __: Any) -> Response[bytes]:
        session_id = target.arguments["session_id"]
        session = self._session(session_id, 404, f"Session with ID {session_id} not found")
        return _json(200, _without_nulls(session))

    def _list_sessions(self, request: Request, target: Target, _: Any) -> Response[bytes]:
        user_id, agent_id = self._user_id(request), target.query.get("agent_id")
        sessions = [
            session
            for session in self.store.sessions
            if session["user_id"] == user_id and agent_id in {None, session["agent_id"]}
        ]
        return _json(200, {"data": sessions})

    def _create_event(self, _: Request, target: Target, given: JSONObject) -> Response[FakeTurn]:
        if given["type"] != EventType.MESSAGE:
            raise Refusal(422, "Only message events can currently be added manually")
        if given["source"] != EventSource.USER:
            raise Refusal(422, 'Only "user" source is supported for direct posting.')
        if not given.get("content"):
            raise Refusal(422, "Missing 'message' field in event parameters")
        session_id = target.arguments["session_id"]
        session = self._session(session_id, 400, f"Session with ID {session_id} not found")
        content_type = ("content-type", "text/event-stream; charset=utf-8")
        headers = Headers((content_type, ("transfer-encoding", "chunked")))
        return Response(200, headers, self._begin_turn(session, given["content"]))

    def _list_events(self, _: Request, target: Target, types: list[str]) -> Response[bytes]:
        session_id, query = target.arguments["session_id"], target.query
        problem = f"Cannot list events for non-existent session with ID {session_id}"
        self._session(session_id, 400, problem)
        min_offset = integer_of(query.get("min_offset", "0")) or 0
        events = [
            event
            for event in self.store.events[session_id]
            if event["offset"] >= min_offset
            and query.get("source") in {None, event["source"]}
            and query.get("correlation_id") in {None, event["correlation_id"]}
            and (not types or event["type"] in types)
        ]
        if any(event["data"] is None for event in events):
            raise ServerFailure
        return _json(200, {"data": events})

    def _agent(self, agent_id: str, otherwise: int) -> JSONObject:
        if agent_id not in self.store.agents:
            raise Refusal(otherwise, f"Agent with ID {agent_id} not found")
        return self.store.agents[agent_id]

    def _session(self, session_id: str, otherwise: int, problem: str) -> JSONObject:
        session = self.store.session(session_id)
        if session is None:
            raise Refusal(otherwise, problem)
        return session

    def _begin_turn(self, session: JSONObject, content: str) -> FakeTurn:
        """Store a user's message, and have the agent answer it instead of what it was at."""
        agent = self.store.agents[session["agent_id"]]
        message = UserMessage(
            content=content,
            session_id=session["id"],
            user_id=session["user_id"],
            agent_id=agent["id"],
            agent_name=agent["name"],
            agent_type=agent["type"],
            correlation_id=f"RID({self.store.new_id('request')})::{self.store.new_id('turn')}",
            stored=lambda: _models(self.store.events[session["id"]]),
        )
        self.store.create_event(
            message.session_id,
            correlation_id=message.correlation_id,
            type=EventType.MESSAGE,
            source=EventSource.USER,
            data=user_data(content, message.user_id),
            at=self._clock.now(),
        )
        before = self._turns.get(message.session_id)
        if before is not None:
            before.cancel()
        turn = FakeTurn(message, self.store, self._clock, self._lock)
        self._turns[message.session_id] = turn
        return turn

    def _user_id(self, request: Request) -> str:
        # Of several, the last counts.
        subs = dict(cookie_pairs(";".join(request.headers.get_all("cookie"))))
        return self.store.user_ids[subs.get(USER_COOKIE) or _ANONYMOUS]


def _without_nulls(data: JSONObject) -> JSONObject:
    return {key: value for key, value in data.items() if value is not None}


def _models(events: list[JSONObject]) -> tuple[Event, ...]:
    from flux0.adapters.json import JsonCodec  # noqa: PLC0415 - loads cattrs

    return JsonCodec().from_dict(Events, {"data": events}).data


# Texts, which stay as they are, and small numbers, which the server spells otherwise than Python.
_TEXT_OR_SMALL = re.compile(r'"(?:[^"\\]|\\.)*"|(\d)(\.(\d+))?e-0(\d)')


def _spelled(found: re.Match[str]) -> str:
    text, digit, rest, decimals, exponent = found.group(0, 1, 2, 3, 4)
    if digit is None:
        return str(text)
    return (
        f"0.0000{digit}{decimals or ''}" if exponent == "5" else f"{digit}{rest or ''}e-{exponent}"
    )


def _json(status_code: int, data: JSONObject) -> Response[Any]:
    try:
        text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        body = _TEXT_OR_SMALL.sub(_spelled, text).encode("utf-8")
    except ValueError:  # NaN, or half of a surrogate pair: the server cannot say it either.
        raise ServerFailure from None
    return whole_answer(status_code, "application/json", body)
