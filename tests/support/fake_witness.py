"""Asks the real server and the fake the same, in words in which both can answer the same."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeAlias

from attrs import frozen

from flux0.domain.errors import ReadTimeout
from flux0.domain.headers import Headers
from flux0.ports import ByteStream, Request, Response, Timeout, Transport
from flux0.testing import AgentStep
from support.fake_scripts import as_script

JSON = {"content-type": "application/json"}

EVENTS = "/api/sessions/SESSION/events"
STREAM = f"{EVENTS}/stream"

# How long a stream has to say nothing to count as silent: where it is to be, and where it is not.
_SILENCE_SECONDS = 0.3
_SLOW_SECONDS = 5.0

# The server leaves a connection unusable after a 500, and does not say so.
_ALONE = ("connection", "close")

_IDS = re.compile(
    r'"(?:id|agent_id|user_id|event_id|correlation_id)": ?"([^"]+)"|^id: (.+)$', re.MULTILINE
)
_TIMES = re.compile(r'(?<="timestamp": )[0-9.]+|(?<="created_at":")[^"]+Z(?=")')
_COMPARED = frozenset({"allow", "content-type", "location", "server", "transfer-encoding"})
Pairs: TypeAlias = tuple[tuple[str, str], ...]


@frozen
class Question:
    """A request. AGENT and SESSION in its path and its body stand for a server's own ids.

    A body that is not bytes is sent as JSON.
    """

    method: str
    path: str
    body: Any = None
    headers: Mapping[str, str] | Pairs = JSON


def get(path: str, body: Any = None, **headers: str) -> Question:
    return Question("GET", path, body, {**JSON, **headers})


def post(path: str, body: Any = None, **headers: str) -> Question:
    return Question("POST", path, body, {**JSON, **headers})


@frozen
class ComparedAnswer:
    """What a server answers, with what has to be different taken out."""

    status_code: int
    headers: Mapping[str, str]
    body: str
    silent: bool

    @property
    def data(self) -> Any:
        """What a list holds."""
        return json.loads(self.body)["data"]


class Witness:
    """One of the two servers, and the ids by which it knows what both have."""

    def __init__(self, transport: Transport, url: str, agent_id: str) -> None:
        self._transport = transport
        self._url = url
        self._agent_id = agent_id
        self._names = {agent_id: "AGENT"}
        self._longest_silence = _SILENCE_SECONDS
        self._was_silent = False

    def ask(self, question: Question) -> ComparedAnswer:
        """Send a request and read the answer to its end, or until it falls silent."""
        return self.read(self.send(question))

    def send(self, question: Question) -> Response[ByteStream]:
        """Send a request."""
        path, body = question.path, question.body
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        for own, name in self._names.items():
            path = path.replace(name, own)
            body = body and body.replace(name.encode(), own.encode())
        given = question.headers
        headers = Headers((*(given.items() if isinstance(given, Mapping) else given), _ALONE))
        timeout = Timeout(idle=self._longest_silence)
        url = self._url + path
        return self._transport.send(
            Request(question.method, url, headers, body, stream=True, timeout=timeout)
        )

    def read(self, response: Response[ByteStream]) -> ComparedAnswer:
        """Read what is left of an answer."""
        pieces: list[bytes] = []
        silent = True
        with suppress(ReadTimeout, AssertionError):  # At a gate of a fake, which nobody opens.
            pieces.extend(response.body)
            silent = False
        response.body.close()
        self._was_silent |= silent
        headers = {
            name: self._named(value.replace(self._url, "URL"))
            for name, value in response.headers.items()
            if name in _COMPARED
        }
        return ComparedAnswer(
            response.status_code, headers, self._comparable(b"".join(pieces)), silent
        )

    def read_next(self, response: Response[ByteStream]) -> str:
        """Read one piece of an answer; empty at its end."""
        return self._comparable(next(iter(response.body), b""))

    def be_patient_if_not_silent(self, other: Witness) -> None:
        """Wait long for a slow server, unless `other` was silent since its session was opened."""
        self._longest_silence = _SILENCE_SECONDS if other._was_silent else _SLOW_SECONDS

    def new_session(self) -> None:
        """Open a session with the agent that is there from the start."""
        self._was_silent = False
        response = self.send(post("/api/sessions", {"agent_id": "AGENT"}))
        session_id = json.loads(b"".join(response.body))["id"]
        self._names = {self._agent_id: "AGENT", session_id: "SESSION"}

    def begin(self, *steps: AgentStep) -> Response[ByteStream]:
        """Send a message that has the agent do `steps`."""
        return self.begin_script(as_script(steps))

    def begin_script(self, script: list[dict[str, Any]]) -> Response[ByteStream]:
        """Send a message that is a script of `scripted_agent.py`."""
        content = json.dumps(script)
        return self.send(post(STREAM, {"type": "message", "source": "user", "content": content}))

    def events(self) -> ComparedAnswer:
        """List what the session has stored."""
        return self.ask(get(EVENTS))

    def _comparable(self, body: bytes) -> str:
        """Name ids by the order in which they come, and take times out."""

        def named(found: re.Match[str]) -> str:
            own = found[1] or found[2]
            name = self._names.setdefault(own, f"ID({len(self._names)})")
            return found[0].replace(own, name)

        return self._named(_IDS.sub(named, _TIMES.sub("TIME", body.decode("utf-8"))))

    def _named(self, text: str) -> str:
        """Name what a text calls by one's own ids, such as "Agent with ID ... not found"."""
        for own, name in list(self._names.items())[:2]:
            text = text.replace(own, name)
        return text
