"""A transport that goes nowhere: it plays what `RecordingTransport` has recorded."""

from __future__ import annotations

import json
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from os import PathLike
from pathlib import Path
from threading import RLock
from typing import Any, Literal, TypeAlias, get_args
from urllib.parse import parse_qs

from attrs import define

from flux0.domain.errors import InvalidArgument
from flux0.domain.headers import Headers
from flux0.ports import AsyncTransport, Request, Response, Transport
from flux0.runtime.event_loop import Loop
from flux0.testing.cassettes.cassette import (
    CLOSED,
    ERRORS,
    WHOLE,
    RecordedExchange,
    RecordedRequest,
    RecordedResponse,
    how_to_record,
    read_cassette,
)
from flux0.testing.cassettes.recording import RecordingTransport, Scrub, recorded_request
from flux0.testing.fake.body import FakeBody, SharedTransport
from flux0.testing.fake.calls import Call, call_from, nearest
from flux0.testing.fake.clock import FakeClock, Wait, Waits

Matching: TypeAlias = Literal["strict", "loose"]
CassetteMode: TypeAlias = Literal["once", "none", "all"]

_NOTHING = object()


@define(eq=False)
class _Track:
    """An exchange of a cassette, by its number from 1, and whether it has been played."""

    number: int
    exchange: RecordedExchange
    key: str
    played: bool = False

    def __str__(self) -> str:
        return f"exchange {self.number}, {_call(self.exchange.request)}"


