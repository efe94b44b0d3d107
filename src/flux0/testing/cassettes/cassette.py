"""Cassettes: exchanges with a server as values, and as a file of JSON that people can read.

All times are in seconds. A request keeps of its URL the path and the query, and of its header
fields what `Headers.redacted` shows.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from inspect import isclass
from pathlib import Path
from typing import Any, Final

from attrs import Factory, define, field, fields, frozen

from flux0.domain import errors
from flux0.domain.errors import DecodeError, Flux0Error, TransportError

VERSION: Final = 1

# How an exchange ended: its body was read to the end, or left before that (by closing it, by
# cancelling the call), or failed with one of the errors.
WHOLE: Final = "whole"
CLOSED: Final = "closed"
ERRORS: Final[Mapping[str, type[TransportError]]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isclass(kind) and issubclass(kind, TransportError)
}
_ABSENT: Final = object()  # JSON has a null of its own.


class CassetteError(Flux0Error):
    """A file is missing, or it is not a cassette that this version can read."""


def _bytes_of(content: Content) -> bytes:
    if content.json is not _ABSENT:
        return _compact(content.json).encode()
    if content.text is not None:
        return content.text.encode()
    if content.base64 is not None:
        return b64decode(content.base64, validate=True)
    raise ValueError("needs json, text or base64")


@frozen(kw_only=True)
class Content:
    """Bytes, `data`, as JSON, as text or in base64; a piece of a body came `after` its head."""

    json: Any = _ABSENT
    text: str | None = None
    base64: str | None = None
    after: float = 0.0
    data: bytes = field(default=Factory(_bytes_of, takes_self=True), init=False, repr=False)


def kept(data: bytes, *, as_json: bool, exact: bool = True, after: float = 0.0) -> Content:
    """Return `data` as kept: as JSON if `as_json`; if `exact`, only where JSON gives it again."""
    if as_json:
        with suppress(ValueError, RecursionError):  # NaN is a reason, and half a surrogate.
            value = json.loads(data)
            content = Content(json=value, after=after)
            json.dumps([[[[[[value]]]]]], indent=2)  # As deep as in the file.
            if content.data == data or not exact:
                return content
    try:
        return Content(text=data.decode(), after=after)
    except UnicodeDecodeError:
        return Content(base64=b64encode(data).decode(), after=after)


@frozen
class RecordedRequest:
    """A request as a cassette keeps it: without the host, and its header fields redacted."""

    method: str
    path: str
    headers: Mapping[str, str]
    query: str = ""
    body: Content | None = None


@frozen
class RecordedResponse:
    """A response; its head came `after` the request was sent."""

    after: float
    status_code: int
    headers: Mapping[str, str]
    pieces: tuple[Content, ...]


@frozen
class RecordedExchange:
    """A request and what came of it.

    It ended `after` the head of the response or, where none came, the request. In a file, exchanges
    are in the order in which they ended; `number` counts the requests as they were sent.
    """

    request: RecordedRequest
    end: str  # `WHOLE`, `CLOSED`, or the name of one of `ERRORS`.
    after: float
    response: RecordedResponse | None = None
    number: int = 0

    def __attrs_post_init__(self) -> None:
        if self.end not in (known := (WHOLE, CLOSED, *ERRORS)):
            raise ValueError(f"end must be one of {', '.join(known)}")
        if self.response is None and self.end == WHOLE:
            raise ValueError("the end of a body needs a response")


@frozen
class _CassetteFile:
    flux0_cassette: int
    exchanges: tuple[RecordedExchange, ...]


@frozen
class _AnyVersion:
    flux0_cassette: int


def how_to_record(path: Path) -> str:
    """Return how a cassette is made, for people."""
    return f"by running this code over RecordingTransport(transport, {str(path)!r})"


# --- the file

_compact: Callable[[Any], str] = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":")
).encode
_HEAD = f'{{\n  "flux0_cassette": {VERSION},\n  "exchanges": ['.encode()
_TAIL = b"\n  ]\n}\n"


@define
class CassetteFile:
    """A file to which exchanges are appended, and which is a whole cassette after each of them.

    Folders that are missing are made. A file that exists stays while `NAME.new` is written.
    """

    _path: Path
    _written: Path | None = field(default=None, init=False)
    _separator: bytes = field(default=b"\n", init=False)
    _failed: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, exchange: RecordedExchange) -> None:
        """Write one more exchange. The cost is that of the exchange, however long the file is."""
        if self._written is None:
            beside = self._path.with_name(f"{self._path.name}.new")
            self._written = beside if self._path.exists() else self._path
            self._written.write_bytes(_HEAD + _TAIL)
        text = json.dumps(exchange, default=_members, ensure_ascii=False, indent=2)
        indented = f"    {text}".replace("\n", "\n    ").encode()
        with self._written.open("r+b") as file:
            file.seek(-len(_TAIL), os.SEEK_END)
            file.write(self._separator + indented + _TAIL)
        self._separator = b",\n"
        status = exchange.response.status_code if exchange.response else 0
        self._failed |= exchange.end in ERRORS or status >= HTTPStatus.INTERNAL_SERVER_ERROR

    def finish(self) -> str | None:
        """Take the place of the file that was there, or return why that one stays."""
        if self._written is not None and self._written != self._path:
            if self._failed:
                return (
                    f"{self._path} stays as it was, since something failed while it was recorded "
                    f"anew; see {self._written}. To record failures, delete {self._path} before."
                )
            self._written = self._written.replace(self._path)
        return None


def _members(value: Any) -> dict[str, Any]:
    """Return what is written of a value of this module."""
    kind: Any = value.__class__
    return {
        attribute.name: member
        for attribute in fields(kind)
        if attribute.init and (member := getattr(value, attribute.name)) != attribute.default
    }


def read_cassette(path: Path) -> tuple[RecordedExchange, ...]:
    """Return the exchanges of a cassette, in the order in which their requests were sent.

    Raises:
        CassetteError: it is missing, broken, something else, or of another version of the format.
    """
    from flux0.adapters.json import JsonCodec  # noqa: PLC0415 - loads cattrs

    try:
        body = path.read_bytes()
        version = JsonCodec().decode(_AnyVersion, body).flux0_cassette
        if version != VERSION:
            raise CassetteError(
                f"{path} is a cassette of version {version}, and this flux0 reads version "
                f"{VERSION}: record it anew {how_to_record(path)}"
            )
        cassette = JsonCodec().decode(_CassetteFile, body)
    except FileNotFoundError:
        problem = f"there is no cassette {path}: record it {how_to_record(path)}"
        raise CassetteError(problem) from None
    except DecodeError as error:
        raise CassetteError(f"{path} is not a cassette, or it is broken: {error}") from error
    return tuple(sorted(cassette.exchanges, key=lambda exchange: exchange.number))
