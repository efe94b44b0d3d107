"""Sends the same requests to the real server and the fake, and makes the responses comparable.

Ids and times differ between the two servers, so they are replaced by placeholders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeAlias

from attrs import frozen

from flux0.domain.errors import ReadTimeout
from flux0.domain.headers import Headers
from flux0.ports import ByteStream, Request, Response, Transport
from flux0.testing import AgentStep
from support.fake_scripts import as_script
from support.sending import Pieces

JSON = {"content-type": "application/json"}

EVENTS = "/api/sessions/SESSION/events"
STREAM = f"{EVENTS}/stream"

# Idle timeouts of streams: the short timeout is used if a timeout is expected to expire.
_SHORT_IDLE_SECONDS = 0.3
_LONG_IDLE_SECONDS = 5.0

# After a 500 response, the server leaves the connection open but unusable.
_CLOSE = ("connection", "close")

_IDS = re.compile(
    r'"(?:id|agent_id|user_id|event_id|correlation_id)": ?"([^"]+)"|^id: (.+)$', re.MULTILINE
)
_TIMES = re.compile(r'(?<="timestamp": )[0-9.]+|(?<="created_at":")[^"]+Z(?=")')
_COMPARED = frozenset({"allow", "content-type", "location", "server", "transfer-encoding"})
Pairs: TypeAlias = tuple[tuple[str, str], ...]


@frozen
class RequestSpec:
    """A request to both servers.

    AGENT and SESSION in the path and the body are replaced by the server's ids. A body that
    is not bytes is sent as JSON.
    """

    method: str
    path: str
    body: Any = None
    headers: Mapping[str, str] | Pairs = JSON


def get(path: str, body: Any = None, **headers: str) -> RequestSpec:
    return RequestSpec("GET", path, body, {**JSON, **headers})


def post(path: str, body: Any = None, **headers: str) -> RequestSpec:
    return RequestSpec("POST", path, body, {**JSON, **headers})


@frozen
class ComparedResponse:
    """A response without the values that differ between servers.

    `timed_out` is whether the read timeout expired before the body's end.
    """

    status_code: int
    headers: Mapping[str, str]
    body: str
    timed_out: bool

    @property
    def data(self) -> Any:
        """The items of a list."""
        return json.loads(self.body)["data"]


class ComparedServer:
    """The real server or the fake, with the ids of its agent and its session."""

    def __init__(self, transport: Transport, url: str, agent_id: str) -> None:
        self._transport = transport
        self._url = url
        self._agent_id = agent_id
        self._placeholders = {agent_id: "AGENT"}
        self._idle_timeout = _SHORT_IDLE_SECONDS
        self._has_timed_out = False

    def ask(self, spec: RequestSpec) -> ComparedResponse:
        """Send a request and read the response to its end, or until the idle timeout expires."""
        return self.read(self.send(spec))

    def send(self, spec: RequestSpec) -> Response[ByteStream]:
        """Send a request."""
        path, body = spec.path, spec.body
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        for own, name in self._placeholders.items():
            path = path.replace(name, own)
            body = body and body.replace(name.encode(), own.encode())
        fields = spec.headers
        headers = Headers((*(fields.items() if isinstance(fields, Mapping) else fields), _CLOSE))
        url = self._url + path
        return self._transport.send(Request(spec.method, url, headers, body, stream=True))

    def read(self, response: Response[ByteStream]) -> ComparedResponse:
        """Read the remaining body of a response."""
        pieces: list[bytes] = []
        timed_out = True
        with suppress(ReadTimeout, AssertionError):  # AssertionError: a gate timed out.
            pieces.extend(Pieces(response.body, self._idle_timeout))
            timed_out = False
        response.body.close()
        self._has_timed_out |= timed_out
        headers = {
            name: self._with_placeholders(value.replace(self._url, "URL"))
            for name, value in response.headers.items()
            if name in _COMPARED
        }
        return ComparedResponse(
            response.status_code, headers, self._without_ids_and_times(b"".join(pieces)), timed_out
        )

    def read_next(self, response: Response[ByteStream]) -> str:
        """Read one piece of a response; empty at its end."""
        return self._without_ids_and_times(response.body.read(self._idle_timeout) or b"")

    def use_timeout_after(self, other: ComparedServer) -> None:
        """Use the short idle timeout only if a timeout expired in the session of `other`."""
        self._idle_timeout = _SHORT_IDLE_SECONDS if other._has_timed_out else _LONG_IDLE_SECONDS

    def new_session(self) -> None:
        """Create a session with the first agent."""
        self._has_timed_out = False
        response = self.send(post("/api/sessions", {"agent_id": "AGENT"}))
        session_id = json.loads(b"".join(Pieces(response.body)))["id"]
        self._placeholders = {self._agent_id: "AGENT", session_id: "SESSION"}

    def begin(self, *steps: AgentStep) -> Response[ByteStream]:
        """Send a message with which the agent performs `steps`."""
        return self.begin_script(as_script(steps))

    def begin_script(self, script: list[dict[str, Any]]) -> Response[ByteStream]:
        """Send a message with a script for `scripted_agent.py`."""
        content = json.dumps(script)
        return self.send(post(STREAM, {"type": "message", "source": "user", "content": content}))

    def events(self) -> ComparedResponse:
        """List the session's stored events."""
        return self.ask(get(EVENTS))

    def _without_ids_and_times(self, body: bytes) -> str:
        """Replace ids by numbered placeholders, in order of appearance, and times by TIME."""

        def placeholder(found: re.Match[str]) -> str:
            own = found[1] or found[2]
            name = self._placeholders.setdefault(own, f"ID({len(self._placeholders)})")
            return found[0].replace(own, name)

        return self._with_placeholders(
            _IDS.sub(placeholder, _TIMES.sub("TIME", body.decode("utf-8")))
        )

    def _with_placeholders(self, text: str) -> str:
        """Replace the ids of agent and session in text, such as in error messages."""
        for own, name in list(self._placeholders.items())[:2]:
            text = text.replace(own, name)
        return text
