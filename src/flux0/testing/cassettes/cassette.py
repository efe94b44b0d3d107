"""The exchanges in a cassette, and the JSON file that stores them.

An exchange is a request and its response. All times are in seconds. A recorded request has the path
and the query of its URL, and its header fields without values that may be credentials.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from codecs import BOM_UTF8
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from inspect import isclass
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

from attrs import Factory, define, field, fields, frozen

from flux0.domain import errors
from flux0.domain.errors import DecodeError, Flux0Error, TransportError
from flux0.domain.messages.json_patch import MAX_DEPTH, measure

VERSION: Final = 1

# `RecordedExchange.end` is "whole" if the body was read to its end, "closed" if the body was closed
# early or the call was cancelled, or else the name of an error.
WHOLE: Final = "whole"
CLOSED: Final = "closed"
ERRORS: Final[Mapping[str, type[TransportError]]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isclass(kind) and issubclass(kind, TransportError)
}
# `Content.json` is `_ABSENT` if the content is not stored as JSON. `_ABSENT` is not None, because
# None is a JSON value (null).
_ABSENT: Final = object()


class CassetteError(Flux0Error):
    """A cassette cannot be used: for example, it is missing, damaged or already being recorded."""

    # Tracebacks show the name `flux0.testing.CassetteError`, which users import, although this
    # module defines the class.
    __module__ = "flux0.testing"


def _bytes_of(content: Content) -> bytes:
    if content.json is not _ABSENT:
        return _compact(content.json).encode()
    if content.text is not None:
        return content.text.encode()
    if content.base64 is not None:
        return b64decode(content.base64, validate=True)
    raise ValueError("must have one of the keys json, text and base64")


@frozen(kw_only=True)
class Content:
    """A body or a piece of a body, stored as JSON, as text or in base64.

    Attributes:
        json, text, base64: The content in the form in which the file stores it; exactly one is set.
        after: The time between the response head and the piece, in seconds.
        data: The content in bytes.
    """

    json: Any = _ABSENT
    text: str | None = None
    base64: str | None = None
    after: float = 0.0
    data: bytes = field(default=Factory(_bytes_of, takes_self=True), init=False, repr=False)


def to_content(data: bytes, *, as_json: bool, exact: bool = True, after: float = 0.0) -> Content:
    if as_json:
        # A cassette stores content as text or in base64 if the content is not JSON, is nested too
        # deeply, or contains NaN or a lone surrogate. Python decodes NaN and lone surrogates, but a
        # JSON file in UTF-8 cannot contain them.
        with suppress(ValueError, RecursionError):
            value = json.loads(data)
            content = Content(json=value, after=after)
            if measure(value)[1] <= MAX_DEPTH and (content.data == data or not exact):
                return content
    try:
        return Content(text=data.decode(), after=after)
    except UnicodeDecodeError:
        return Content(base64=b64encode(data).decode(), after=after)


@frozen
class RecordedRequest:
    method: str
    path: str
    headers: Mapping[str, str]
    query: str = ""
    body: Content | None = None


@frozen
class RecordedResponse:
    """A response in a cassette; `after` is the time since the request was sent, in seconds."""

    after: float
    status_code: int
    headers: Mapping[str, str]
    pieces: tuple[Content, ...]


@frozen
class RecordedExchange:
    """A request, its response if there was one, and how the exchange ended.

    Attributes:
        end: The kind of end: "whole" if the body was read to its end, "closed" if it was closed
            early or the call was cancelled, or the class name of a transport error.
        after: The time from the response head to the exchange's end, in seconds. If there is
            no response, it is the time from the request to the end.
        number: The request's position in the order of sending. In the file, exchanges have
            another order: the order in which they ended.
    """

    request: RecordedRequest
    end: str
    after: float
    response: RecordedResponse | None = None
    number: int = 0

    def __attrs_post_init__(self) -> None:
        if self.end not in (known := (WHOLE, CLOSED, *ERRORS)):
            raise ValueError(f"end must be one of {', '.join(known)}, not {self.end!r}")
        if self.response is None and self.end == WHOLE:
            raise ValueError(f"end must not be {WHOLE!r} if there is no response")


@frozen
class _CassetteFile:
    flux0_cassette: int
    exchanges: tuple[RecordedExchange, ...]


@frozen
class _AnyVersion:
    flux0_cassette: int


def how_to_record(path: Path) -> str:
    return f"run this code with RecordingTransport(transport, {str(path)!r})"


_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_compact: Callable[[Any], str] = _encoder.encode
_HEAD = f'{{\n  "flux0_cassette": {VERSION},\n  "exchanges": ['.encode()
_TAIL = b"\n  ]\n}\n"


# The unfinished recordings in this process, by the paths of their cassettes. A second recording to
# the same path raises an error, because the two recordings would overwrite each other.
_recordings: Final[WeakValueDictionary[str, CassetteFile]] = WeakValueDictionary()


@define(eq=False)
class CassetteFile:
    """Writes recorded exchanges to a cassette, which is a valid file after each exchange.

    Missing folders are created. If the cassette exists, the recording is written to `NAME.new` in
    the same folder, and `finish` replaces the old cassette by the recording. The exchanges in
    `keep`, which come from the old cassette, are written first.
    """

    _path: Path
    _keep: Sequence[RecordedExchange] = ()
    _written: Path | None = field(default=None, init=False)
    _separator: bytes = field(default=b"", init=False)
    _failures: set[str] = field(factory=set[str], init=False)
    _deferred: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        # Use `os.path.isdir`, because `Path.is_dir` can raise PermissionError.
        if os.path.isdir(self._path):
            problem = f"{self._path} is a folder: the path of a cassette must be a file"
            raise CassetteError(problem)
        with self._writing():
            self._path.parent.mkdir(parents=True, exist_ok=True)
        if _recordings.setdefault(self._key, self) is not self:
            raise CassetteError(
                f"{self._path} is being recorded already: use the same RecordingTransport for all "
                "clients, or close the first RecordingTransport before you create the second"
            )

    @property
    def _key(self) -> str:
        return os.path.normcase(os.path.realpath(self._path))

    @contextmanager
    def _writing(self) -> Generator[None, None, None]:
        try:
            yield
        except OSError as error:
            raise CassetteError(f"{self._path} cannot be written: {error.strerror}") from error

    def append(self, exchange: RecordedExchange) -> None:
        """Append an exchange to the file. The cost does not depend on the file's size."""
        with self._writing():
            if self._written is None:
                suffix = f"{os.getpid()}.new" if self._deferred else "new"
                new_path = self._path.with_name(f"{self._path.name}.{suffix}")
                self._written = new_path if self._deferred or self._path.exists() else self._path
                self._written.write_bytes(_HEAD + _TAIL)
                self._separator = b"\n"
                for kept in self._keep:
                    self._write(self._written, kept)
            self._write(self._written, exchange)
        self._failures |= _failures([exchange])

    def defer(self) -> Callable[[bool], None]:
        """Return a function that ends the recording. Until it is called, `finish` does nothing.

        Call the function with True to replace the old cassette by the recording, or with False to
        delete the recording.
        """
        self._deferred = True
        return self._settle

    def finish(self, error: str = "") -> str | None:
        """Replace the old cassette with the recording.

        If the recording failed, keep the old cassette and return the text of a warning; otherwise
        return None.

        Args:
            error: The class name of an exception that ended the recording; empty if there was
                none.
        """
        if self._deferred:
            return None
        problem, new_path = None, self._new_path()
        if new_path is not None and (failure := error or self._new_failures()):
            problem = (
                f"{self._path} was not replaced, because the new recording failed ({failure}): "
                f"see {new_path}. To record failures, first delete {self._path}"
            )
            self._written = None
        self._settle(keep=True)
        return problem

    def _settle(self, keep: bool) -> None:
        if _recordings.get(self._key) is self:
            del _recordings[self._key]
        self._deferred = False
        if (new_path := self._new_path()) is not None:
            with self._writing():
                new_path.replace(self._path) if keep else new_path.unlink(missing_ok=True)
            self._written = self._path if keep else None

    def _new_path(self) -> Path | None:
        return None if self._written == self._path else self._written

    def _write(self, path: Path, exchange: RecordedExchange) -> None:
        text = json.dumps(exchange, default=_members, ensure_ascii=False, indent=2)
        indented = f"    {text}".replace("\n", "\n    ").encode()
        with path.open("r+b") as file:
            file.seek(-len(_TAIL), os.SEEK_END)
            file.write(self._separator + indented + _TAIL)
        self._separator = b",\n"

    def _new_failures(self) -> str:
        known: set[str] = set()
        with suppress(CassetteError):
            known = _failures(read_cassette(self._path))
        return ", ".join(sorted(self._failures - known))


