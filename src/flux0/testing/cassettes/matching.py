"""Which recorded exchange a request is answered with; and if none is, what is different."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from attrs import define

from flux0.domain.headers import Headers
from flux0.ports import Request
from flux0.testing.cassettes.cassette import RecordedExchange, RecordedRequest, how_to_record
from flux0.testing.fake.calls import Call, call_of

_NOTHING = object()
_LONGEST_COMPARED = 1000  # Characters: comparing two texts may take the product of their lengths.


@define(eq=False)
class Track:
    """An exchange of a cassette, by its number from 1, and whether it has been played."""

    number: int
    exchange: RecordedExchange
    played: bool = False

    def __str__(self) -> str:
        return f"exchange {self.number}, {_call(self.exchange.request)}"


class Matcher:
    """Finds the tracks of a cassette that requests are answered with.

    Args:
        path: the cassette, for messages.
        tracks: its exchanges.
        strict: whether they are played in their order alone; otherwise in any order, each once, but
            one that matches no other any number of times.
        match: returns the part of a call that has to be equal; by default all of it, but the host
            and the header fields.
    """

    def __init__(
        self,
        path: Path,
        tracks: Sequence[Track],
        *,
        strict: bool,
        match: Callable[[Call], object] | None,
    ) -> None:
        self._path = path
        self._tracks = tracks
        self._match = match
        self._alike: dict[str, list[Track]] = {}
        for track in tracks:
            self._alike.setdefault(self._key(track.exchange.request), []).append(track)
        self._left = {key: iter(alike) for key, alike in self._alike.items()}
        self._find = self._next_track if strict else self._any_track
        self._next = 0

    def find(self, request: RecordedRequest) -> Track:
        """Return the track for a request, and count it as played.

        Raises:
            AssertionError: there is none; says what is different.
        """
        track = self._find(request, self._key(request))
        track.played = True
        return track

    def _next_track(self, request: RecordedRequest, key: str) -> Track:
        following = self._tracks[self._next] if self._next < len(self._tracks) else None
        if following is not None and self._key(following.exchange.request) == key:
            self._next += 1
            return following
        lines = [f"{_call(request)} is not what comes next in {self._path}"]
        if following is not None:
            lines += (f"next: {following}", *_differences(following, request))
        elif self._tracks:
            lines.append(f"all exchanges were played, {len(self._tracks)} in number")
        nearest = self._nearest(request)
        raise self._refusal(lines, request, None if nearest is following else nearest)

    def _any_track(self, request: RecordedRequest, key: str) -> Track:
        alike = self._alike.get(key, [])
        track = alike[0] if len(alike) == 1 else next(self._left.get(key, iter(())), None)
        if track is not None:
            return track
        if not alike:
            lines = [f"{_call(request)} is not in {self._path}"]
            raise self._refusal(lines, request, self._nearest(request))
        numbers = ", ".join(str(track.number) for track in alike)
        lines = [
            f"{_call(request)} was made more often than {self._path} has it",
            f"exchanges {numbers} were played",
        ]
        raise self._refusal(lines, request, None)

    def _key(self, request: RecordedRequest) -> str:
        """Return a text that requests share which match each other."""
        return _spelled(_members(request) if self._match is None else self._match(_call(request)))

    def _nearest(self, request: RecordedRequest) -> Track | None:
        call = _call(request)

        def likeness(track: Track) -> tuple[bool, int, float, bool]:
            other = _call(track.exchange.request)
            texts = (str(other)[:_LONGEST_COMPARED], str(call)[:_LONGEST_COMPARED])
            alike = SequenceMatcher(None, *texts).ratio()
            differences = len(_differences(track, request))
            return other.operation == call.operation, -differences, alike, not track.played

        return max(self._tracks, key=likeness, default=None)

    def _refusal(
        self, lines: list[str], request: RecordedRequest, nearest: Track | None
    ) -> AssertionError:
        if not self._tracks:
            lines.append("it has no exchange")
        if nearest is not None:
            lines.append(f"nearest: {nearest}")
            turn = 'no difference but its turn: matching="loose" takes any order'
            lines += _differences(nearest, request) or [
                f"  {'no difference, but it was played' if nearest.played else turn}"
            ]
        lines.append(
            "The program or the cassette has changed. If the cassette is stale, record it anew "
            f"{how_to_record(self._path)}."
        )
        return AssertionError("\n".join(lines))


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
    return call_of(Request(request.method, url, headers, body))


def _differences(track: Track, request: RecordedRequest) -> list[str]:
    """Return what keeps `request` from matching, one indented line each."""
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
            lines.append(f"  {name}: recorded {before}, got {now}")
    return lines
