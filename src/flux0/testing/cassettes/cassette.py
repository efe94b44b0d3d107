"""Cassettes: exchanges with a server as values, and as a file of JSON that people can read.

All times are in seconds. What is kept of header fields is what `Headers.redacted` shows, and of a
URL its path and query; bodies are kept as they are.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, cast
from urllib.parse import urlsplit

from attrs import frozen

from flux0.domain.errors import (
    ConnectError,
    ConnectionInterrupted,
    ConnectTimeout,
    Flux0Error,
    PoolTimeout,
    ProtocolError,
    ReadTimeout,
    TLSError,
    TransportError,
    TransportTimeout,
    WriteTimeout,
)
from flux0.domain.headers import Headers
from flux0.ports import Request

VERSION: Final = 1

# How an exchange ended: its body was read to the end, or left before that (by closing it, by
# cancelling the call), or failed with one of the errors.
WHOLE: Final = "whole"
CLOSED: Final = "closed"
ERRORS: Final[Mapping[str, type[TransportError]]] = {
    error.__name__: error
    for error in (
        ConnectError,
        ConnectionInterrupted,
        ConnectTimeout,
        PoolTimeout,
        ProtocolError,
        ReadTimeout,
        TLSError,
        TransportError,
        TransportTimeout,
        WriteTimeout,
    )
}

_MARK = "flux0_cassette"
_HEAD = f'{{\n  "{_MARK}": {VERSION},\n  "exchanges": ['.encode()
_TAIL = b"]\n}\n"


class CassetteError(Flux0Error):
    """A file is not there, or is no cassette that this version can read."""


@frozen
class RecordedRequest:
    """A request as a cassette keeps it: without the host, and its header fields redacted."""

    method: str
    path: str
    query: str
    headers: Headers
    body: bytes | None

    @classmethod
    def of(cls, request: Request) -> RecordedRequest:
        """Return what is kept of `request`."""
        url = urlsplit(request.url)
        headers = redacted(request.headers)
        return cls(request.method, url.path, url.query, headers, request.body or None)


@frozen
class Piece:
    """One piece of a body, and when it came, counted from the head of the response."""

    after: float
    data: bytes


@frozen
class RecordedResponse:
    """A response; its head came `after` the request was sent."""

    after: float
    status_code: int
    headers: Headers
    pieces: tuple[Piece, ...]


@frozen
class End:
    """How an exchange ended: `WHOLE`, `CLOSED`, or the name of one of `ERRORS`.

    `after` counts from the head of the response or, where none came, from the request.
    """

    how: str
    after: float


@frozen
class Exchange:
    """A request and what came of it; `response` is None where no head of one came."""

    request: RecordedRequest
    response: RecordedResponse | None
    end: End


def redacted(headers: Headers) -> Headers:
    """Return header fields without the values that may be a credential."""
    return Headers(tuple(headers.redacted().items()))


def is_json(headers: Headers) -> bool:
    """Whether header fields announce a body of JSON."""
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    return media_type == "application/json" or media_type.endswith("+json")


def how_to_record(path: Path) -> str:
    """Return how a cassette is made, for people."""
    return f"by running this code over RecordingTransport(transport, {str(path)!r})"


# --- writing

_compact = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_on_a_line = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_as_a_tree = json.JSONEncoder(ensure_ascii=False, allow_nan=False, indent=2).encode


def write_cassette(path: Path, exchanges: Iterable[bytes]) -> None:
    """Write the cassette of formatted exchanges in place of the file at `path`, or not at all."""
    text = b",\n".join(exchanges)
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_bytes(b"%b\n%b\n  %b" % (_HEAD, text, _TAIL) if text else _HEAD + _TAIL)
    os.replace(unfinished, path)


def formatted(exchange: Exchange) -> bytes:
    """Return an exchange as it stands in the file. The cost is linear in its bytes and pieces."""
    fields = {"request": _request_text(exchange.request)}
    if exchange.response is not None:
        fields["response"] = _response_text(exchange.response)
    fields["end"] = _on_a_line({"how": exchange.end.how, "after": exchange.end.after})
    return f"    {_object(fields)}".replace("\n", "\n    ").encode()


def _request_text(request: RecordedRequest) -> str:
    fields = {"method": _on_a_line(request.method), "path": _on_a_line(request.path)}
    if request.query:
        fields["query"] = _on_a_line(request.query)
    fields["headers"] = _as_a_tree(dict(request.headers))
    if request.body is not None:
        # It is compared as JSON and never sent again, so its spelling need not be kept.
        fields["body"] = _json_object(request.body, exact=False) or f"{{{_plain(request.body)}}}"
    return _object(fields)


def _response_text(response: RecordedResponse) -> str:
    json_body = is_json(response.headers)
    return _object(
        {
            "after": _on_a_line(response.after),
            "status_code": _on_a_line(response.status_code),
            "headers": _as_a_tree(dict(response.headers)),
            "pieces": _block(
                "[", [_piece_text(piece, json_body=json_body) for piece in response.pieces], "]"
            ),
        }
    )


def _piece_text(piece: Piece, *, json_body: bool) -> str:
    after = f'"after": {_on_a_line(piece.after)}'
    tree = _json_object(piece.data, exact=True, first=(after,)) if json_body else None
    return tree or f"{{{after}, {_plain(piece.data)}}}"


def _plain(data: bytes) -> str:
    try:
        return f'"text": {_on_a_line(data.decode())}'
    except UnicodeDecodeError:
        return f'"base64": "{b64encode(data).decode()}"'


def _json_object(data: bytes, *, exact: bool, first: tuple[str, ...] = ()) -> str | None:
    """Return an object that holds `data` as JSON; None where `data` is none, or none to rely on.

    If `exact`, `_compact` must give the very same bytes again.
    """
    try:
        value = json.loads(data)
        spelled = _compact(value).encode()
        tree = _as_a_tree(value)
    except (ValueError, RecursionError):  # Half a surrogate and NaN are among the reasons.
        return None
    if exact and spelled != data:
        return None
    return _block("{", [*first, f'"json": {tree}'], "}")


def _object(fields: Mapping[str, str]) -> str:
    return _block("{", [f'"{name}": {text}' for name, text in fields.items()], "}")


def _block(opening: str, items: list[str], closing: str) -> str:
    if not items:
        return opening + closing
    # A line break within a text is escaped, so that each one here is of the layout.
    inner = ",\n".join(items).replace("\n", "\n  ")
    return f"{opening}\n  {inner}\n{closing}"


# --- reading


def read_cassette(path: Path) -> tuple[Exchange, ...]:
    """Return the exchanges of a cassette, in the order in which their requests were sent.

    Raises:
        CassetteError: there is no such file, or it is broken, or something else, or of another
            version of the format.
    """
    try:
        root: object = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CassetteError(
            f"there is no cassette {path}: record it {how_to_record(path)}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise CassetteError(f"{path} is no cassette, or a broken one: {error}") from error
    if not isinstance(root, dict) or _MARK not in root:
        raise CassetteError(f"{path} is JSON, but no cassette of flux0: it has no {_MARK!r}")
    cassette = _Node(cast("object", root), str(path), "")
    version = cassette.at(_MARK).value
    if version != VERSION:
        raise CassetteError(
            f"{path} is a cassette of version {version!r}, and this flux0 reads version "
            f"{VERSION}: record it anew {how_to_record(path)}"
        )
    return tuple(_exchange(node) for node in cassette.at("exchanges").items())


@frozen
class _Node:
    """A part of a file's JSON, and its place in there."""

    value: object
    path: str
    place: str

    def must_be(self, what: str) -> CassetteError:
        return CassetteError(
            f"{self.path}: {self.place} must be {what}, and is {json.dumps(self.value)[:100]}"
        )

    def fields(self) -> dict[str, object]:
        value = self.value
        if not isinstance(value, dict):
            raise self.must_be("an object")
        return cast("dict[str, object]", value)

    def at(self, key: str) -> _Node:
        place = f"{self.place}.{key}" if self.place else key
        fields = self.fields()
        if key not in fields:
            raise CassetteError(f"{self.path}: {place} is missing")
        return _Node(fields[key], self.path, place)

    def items(self) -> Iterator[_Node]:
        values = self.value
        if not isinstance(values, list):
            raise self.must_be("a list")
        for index, value in enumerate(cast("list[object]", values)):
            yield _Node(value, self.path, f"{self.place}[{index}]")

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self.must_be("a text")
        return self.value

    def seconds(self) -> float:
        if not isinstance(self.value, (int, float)) or isinstance(self.value, bool):
            raise self.must_be("a number of seconds")
        return self.value

    def status(self) -> int:
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            raise self.must_be("a status")
        return self.value

    def headers(self) -> Headers:
        return Headers(tuple((name, self.at(name).text()) for name in self.fields()))

    def data(self) -> bytes:
        fields = self.fields()
        try:
            if "json" in fields:
                return _compact(fields["json"]).encode()
            if "base64" in fields:
                return b64decode(self.at("base64").text(), validate=True)
            return self.at("text").text().encode()
        except ValueError:  # Base64 that is none, NaN, half a surrogate.
            raise self.must_be("what can be sent") from None


def _exchange(node: _Node) -> Exchange:
    request = node.at("request")
    response = _response(node.at("response")) if "response" in node.fields() else None
    how = node.at("end").at("how")
    ways = (CLOSED, *ERRORS) if response is None else (WHOLE, CLOSED, *ERRORS)
    if how.text() not in ways:
        raise how.must_be(f"one of {', '.join(ways)}")
    return Exchange(
        RecordedRequest(
            request.at("method").text(),
            request.at("path").text(),
            request.at("query").text() if "query" in request.fields() else "",
            request.at("headers").headers(),
            request.at("body").data() if "body" in request.fields() else None,
        ),
        response,
        End(how.text(), node.at("end").at("after").seconds()),
    )


def _response(node: _Node) -> RecordedResponse:
    return RecordedResponse(
        node.at("after").seconds(),
        node.at("status_code").status(),
        node.at("headers").headers(),
        tuple(
            Piece(piece.at("after").seconds(), piece.data()) for piece in node.at("pieces").items()
        ),
    )