def _failures(exchanges: Iterable[RecordedExchange]) -> set[str]:
    found: set[str] = set()
    for exchange in exchanges:
        if exchange.end in ERRORS:
            found.add(exchange.end)
        elif exchange.response and exchange.response.status_code >= HTTPStatus.BAD_REQUEST:
            found.add(f"status {exchange.response.status_code}")
    return found


def _members(value: Any) -> dict[str, Any]:
    kind: Any = value.__class__
    return {
        attribute.name: member
        for attribute in fields(kind)
        if attribute.init and (member := getattr(value, attribute.name)) != attribute.default
    }


def read_cassette(path: Path) -> tuple[RecordedExchange, ...]:
    from flux0.adapters.json import JsonCodec  # noqa: PLC0415 - loads cattrs

    try:
        # Ignore a byte order mark at the start of the file, because some editors add it.
        body = path.read_bytes().removeprefix(BOM_UTF8)
        version = JsonCodec().decode(_AnyVersion, body).flux0_cassette
        if version != VERSION:
            known = f"but this version of flux0 reads only version {VERSION}"
            advice = f"to record it again, {how_to_record(path)}"
            problem = f"has version {version} of the cassette format, {known}: {advice}"
            raise CassetteError(f"{path} {problem}")
        cassette = JsonCodec().decode(_CassetteFile, body)
    except FileNotFoundError:
        problem = f"cassette {path} does not exist: to record it, {how_to_record(path)}"
        raise CassetteError(problem) from None
    except OSError as error:
        raise CassetteError(f"{path} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        problem = f"{path} is not a cassette, or it is damaged: {error}\nTo record it again, "
        raise CassetteError(f"{problem}{how_to_record(path)}.") from error
    return tuple(sorted(cassette.exchanges, key=lambda exchange: exchange.number))