class ReplayTransport(SharedTransport):
    """A `Transport` and an `AsyncTransport` that answer as a cassette says.

    What was recorded happens again: heads, pieces of bodies, errors, and the time between them,
    whatever a request's timeouts are. The time passes on a clock of its own, so nothing waits.

    A request matches a recorded one of the same method, path, query and body; bodies are compared
    as JSON, and header fields are not compared. A request that matches none, or not in its turn, is
    an AssertionError that tells what is different, and so is reading on where the recorded program
    had left an answer.

    Args:
        path: the cassette.
        matching: "strict" wants the requests in the order in which they were recorded. "loose"
            takes them in any order, each once; a request that matches no other recorded one is
            taken any number of times.
        match: returns the part of a `Call` that has to be equal, such as
            `lambda call: call.operation`, if some of its content changes from run to run.
        scrub: what the recording was given as `scrub`, if anything.
        sleep: is called with the seconds of each wait, such as `time.sleep`.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        matching: Matching = "strict",
        *,
        match: Callable[[Call], object] | None = None,
        scrub: Scrub | None = None,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        if matching not in get_args(Matching):
            raise InvalidArgument("matching", f'must be "strict" or "loose", not {matching!r}')
        super().__init__(FakeClock(sleep=sleep))
        self._path = Path(path)
        self._match = match
        self._scrub = scrub
        self._lock = RLock()
        self._tracks = tuple(
            _Track(number, exchange, self._key(exchange.request))
            for number, exchange in enumerate(read_cassette(self._path), start=1)
        )
        self._find = self._next_track if matching == "strict" else self._any_track
        self._following = deque(self._tracks)
        self._alike: defaultdict[str, list[_Track]] = defaultdict(list)
        for track in self._tracks:
            self._alike[track.key].append(track)
        self._left = {key: iter(alike) for key, alike in self._alike.items()}

    def __repr__(self) -> str:
        return f"ReplayTransport({str(self._path)!r})"

    def assert_all_used(self) -> None:
        """Raise AssertionError if some exchange of the cassette was not played."""
        unused = [str(track) for track in self._tracks if not track.played]
        if unused:
            raise AssertionError("\n".join((f"not all of {self._path} was played:", *unused)))

    # --- within

    def respond(
        self,
        request: Request,
        loop: Loop | None,  # noqa: ARG002 - there is no agent to run in it
    ) -> Waits[Response[FakeBody]]:
        """Return what was recorded as the answer to `request`; see `SharedTransport.respond`."""
        with self._lock:
            asked = recorded_request(request, self._scrub)
            track = self._find(asked, self._key(asked))
            track.played = True
        sent = self.clock.now()
        response = track.exchange.response
        if response is None:
            yield Wait(sent + track.exchange.after)
            raise self._failure(request, track)
        began = sent + response.after
        yield Wait(began)
        pieces = self._pieces(request, track, response, began)
        headers = Headers(tuple(response.headers.items()))
        body = FakeBody(pieces, None, self.clock, self._lock, lambda _, __: None)
        return Response(response.status_code, headers, body)

    def _pieces(
        self, request: Request, track: _Track, response: RecordedResponse, began: float
    ) -> Iterator[bytes | Wait]:
        for piece in response.pieces:
            yield Wait(began + piece.after)
            yield piece.data
        yield Wait(began + track.exchange.after)
        if track.exchange.end != WHOLE:
            raise self._failure(request, track)

    def _failure(self, request: Request, track: _Track) -> Exception:
        exchange = track.exchange
        if exchange.end != CLOSED:
            return ERRORS[exchange.end](f"recorded in {self._path}")
        if request.deadline is not None and request.deadline.left(self.clock.now()) < 0:
            return request.deadline.exceeded()  # Why it was left.
        return AssertionError(
            f"{self._path} has no more of {track}: the program left it there, {exchange.after:g} s "
            f"{'after the request' if exchange.response is None else 'into the answer'}\n"
            f"To have the rest of it, record it anew {how_to_record(self._path)}."
        )

    # --- finding what a request is answered with

    def _next_track(self, request: RecordedRequest, key: str) -> _Track:
        if self._following and self._following[0].key == key:
            return self._following.popleft()
        lines = [f"{_call(request)} is not what comes next in {self._path}"]
        if not self._following:
            lines.append(f"all exchanges were played, {len(self._tracks)} in number")
        else:
            track = self._following[0]
            lines.append("\n  ".join((f"next: {track}", *_differences(track, request))))
        later = [str(track.number) for track in self._alike.get(key, ()) if not track.played]
        if later:
            lines.append(f'it is exchange {", ".join(later)}: matching="loose" takes any order')
        raise self._refusal(*lines)

    def _any_track(self, request: RecordedRequest, key: str) -> _Track:
        alike = self._alike.get(key, [])
        track = alike[0] if len(alike) == 1 else next(self._left.get(key, iter(())), None)
        if track is not None:
            return track
        asked = _call(request)
        if alike:
            numbers = ", ".join(str(track.number) for track in alike)
            problem = f"{asked} was made more often than {self._path} has it"
            raise self._refusal(problem, f"exchanges {numbers} were played")
        near = nearest(asked, self._tracks, lambda track: _differences(track, request))
        raise self._refusal(f"{asked} is not in {self._path}", *([f"nearest: {near}"] * bool(near)))

    def _key(self, request: RecordedRequest) -> str:
        """Return a text that requests share which match each other."""
        return _spelled(_members(request) if self._match is None else self._match(_call(request)))

    def _refusal(self, *lines: str) -> AssertionError:
        return AssertionError(
            "\n".join(lines) + "\nThe program or the cassette has changed. If the cassette is "
            f"stale, record it anew {how_to_record(self._path)}."
        )


def cassette(
    path: str | PathLike[str],
    transport: Callable[[], Transport | AsyncTransport] | None = None,
    *,
    mode: CassetteMode | None = None,
    matching: Matching = "strict",
    match: Callable[[Call], object] | None = None,
    scrub: Scrub | None = None,
) -> RecordingTransport | ReplayTransport:
    """Return a transport that replays a cassette, or one that records it.

    Args:
        path: the cassette.
        transport: returns what sends the requests when recording; by default `HttpxTransport`.
        mode: "once" replays a cassette that exists, and records one that does not; "none" only
            replays; "all" only records. The default is "none" where the environment variable `CI`
            is set, and "once" elsewhere.
        matching, match, scrub: see `ReplayTransport`.
    """
    if mode is None:
        mode = "none" if os.environ.get("CI", "").lower() not in {"", "0", "false"} else "once"
    elif mode not in get_args(CassetteMode):
        raise InvalidArgument("mode", f'must be "once", "none" or "all", not {mode!r}')
    if mode == "none" or (mode == "once" and Path(path).exists()):
        return ReplayTransport(path, matching, match=match, scrub=scrub)
    if transport is None:
        from flux0.adapters.httpx import HttpxTransport  # noqa: PLC0415 - loads httpx

        transport = HttpxTransport
    return RecordingTransport(transport(), path, scrub=scrub)


def _members(request: RecordedRequest) -> dict[str, Any]:
    """Return what has to be equal, by its names for people."""
    members: dict[str, Any] = {"method": request.method, "path": request.path}
    for name, values in parse_qs(request.query, keep_blank_values=True).items():
        members[f"query {name}"] = values if len(values) > 1 else values[0]
    if request.body is not None:
        members["body"] = request.body.data
        with suppress(ValueError, RecursionError):
            members["body"] = json.loads(request.body.data)
    return members


def _spelled(value: object) -> str:
    # Compared as texts, since Python takes true for 1.
    return json.dumps(value, sort_keys=True, default=repr)


def _call(request: RecordedRequest) -> Call:
    url = f"http://recorded{request.path}?{request.query}"
    headers = Headers(tuple(request.headers.items()))
    body = None if request.body is None else request.body.data
    return call_from(Request(request.method, url, headers, body))


def _differences(track: _Track, request: RecordedRequest) -> list[str]:
    """Return what keeps `request` from matching, one line each."""
    recorded, given = _members(track.exchange.request), _members(request)
    bodies = recorded.get("body"), given.get("body")
    if isinstance(bodies[0], dict) and isinstance(bodies[1], dict):
        for members in (recorded, given):
            body: dict[str, Any] = members.pop("body")
            members |= {f"body {name}": value for name, value in body.items()}
    lines: list[str] = []
    for name in {**recorded, **given}:
        values = (recorded.get(name, _NOTHING), given.get(name, _NOTHING))
        if _spelled(values[0]) != _spelled(values[1]):
            before, now = ("nothing" if value is _NOTHING else repr(value) for value in values)
            lines.append(f"{name}: recorded {before}, got {now}")
    return lines
