"""Functions that send raw requests to a fake, or run turns over a client."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from flux0 import Flux0
from flux0.domain.headers import Headers
from flux0.models import Event, StreamEvent
from flux0.ports import Request
from flux0.testing import AgentReply, FakeTransport
from support.sending import Pieces

JSON = {"content-type": "application/json"}
URL = "http://127.0.0.1:8080"
IDLE_TIMEOUT = 600.0  # The default of a client.


def request(
    method: str, path: str, body: Any = None, headers: Mapping[str, str] = JSON, **options: Any
) -> Request:
    """Return a request to a fake. A body that is not bytes is sent as JSON."""
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    return Request(method, f"{URL}{path}", Headers(tuple(headers.items())), body, **options)


@frozen
class CompleteResponse:
    """A response of a fake, with its complete body."""

    status_code: int
    headers: Headers
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def detail(self) -> Any:
        return self.json["detail"]


def ask(
    fake: FakeTransport, method: str, path: str, body: Any = None, headers: Mapping[str, str] = JSON
) -> CompleteResponse:
    """Send a request and read the response to its end."""
    response = fake.send(request(method, path, body, headers))
    return CompleteResponse(response.status_code, response.headers, b"".join(Pieces(response.body)))


def new_session(fake: FakeTransport, **more: Any) -> str:
    """Create a session with the fake's agent, and return its id."""
    session_id = ask(fake, "POST", "/api/sessions", {"agent_id": fake.agent_id, **more}).json["id"]
    assert isinstance(session_id, str)
    return session_id


def message_to(session_id: str, content: str = "Hi") -> Request:
    """Return a request that sends a message and streams the turn."""
    path = f"/api/sessions/{session_id}/events/stream"
    body = {"type": "message", "source": "user", "content": content}
    return request("POST", path, body, stream=True)


def turn(fake: FakeTransport, content: str = "Hi") -> tuple[list[StreamEvent], list[Event]]:
    """Run a turn in a new session; return the streamed events and the agent's stored events."""
    session_id = new_session(fake)
    with Flux0(transport=fake) as flux0:
        events = list(flux0.sessions.create_event(session_id=session_id, content=content))
        stored = flux0.sessions.list_events(session_id=session_id, source="ai_agent")
    return events, list(stored)


def post(fake: FakeTransport, session_id: str, content: str = "Hi") -> Pieces:
    """Send a message, and return the pieces of the response's body."""
    return Pieces(fake.send(message_to(session_id, content)).body, IDLE_TIMEOUT)


def begin(reply: AgentReply, **options: Any) -> tuple[FakeTransport, str, Pieces]:
    """Send a message to a new fake; return the fake, the session id, and the body's pieces."""
    fake = FakeTransport(reply, **options)
    session_id = new_session(fake)
    return fake, session_id, post(fake, session_id)


def kinds(fake: FakeTransport, session_id: str) -> list[Any]:
    """Return the types of the stored events of a session; for status events, the statuses."""
    events = ask(fake, "GET", f"/api/sessions/{session_id}/events").json["data"]
    return [event["data"].get("status", event["type"]) for event in events]
