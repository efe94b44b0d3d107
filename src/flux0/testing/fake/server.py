"""A flux0 server in memory: requests in, answers out, as the released server gives them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, urlsplit

from attrs import evolve

from flux0.domain.enums import EventSource, EventType
from flux0.domain.headers import Headers
from flux0.domain.models import Event, Events
from flux0.ports import Request
from flux0.testing.fake.agents import Script, UserMessage
from flux0.testing.fake.calls import USER_COOKIE, cookie_pairs
from flux0.testing.fake.clock import FakeClock
from flux0.testing.fake.routing import (
    FakeAnswer,
    Target,
    is_route,
    server_failure,
    target_of,
    whole_answer,
)
from flux0.testing.fake.store import FakeStore, JSONObject, user_data
from flux0.testing.fake.turn import Drafts, FakeTurn
from flux0.testing.fake.validation import Checks, Choice, Refusal, ServerFailure, Text, body_of

ID_LENGTH: Final = 10
_ID = Text(shortest=ID_LENGTH, longest=ID_LENGTH)
_TYPES = tuple(kind.value for kind in EventType)
_SOURCES = tuple(source.value for source in EventSource)

_NEW_AGENT: Mapping[str, Text | Choice] = {
    "name": Text(shortest=1, longest=100),
    "type": Text(shortest=1, longest=100),
    "description": Text(required=False),
}
_NEW_SESSION: Mapping[str, Text | Choice] = {
    "agent_id": _ID,
    "id": evolve(_ID, required=False),
    "title": Text(required=False, longest=200),
}
_NEW_EVENT: Mapping[str, Text | Choice] = {
    "type": Choice(_TYPES),
    "source": Choice(_SOURCES),
    "content": Text(required=False),
}

# The user of requests without a cookie.
_ANONYMOUS = "anonymous"


class FakeServer:
    """Answers requests out of a store in memory, and begins turns.

    Args:
        next_script: is called for each turn, and returns what the agent does in it.
        agent_types: the types that agents can have.
        clock: tells the time.
        lock: is held while the server does something.
        on_error: is told what agents raise.
    """

    def __init__(
        self,
        next_script: Callable[[], Script],
        agent_types: tuple[str, ...],
        clock: FakeClock,
        lock: AbstractContextManager[Any],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self.store: FakeStore = FakeStore()
        self._next_script = next_script
        self._agent_types = agent_types
        self._clock = clock
        self._lock = lock
        self._on_error = on_error
        self._drafts = Drafts()
        # The last turn of each session.
        self._turns: dict[str, FakeTurn] = {}
        self._operations: Mapping[str, Callable[[Request, Target], FakeAnswer]] = {
            "agents.create": self._create_agent,
            "agents.retrieve": self._retrieve_agent,
            "agents.list": self._list_agents,
            "sessions.create": self._create_session,
            "sessions.retrieve": self._retrieve_session,
            "sessions.list": self._list_sessions,
            "sessions.create_event": self._create_event,
            "sessions.list_events": self._list_events,
        }

    def answer(self, request: Request) -> FakeAnswer:
        """Return what the server answers to `request`."""
        try:
            answer = self._answer(request)
        except ServerFailure:
            answer = server_failure()
        date = formatdate(self._clock.now(), usegmt=True)
        headers = Headers((("date", date), ("server", "uvicorn"), *answer.headers.pairs))
        body = b"" if request.method == "HEAD" else answer.body
        return FakeAnswer(answer.status_code, headers, body)

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

    def _answer(self, request: Request) -> FakeAnswer:
        try:
            return self._answer_or_refuse(request)
        except Refusal as refusal:
            return _json(refusal.status_code, {"detail": refusal.detail})

    def _answer_or_refuse(self, request: Request) -> FakeAnswer:
        target = target_of(request)
        if target.operation:
            return self._operations[target.operation](request, target)
        if target.allowed:
            answer = _json(405, {"detail": HTTPStatus(405).phrase})
            headers = Headers((("allow", target.allowed[0]), *answer.headers.pairs))
            return evolve(answer, headers=headers)
        shorter = target.path.rstrip("/")
        if shorter != target.path and is_route(shorter):
            url = urlsplit(request.url)._replace(path=shorter).geturl()
            location = quote(url, safe=":/%#?=@[]!$&'()*+,;")
            return FakeAnswer(307, Headers((("content-length", "0"), ("location", location))))
        raise Refusal(404, HTTPStatus(404).phrase)

    def _create_agent(self, request: Request, _: Target) -> FakeAnswer:
        checks = Checks()
        given = checks.members(body_of(request), _NEW_AGENT)
        checks.conclude()
        if given["type"] not in self._agent_types:
            raise Refusal(422, f"Agent type '{given['type']}' is not supported")
        agent = self.store.create_agent(
            given["name"], given["type"], given.get("description") or None, at=self._clock.now()
        )
        return _json(201, _without_nulls(agent))

    def _retrieve_agent(self, _: Request, target: Target) -> FakeAnswer:
        checks = Checks()
        agent_id = _path_id(target, "agent_id", checks)
        checks.conclude()
        agent = self.store.agent(agent_id)
        if agent is None:
            raise Refusal(404, f"Agent with ID {agent_id} not found")
        return _json(200, agent)

    def _list_agents(self, _: Request, __: Target) -> FakeAnswer:
        return _json(200, {"data": self.store.agents()})

    def _create_session(self, request: Request, target: Target) -> FakeAnswer:
        body = body_of(request)
        checks = Checks()
        if "allow_greeting" in target.query:
            # A greeting is neither streamed nor stored by the released server, so none is made.
            checks.flag(("query", "allow_greeting"), target.query["allow_greeting"])
        given = checks.members(body, _NEW_SESSION)
        checks.conclude()
        if self.store.agent(given["agent_id"]) is None:
            raise Refusal(400, f"Agent with ID {given['agent_id']} not found")
        session = self.store.create_session(
            given["agent_id"],
            self._user_id(request),
            id=given.get("id"),
            title=given.get("title"),
            at=self._clock.now(),
        )
        return _json(201, _without_nulls(session))

    def _retrieve_session(self, _: Request, target: Target) -> FakeAnswer:
        checks = Checks()
        session_id = _path_id(target, "session_id", checks)
        checks.conclude()
        session = self.store.session(session_id)
        if session is None:
            raise Refusal(404, f"Session with ID {session_id} not found")
        return _json(200, _without_nulls(session))

    def _list_sessions(self, request: Request, target: Target) -> FakeAnswer:
        agent_id = target.query.get("agent_id")
        return _json(200, {"data": self.store.sessions(self._user_id(request), agent_id)})

    def _create_event(self, request: Request, target: Target) -> FakeAnswer:
        body = body_of(request)
        checks = Checks()
        session_id = _path_id(target, "session_id", checks)
        given = checks.members(body, _NEW_EVENT)
        checks.conclude()
        if given["type"] != EventType.MESSAGE:
            raise Refusal(422, "Only message events can currently be added manually")
        if given["source"] != EventSource.USER:
            raise Refusal(422, 'Only "user" source is supported for direct posting.')
        if not given.get("content"):
            raise Refusal(422, "Missing 'message' field in event parameters")
        session = self.store.session(session_id)
        if session is None:
            raise Refusal(400, f"Session with ID {session_id} not found")
        turn = self._begin_turn(session, given["content"])
        headers = Headers(
            (
                ("content-type", "text/event-stream; charset=utf-8"),
                ("transfer-encoding", "chunked"),
            )
        )
        return FakeAnswer(200, headers, turn)

    def _begin_turn(self, session: JSONObject, content: str) -> FakeTurn:
        """Store a user's message, and have the agent answer it instead of what it was at."""
        agent = self.store.agent_of(session)
        message = UserMessage(
            content=content,
            session_id=session["id"],
            user_id=session["user_id"],
            agent_id=agent["id"],
            agent_name=agent["name"],
            agent_type=agent["type"],
            correlation_id=f"RID({self.store.new_id('request')})::{self.store.new_id('turn')}",
            stored=lambda: _models(self.store.events(session["id"])),
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
        turn = FakeTurn(
            message,
            self._next_script(),
            self.store,
            self._drafts,
            self._clock,
            self._lock,
            self._on_error,
        )
        self._turns[message.session_id] = turn
        return turn

    def _list_events(self, request: Request, target: Target) -> FakeAnswer:
        body = body_of(request)
        checks = Checks()
        session_id = _path_id(target, "session_id", checks)
        query = target.query
        min_offset = None
        if "min_offset" in query:
            min_offset = checks.integer(("query", "min_offset"), query["min_offset"])
        if "source" in query:
            checks.choice(("query", "source"), query["source"], _SOURCES)
        # The query's `types` counts for nothing in the released server.
        types = checks.names(body, _TYPES)
        checks.conclude()
        if self.store.session(session_id) is None:
            problem = f"Cannot list events for non-existent session with ID {session_id}"
            raise Refusal(400, problem)
        events = self.store.events(
            session_id,
            min_offset=min_offset,
            source=query.get("source"),
            correlation_id=query.get("correlation_id"),
            types=types,
        )
        if any(event["data"] is None for event in events):
            raise ServerFailure
        return _json(200, {"data": events})

    def _user_id(self, request: Request) -> str:
        # Of several, the last counts.
        subs = dict(cookie_pairs(";".join(request.headers.get_all("cookie"))))
        return self.store.user_id(subs.get(USER_COOKIE) or _ANONYMOUS)


def _path_id(target: Target, name: str, checks: Checks) -> str:
    value = target.arguments[name]
    checks.text(("path", name), value, shortest=ID_LENGTH, longest=ID_LENGTH)
    return value


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


def _json(status_code: int, data: JSONObject) -> FakeAnswer:
    try:
        text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        body = _TEXT_OR_SMALL.sub(_spelled, text).encode("utf-8")
    except ValueError:  # NaN, or half of a surrogate pair: the server cannot say it either.
        raise ServerFailure from None
    return whole_answer(status_code, "application/json", body)
