"""What a cassette keeps of a request and of a body, without what a user wants to be left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, urlencode, urlsplit

from flux0.ports import Request
from flux0.testing.cassettes.cassette import Content, RecordedRequest, kept

# Is given each text of a body and of a query, and returns what is kept of it.
Scrub: TypeAlias = Callable[[str], str]

_DATA = "data: "
_END_OF_EVENT = b"\n\n"


def recorded_request(request: Request, scrub: Scrub | None) -> RecordedRequest:
    """Return what is kept of a request. Its body's JSON is compared, so its spelling may change."""
    url = urlsplit(request.url)
    query, body = url.query, request.body
    if scrub is not None:
        pairs = parse_qsl(query, keep_blank_values=True)
        query = urlencode([(name, scrub(value)) for name, value in pairs])
        body = body and _scrubbed(body, scrub)
    content = kept(body, as_json=True, exact=False) if body else None
    return RecordedRequest(
        request.method, url.path, request.headers.redacted(), query=query, body=content
    )


def recorded_pieces(
    pieces: Iterable[tuple[float, bytes]], scrub: Scrub | None, *, as_json: bool
) -> tuple[Content, ...]:
    """Return what is kept of the pieces of a body, each with the time when it came.

    JSON is kept in one piece, since nobody reads it before all of it is there. If there is
    something to leave out, events are kept whole, since a piece may end in the middle of it.
    """
    if as_json or scrub is not None:
        pieces = _joined(pieces, b"" if as_json else _END_OF_EVENT)
    return tuple(
        kept(_scrubbed(data, scrub) if scrub else data, as_json=as_json, after=after)
        for after, data in pieces
    )


def _joined(pieces: Iterable[tuple[float, bytes]], end: bytes) -> Iterator[tuple[float, bytes]]:
    """Join pieces until one ends with `end`; without one, join all of them."""
    held, after = bytearray(), 0.0
    for after, data in pieces:
        held += data
        if end and held.endswith(end):
            yield after, bytes(held)
            held.clear()
    if held:
        yield after, bytes(held)


def _scrubbed(data: bytes, scrub: Scrub) -> bytes:
    """Return a body with each text in it scrubbed: in JSON, in the data of events, or each line."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return data
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "\n".join(_scrubbed_line(line, scrub) for line in text.split("\n")).encode()
    return json.dumps(_values(value, scrub), ensure_ascii=False, separators=(",", ":")).encode()


def _scrubbed_line(line: str, scrub: Scrub) -> str:
    if line.startswith(_DATA):
        try:
            value = json.loads(line[len(_DATA) :])
        except (ValueError, RecursionError):
            pass
        else:
            return _DATA + json.dumps(_values(value, scrub))
    return scrub(line)


def _values(value: Any, scrub: Scrub) -> Any:
    match value:
        case str():
            return scrub(value)
        case list():
            return [_values(item, scrub) for item in value]  # pyright: ignore[reportUnknownVariableType] - JSON
        case dict():
            return {name: _values(member, scrub) for name, member in value.items()}  # pyright: ignore[reportUnknownVariableType] - JSON
        case _:
            return value
