"""Which recorded exchange a request is answered with; and if none is, what is different."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, TypeAlias, cast
from urllib.parse import parse_qs

from attrs import define

from flux0.ports import Request
from flux0.testing.cassettes.cassette import Exchange, RecordedRequest, how_to_record
from flux0.testing.fake.calls import Call, call_of

_NOTHING = object()
_LONGEST_COMPARED = 1000  # Characters: comparing two texts may take the product of their lengths.


@define(eq=False)
class Track:
    """An exchange of a cassette, by its number from 1, and whether it has been played."""

    number: int
    exchange: Exchange
    played: bool = False

    def __str__(self) -> str:
        return f"exchange {self.number}, {_call(self.exchange.request)}"


# Returns the exchange for a request, or raises an AssertionError that tells why there is none.
Matcher: TypeAlias = Callable[[RecordedRequest], Track]


class StrictMatcher:
    """Plays the tracks of a cassette in their order alone."""

    def __init__(self, path: Path, tracks: Sequence[Track]) -> None:
        self._path = path
        self._tracks = tracks
        self._left = deque(tracks)

    def __call__(self, request: RecordedRequest) -> Track:
        """Return the next track if it matches."""
        if self._left and _key(self._left[0].exchange.request) == _key(request):
            return self._left.popleft()
        lines = [f"{_call(request)} is not what comes next in {self._path}"]
        following = self._left[0] if self._left else None
        if following is not None:
            lines += (f"next: {following}", *_differences(following, request))
        elif self._tracks:
            lines.append(f"all exchanges were played, {len(self._tracks)} in number")
        nearest = _nearest(request, self._tracks)
        if nearest is None or nearest is not following:
            lines += _compared(nearest, request)
        raise AssertionError("\n".join((*lines, _stale(self._path))))


class LooseMatcher:
    """Plays the tracks of a cassette in any order, each once; one that is unique, any time."""

    def __init__(self, path: Path, tracks: Sequence[Track]) -> None:
        self._path = path
        self._tracks = tracks
        self._alike: dict[str, list[Track]] = {}
        for track in tracks:
            self._alike.setdefault(_key(track.exchange.request), []).append(track)
        self._left = {key: deque(alike) for key, alike in self._alike.items()}

    def __call__(self, request: RecordedRequest) -> Track:
        """Return the first track that matches and was not played, or the only one that matches."""
        key = _key(request)
        alike = self._alike.get(key, [])
        if len(alike) == 1:
            return alike[0]
        if alike and self._left[key]:
            return self._left[key].popleft()
        if alike:
            numbers = ", ".join(str(track.number) for track in alike)
            lines = [
                f"{_call(request)} was made more often than {self._path} has it",
                f"exchanges {numbers} were played",
            ]
        else:
            lines = [f"{_call(request)} is not in {self._path}"]
            lines += _compared(_nearest(request, self._tracks), request)
        raise AssertionError("\n".join((*lines, _stale(self._path))))


def _key(request: RecordedRequest) -> str:
    """Return a text that requests share which match each other."""
    query = parse_qs(request.query, keep_blank_values=True)
    return json.dumps(
        [request.method, request.path, _spelled(query), _spelled(_decoded(request.body))]
    )


def _decoded(body: bytes | None) -> object:
    """Return the JSON of a body, or its bytes if it is none."""
    if body is None:
        return _NOTHING
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body


def _spelled(value: object) -> str:
    # Compared as texts, since Python takes true for 1.
    return json.dumps(value, sort_keys=True, default=repr)


def _stale(path: Path) -> str:
    return (
        "The program or the cassette has changed. If the cassette is stale, record it anew "
        f"{how_to_record(path)}."
    )


def _call(request: RecordedRequest) -> Call:
    url = f"http://recorded{request.path}?{request.query}"
    return call_of(Request(request.method, url, request.headers, request.body))


def _nearest(request: RecordedRequest, tracks: Iterable[Track]) -> Track | None:
    call = _call(request)

    def likeness(track: Track) -> tuple[bool, int, float, bool]:
        other = _call(track.exchange.request)
        texts = (str(other)[:_LONGEST_COMPARED], str(call)[:_LONGEST_COMPARED])
        alike = SequenceMatcher(None, *texts).ratio()
        differences = len(list(_differences(track, request)))
        return other.operation == call.operation, -differences, alike, not track.played

    return max(tracks, key=likeness, default=None)


def _compared(nearest: Track | None, request: RecordedRequest) -> list[str]:
    """Return what to tell of the exchange that is most like `request`."""
    if nearest is None:
        return ["it has no exchange"]
    differences = list(_differences(nearest, request))
    if not differences and nearest.played:
        differences = ["  no difference, but it was played"]
    elif not differences:
        differences = ['  no difference but its turn: matching="loose" takes any order']
    return [f"nearest: {nearest}", *differences]


def _differences(track: Track, request: RecordedRequest) -> Iterator[str]:
    """Iterate over what keeps `request` from matching, one indented line each."""
    recorded = track.exchange.request
    yield from _by_name(
        {"method": recorded.method, "path": recorded.path},
        {"method": request.method, "path": request.path},
    )
    yield from _by_name(_query(recorded), _query(request), "query ")
    bodies = (_decoded(recorded.body), _decoded(request.body))
    if all(isinstance(body, dict) for body in bodies):
        yield from _by_name(*cast("tuple[dict[str, Any], dict[str, Any]]", bodies), "body ")
    else:
        yield from _by_name({"body": bodies[0]}, {"body": bodies[1]})


def _query(request: RecordedRequest) -> dict[str, Any]:
    query = parse_qs(request.query, keep_blank_values=True)
    return {name: values[0] if len(values) == 1 else values for name, values in query.items()}


def _by_name(
    recorded: Mapping[str, Any], given: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    for name in {**recorded, **given}:
        values = (recorded.get(name, _NOTHING), given.get(name, _NOTHING))
        if _spelled(values[0]) != _spelled(values[1]):
            before, now = ("nothing" if value is _NOTHING else repr(value) for value in values)
            yield f"  {prefix}{name}: recorded {before}, got {now}"
