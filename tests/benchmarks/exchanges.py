"""Streams and calls over loopback, beside the bare libraries; and the core's share of a call."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks import data, libraries
from benchmarks.measuring import Case, Effort
from benchmarks.server import EVENT_BYTES, serving, session_id
from flux0 import Flux0
from flux0.domain.headers import Headers
from flux0.ports import Request, Response

_CALL_TARGETS = {"urllib3": 1.3, "aiohttp": 1.3}


def streams(effort: Effort) -> Iterator[Case]:
    """A turn, its events one by one: ours against bare bytes and `json.loads` of each event."""
    return _turns("stream", effort, count=300, pause=0.0005, target=1.25)


def bursts(effort: Effort) -> Iterator[Case]:
    """The same, all events at once: the library has the least to do for each."""
    return _turns("burst", effort, count=1000, pause=0.0, target=None)


def _turns(
    scenario: str, effort: Effort, *, count: int, pause: float, target: float | None
) -> Iterator[Case]:
    session = session_id(count, pause)
    texts = data.texts(data.turn(EVENT_BYTES, count))

    def bare(library: libraries.Library, url: str) -> None:
        decoded = map(json.loads, texts)  # One as each piece comes, as a program would, and ...
        library.to_the_end(library.read, url, decoded)()
        deque(decoded, 0)  # ... the others where several came in one piece.

    with serving() as base:
        url = f"{base}/api/sessions/{session}/events/stream"
        for library in libraries.all_of():
            ours = _ours if library.loop is None else _ours_async
            client = Flux0(base, transport=library.transport())
            yield Case(
                scenario,
                library.name,
                effort.cpu(count, library.to_the_end(ours, client, session)),
                {"bare + json.loads": effort.cpu(count, bare, library, url)},
                target=target,
            )


def _ours(client: Flux0, session: str) -> None:
    for _ in client.sessions.create_event(session_id=session, content="Hi"):
        pass


async def _ours_async(client: Flux0, session: str) -> None:
    async for _ in await client.sessions.create_event_async(session_id=session, content="Hi"):
        pass


def calls(effort: Effort) -> Iterator[Case]:
    """`agents.list()` of ten agents: ours against the bare library and `json.loads`."""
    with serving() as base:
        for library in libraries.all_of():
            agents = Flux0(base, transport=library.transport()).agents
            ours = agents.list if library.loop is None else agents.list_async
            bare = library.to_the_end(library.fetch, f"{base}/api/agents")
            yield Case(
                "call",
                library.name,
                effort.cpu(1, library.to_the_end(ours)),
                {"bare + json.loads": effort.cpu(1, bare)},
                target=_CALL_TARGETS.get(library.name, 1.15),
            )


def core(effort: Effort) -> Iterator[Case]:
    """The core's own share of a call: a transport that does nothing, against `json.loads`."""
    body = data.listing(10, data.AGENT)
    client = Flux0(transport=Stub((body,)))
    name = "agents.list() over a transport that does nothing"
    peers = {"json.loads": effort.cpu(1, json.loads, body)}
    yield Case("core", name, effort.cpu(1, client.agents.list), peers)


class Stub:
    """A transport that answers every request with the same pieces, which come from nowhere."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces

    def send(self, request: Request) -> Response[Any]:
        """Return the answer, with the content type that was asked for."""
        return Response(200, Headers((("content-type", request.headers["accept"]),)), self)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pieces)

    def close(self) -> None:
        """Close nothing: neither the transport nor the body, which it is too."""
