"""Streams and calls over loopback, beside the bare libraries; and the core's share of a call."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from benchmarks import data, libraries
from benchmarks.measuring import Case, Cpu, Effort, in_loop
from benchmarks.server import EVENT_BYTES, serving, session_id
from flux0 import Flux0
from flux0.domain.headers import Headers
from flux0.ports import Request, Response

# How many events a turn has, and the seconds between them.
_ONE_BY_ONE = (300, 0.0005)
_AT_ONCE = (1000, 0.0)
_CALL_TARGETS = {"urllib3": 1.3, "aiohttp": 1.3}


def streams(effort: Effort) -> Iterator[Case]:
    """A turn, its events one by one: ours against bare bytes and `json.loads` of each event."""
    return _turns("stream", effort, *_ONE_BY_ONE, target=1.25)


def bursts(effort: Effort) -> Iterator[Case]:
    """The same, all events at once: the library has the least to do for each."""
    return _turns("burst", effort, *_AT_ONCE, target=None)


def _turns(
    scenario: str, effort: Effort, count: int, pause: float, *, target: float | None
) -> Iterator[Case]:
    texts = data.texts(data.turn(EVENT_BYTES, count))
    session = session_id(count, pause)
    with serving() as base:
        for library in libraries.all_of():
            ours, bare = _reading(library, base, session, texts)
            yield Case(
                scenario,
                library.name,
                Cpu(ours, effort.seconds, count),
                {"bare + json.loads": Cpu(bare, effort.seconds, count)},
                target=target,
            )


def _reading(
    library: libraries.Library, base: str, session: str, texts: list[str]
) -> tuple[Callable[[], object], Callable[[], object]]:
    client: Any = Flux0(base, transport=library.transport())
    url = f"{base}/api/sessions/{session}/events/stream"
    read: Any = library.read

    def loads() -> None:
        for text in texts:
            json.loads(text)

    if library.loop is None:

        def ours() -> None:
            for _ in client.sessions.create_event(session_id=session, content="Hi"):
                pass

        def bare() -> None:
            read(url)
            loads()

        return ours, bare

    async def ours_async() -> None:
        async for _ in await client.sessions.create_event_async(session_id=session, content="Hi"):
            pass

    async def bare_async() -> None:
        await read(url)
        loads()

    return in_loop(library.loop, ours_async), in_loop(library.loop, bare_async)


def calls(effort: Effort) -> Iterator[Case]:
    """`agents.list()` of ten agents: ours against the bare library and `json.loads`."""
    with serving() as base:
        for library in libraries.all_of():
            client: Any = Flux0(base, transport=library.transport())
            fetch: Any = library.fetch
            ours, bare = client.agents.list, _bound(fetch, f"{base}/api/agents")
            if library.loop is not None:
                ours = in_loop(library.loop, client.agents.list_async)
                bare = in_loop(library.loop, bare)
            yield Case(
                "call",
                library.name,
                Cpu(ours, effort.seconds),
                {"bare + json.loads": Cpu(bare, effort.seconds)},
                target=_CALL_TARGETS.get(library.name, 1.15),
            )


def core(effort: Effort) -> Iterator[Case]:
    """The core's own share of a call: a transport that does nothing, against `json.loads`."""
    body = data.listing(10, data.AGENT)
    client = Flux0(transport=Stub((body,)))
    yield Case(
        "core",
        "agents.list() over a transport that does nothing",
        Cpu(client.agents.list, effort.seconds),
        {"json.loads": Cpu(_bound(json.loads, body), effort.seconds)},
    )


class Stub:
    """A transport that answers every request with the same pieces, which come from nowhere."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._body = _StubBody(pieces)

    def send(self, request: Request) -> Response[Any]:
        """Return the answer, with the content type that was asked for."""
        return Response(200, Headers((("content-type", request.headers["accept"]),)), self._body)

    def close(self) -> None:
        """Close nothing."""


class _StubBody:
    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pieces)

    def close(self) -> None:
        pass


def _bound(function: Callable[[Any], Any], argument: object) -> Callable[[], Any]:
    return lambda: function(argument)
