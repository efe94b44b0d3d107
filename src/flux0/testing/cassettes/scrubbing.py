"""Applies a `scrub` function to the strings of a request or a response before it is recorded."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, quote, unquote, urlencode

from flux0.domain.errors import InvalidArgument

# The user's function that replaces secrets. The function gets each string of a path, a query or a
# body, and returns the string to record.
Scrub: TypeAlias = Callable[[str], str]

_DATA = "data: "
# The pattern `_STRING` matches a string in JSON. If a colon follows the string, the string is the
# name of a member.
_STRING = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:)?')
# With the error handler "surrogateescape", `decode` and `encode` keep bytes that are not UTF-8.
_NOT_UTF8 = "surrogateescape"


def checked(scrub: Scrub | None) -> Scrub | None:
    if scrub is None:
        return None

    def call(text: str) -> str:
        scrubbed: Any = scrub(text)
        if not isinstance(scrubbed, str):
            raise InvalidArgument("scrub", f"must return a str, but {scrub} returned {scrubbed!r}")
        return scrubbed

    return call


def scrub_path(path: str, scrub: Scrub) -> str:
    return "/".join(
        segment if (text := unquote(segment)) == (scrubbed := scrub(text)) else quote(scrubbed, "*")
        for segment in path.split("/")
    )


def scrub_query(query: str, scrub: Scrub) -> str:
    pairs = parse_qsl(query, keep_blank_values=True)
    return urlencode([(name, scrub(value)) for name, value in pairs])


def scrub_body(pieces: Iterable[bytes], scrub: Scrub) -> list[bytes]:
    """Return the pieces of a body after `scrub` has replaced its strings.

    `scrub` is called with each string of a JSON body, with each string in the JSON data of a
    server-sent event, and with each line of other text. If there are several pieces, each piece
    must end with a complete event.
    """
    texts = [piece.decode(errors=_NOT_UTF8) for piece in pieces]
    texts = _scrub_streamed_text(texts, scrub)
    return [_scrub_text(text, scrub).encode(errors=_NOT_UTF8) for text in texts]


def _scrub_text(text: str, scrub: Scrub) -> str:
    scrubbed = _scrub_json(text, scrub)
    if scrubbed is not None:
        return scrubbed
    return "\n".join(
        (line.startswith(_DATA) and _scrub_json(line, scrub)) or scrub(line)
        for line in text.split("\n")
    )


def _scrub_json(text: str, scrub: Scrub) -> str | None:
    try:
        # `str.encode` raises ValueError if `text` was decoded from bytes that are not UTF-8.
        json.loads(text.removeprefix(_DATA).encode())
    except (ValueError, RecursionError):
        return None

    def scrubbed(found: re.Match[str]) -> str:
        return found[0] if found[2] else json.dumps(scrub(json.loads(found[1])))

    return _STRING.sub(scrubbed, text)


def _scrub_streamed_text(pieces: list[str], scrub: Scrub) -> list[str]:
    lines = [piece.split("\n") for piece in pieces]
    additions: defaultdict[str, list[tuple[list[str], int, Any, Any]]] = defaultdict(list)
    for piece in lines:
        for number, line in enumerate(piece):
            for place, event, patch in _added_texts(line):
                additions[place].append((piece, number, event, patch))
    for added in additions.values():
        values = [patch["value"] for *_, patch in added]
        scrubbed = scrub("".join(values))
        if scrubbed == "".join(map(scrub, values)):
            # No secret is split between two events, so `_scrub_text` finds all secrets.
            continue
        # `scrubbed` cannot be divided among the events in `added`. Therefore, put the whole text
        # into the first event, and an empty text into each later event.
        for piece, number, event, patch in added:
            patch["value"], scrubbed = scrubbed, ""
            piece[number] = _DATA + json.dumps(event)
    return ["\n".join(piece) for piece in lines]


def _added_texts(line: str) -> list[tuple[str, Any, Any]]:
    """Find the patches with string values in `line`, which is one line of a server-sent event.

    Return a tuple for each patch: the message id and the path as JSON text, the event, and the
    patch.
    """
    if not line.startswith(_DATA) or '"patches"' not in line:
        return []
    try:
        event = json.loads(line.removeprefix(_DATA).encode())
        return [
            (json.dumps([event["event_id"], patch["path"]]), event, patch)
            for patch in event["patches"]
            if isinstance(patch.get("value"), str)
        ]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return []
