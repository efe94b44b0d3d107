"""A flux0 server in memory. The integration tests compare it with the released server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import quote, urlsplit

from attrs import define, evolve, field

from flux0.domain.enums import EventSource, EventType
from flux0.domain.headers import Headers
from flux0.ports import Request, Response
from flux0.testing.fake import calls
from flux0.testing.fake.clock import FakeClock
from flux0.testing.fake.operations import NEWER_SESSION, Target, target_from, user_of
from flux0.testing.fake.steps import UserMessage
from flux0.testing.fake.store import FakeStore, JSONObject, models_of, without_nulls
from flux0.testing.fake.turn import FakeTurn
from flux0.testing.fake.turn_output import TurnOutput
from flux0.testing.fake.validation import RequestRejected, integer_of


@define(eq=False)
class FakeServer:
    """Handles the requests to a fake server. Each user message starts a turn of an agent."""

    _agent_types: tuple[str, ...]
    _clock: FakeClock
    _lock: AbstractContextManager[Any]
    _is_newer: bool
    _tokens: Mapping[str, str] | None
    _path_prefix: str
    store: FakeStore = field(init=False)
    # `_turns` maps the id of each session to the session's latest turn.
    _turns: dict[str, FakeTurn] = field(factory=dict[str, FakeTurn], init=False)

    def __attrs_post_init__(self) -> None:
        self.store = FakeStore(self._clock.now)

    def respond(self, request: Request) -> Response[Any]:
        try:
            try:
                response = self._route(request)
            except RequestRejected as error:
                response = _json(error.status_code, {"detail": error.detail})
        # `json.dumps` raises ValueError for NaN, and `str.encode` raises ValueError for a lone
        # surrogate.
        except ValueError:
            response = calls.internal_server_error()
        date = formatdate(self._clock.now(), usegmt=True)
        headers = Headers((("date", date), ("server", "uvicorn"), *response.headers.pairs))
        body = b"" if request.method == "HEAD" else response.body
        return Response(response.status_code, headers, body)

    def on_closed_early(self, turn: FakeTurn) -> None:
        """Handle the early end of a turn's stream, which its reader has closed.

        Like the real server, cancel the session's latest turn, which may be a later turn. If
        the agent has already completed `turn`, cancel nothing.
        """
        if not turn.completed:
            self._cancel_turn(turn.message.session_id)

    def _cancel_turn(self, session_id: str) -> None:
        turn = self._turns.pop(session_id, None)
        if turn is not None:
            turn.cancel()

    def _route(self, request: Request) -> Response[Any]:
        target = target_from(request, self._path_prefix)
        if (operation := target.operation) is not None:
            target = evolve(target, user_id=self._user_id(request.headers))
            name, form = operation.name, operation.form
            if self._is_newer and name == "sessions.create":
                form = NEWER_SESSION
            body = form.read(request, target.arguments, target.query)
            handle = getattr(self, f"_{name.replace('.', '_')}")
            return cast("Response[Any]", handle(target, body))
        if target.allowed:
            detail = HTTPStatus.METHOD_NOT_ALLOWED.phrase
            return _json(405, {"detail": detail}, ("allow", target.allowed[0]))
        url = urlsplit(request.url)._replace(path=target.path.rstrip("/")).geturl()
        shorter = target_from(evolve(request, url=url))
        if target.path.endswith("/") and (shorter.operation or shorter.allowed):
            location = quote(url, safe=":/%#?=@[]!$&'()*+,;")
            return Response(307, Headers((("content-length", "0"), ("location", location))), b"")
        raise RequestRejected(404, HTTPStatus.NOT_FOUND.phrase)

    def _agents_create(self, _: Target, body: JSONObject) -> Response[bytes]:
        if body["type"] not in self._agent_types:
            raise RequestRejected(422, f"Agent type '{body['type']}' is not supported")
        description = body.get("description") or None
        agent = self.store.create_agent(body["name"], body["type"], description)
        return _json(201, without_nulls(agent))

    def _agents_retrieve(self, target: Target, _: Any) -> Response[bytes]:
        return _json(200, self._agent(target.arguments["agent_id"], 404))

    def _agents_list(self, _: Target, __: Any) -> Response[bytes]:
        return _json(200, {"data": list(self.store.agents.values())})

    def _sessions_create(self, target: Target, body: JSONObject) -> Response[bytes]:
        agent = self._agent(body["agent_id"], 400)
        session: JSONObject = {
            "id": body.get("id") or self.store.new_id("session"),
            "agent_id": agent["id"],
            "user_id": target.user_id,
            "title": body.get("title"),
            "consumption_offsets": {"client": 0},
            "created_at": self.store.created_at(),
        }
        if self._is_newer:
            self._add_newer_fields(session, body)
        # Like the released server, the fake creates a new session even if another session has the
        # same id.
        self.store.sessions.append(session)
        return _json(201, without_nulls(session))

    def _add_newer_fields(self, session: JSONObject, body: JSONObject) -> None:
        if any(session["id"] == other["id"] for other in self.store.sessions):
            raise RequestRejected(409, f"Session with ID {session['id']} already exists")
        session["metadata"], session["mode"] = body.get("metadata"), body.get("mode") or "auto"
        if session["mode"] == "record":
            recording = {"recording_id": self.store.new_id("recording")}
            session["metadata"] = {**(session["metadata"] or {}), "recording": recording}

    def _sessions_retrieve(self, target: Target, _: Any) -> Response[bytes]:
        return _json(200, without_nulls(self._session(target, 404)))

    def _sessions_list(self, target: Target, _: Any) -> Response[bytes]:
        agent_id = target.query.get("agent_id")
        owned = [each for each in self.store.sessions if each["user_id"] == target.user_id]
        sessions = [each for each in owned if agent_id in {None, each["agent_id"]}]
        return _json(200, {"data": sessions})

    def _sessions_create_event(self, target: Target, body: JSONObject) -> Response[FakeTurn]:
        if body["type"] != EventType.MESSAGE:
            raise RequestRejected(422, "Only message events can currently be added manually")
        if body["source"] != EventSource.USER:
            raise RequestRejected(422, 'Only "user" source is supported for direct posting.')
        if not body.get("content"):
            raise RequestRejected(422, "Missing 'message' field in event parameters")
        store, session = self.store, self._session(target, 400)
        agent = store.agents[session["agent_id"]]
        message = UserMessage(
            content=body["content"],
            session_id=session["id"],
            user_id=session["user_id"],
            agent_id=agent["id"],
            agent_name=agent["name"],
            agent_type=agent["type"],
            correlation_id=f"RID({store.new_id('request')})::{store.new_id('turn')}",
            stored=lambda: models_of(store.events[session["id"]]),
        )
        data = {
            "type": "message",
            "tags": [],
            "flagged": False,
            "parts": [{"type": "content", "content": message.content}],
            # The real server stores the name "Anonymous" for the messages of every user.
            "participant": {"id": message.user_id, "name": "Anonymous"},
        }
        store.create_event(message, EventType.MESSAGE, EventSource.USER, data)
        self._cancel_turn(message.session_id)
        output = TurnOutput(message, store, self._is_newer, self._clock.now())
        turn = FakeTurn(output, self._clock, self._lock)
        self._turns[message.session_id] = turn
        content_type = ("content-type", "text/event-stream; charset=utf-8")
        return Response(200, Headers((content_type, ("transfer-encoding", "chunked"))), turn)

    def _sessions_list_events(self, target: Target, types: list[str]) -> Response[bytes]:
        session_id, query = target.arguments["session_id"], target.query
        self._session(target, 400, "Cannot list events for non-existent session with ID {}")
        min_offset = integer_of(query.get("min_offset", "0")) or 0
        events = [each for each in self.store.events[session_id] if each["offset"] >= min_offset]
        wanted = {name: [query[name]] for name in ("source", "correlation_id") if name in query}
        if types:
            wanted["type"] = types
        for name, values in wanted.items():
            events = [each for each in events if each[name] in values]
        if any(event["data"] is None for event in events):
            return calls.internal_server_error()
        return _json(200, {"data": events})

    def _agent(self, agent_id: str, otherwise: int) -> JSONObject:
        if agent_id not in self.store.agents:
            raise RequestRejected(otherwise, f"Agent with ID {agent_id} not found")
        return self.store.agents[agent_id]

    def _session(
        self, target: Target, otherwise: int, problem: str = "Session with ID {} not found"
    ) -> JSONObject:
        session_id = target.arguments["session_id"]
        for session in self.store.sessions:
            if session["id"] == session_id:
                # The real server uses the first session if several sessions have the same id.
                return session
        raise RequestRejected(otherwise, problem.format(session_id))

    def _user_id(self, headers: Headers) -> str:
        if self._tokens is None:
            return self.store.user_ids[user_of(headers) or "anonymous"]
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or token not in self._tokens:
            raise RequestRejected(401, "Invalid token")
        return self.store.user_ids[self._tokens[token]]


def _json(status_code: int, data: JSONObject, *fields: tuple[str, str]) -> Response[Any]:
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return calls.complete_response(status_code, "application/json", text.encode(), *fields)
