"""The codec: the server's JSON to models and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from json.decoder import JSONDecoder
from typing import Any, TypeVar, cast

from flux0.adapters.json.plain import plain
from flux0.adapters.json.problems import first_problem
from flux0.adapters.json.readers import MISFITS, reader
from flux0.domain.errors import DecodeError, InvalidArgument
from flux0.domain.stream_events import ChunkEvent, StatusEvent, StreamEvent, UnknownEvent
from flux0.ports import ServerSentEvent

T = TypeVar("T")

_EVENTS = {kind.event: (kind, reader(kind)) for kind in (ChunkEvent, StatusEvent)}
_EXCERPT = 200

_decode: Callable[[str], tuple[Any, int]] = JSONDecoder().raw_decode


class JsonCodec:
    """The `Codec` of the flux0 server."""

    def decode(self, model: type[T], body: bytes) -> T:
        """Return the model that `body` holds as JSON; `object` gives plain JSON."""
        decoded: T = self._decoded(model, body, body[:_EXCERPT].decode("utf-8", "replace"))
        return decoded

    def decode_event(self, event: ServerSentEvent) -> StreamEvent:
        """Return what one event of a turn's stream says; an unknown name keeps its data as text."""
        name, text, id_, _ = event
        known = _EVENTS.get(name)
        if known is None:
            return UnknownEvent(name, text, id_)
        model, read = known
        try:
            # The decoder alone, without the checks of json.loads for what text almost never is.
            data, end = _decode(text)
            if end == len(text):
                streamed: StreamEvent = read(data)
                return streamed
        except (ValueError, KeyError, RecursionError):
            pass  # What follows tells why, unless white space is the reason.
        return cast("StreamEvent", self._decoded(model, text, text[:_EXCERPT]))

    def encode(self, value: Any) -> bytes:
        """Return a model or plain JSON as the server reads it, in ASCII."""
        return json.dumps(self.to_dict(value), separators=(",", ":")).encode("ascii")

    def from_dict(self, model: type[T], data: Any) -> T:
        """Return the model that plain JSON stands for.

        `model` may also be a union of models, such as `StreamEvent`, or a list or tuple of models.

        Raises:
            InvalidArgument: `model` is none of these.
        """
        kind: Any = model
        try:
            reader(kind)
        except TypeError as error:
            raise InvalidArgument("model", f"must be one of flux0.models, not {model!r}") from error
        made: T = self._read(kind, data, "")
        return made

    def to_dict(self, value: Any) -> Any:
        """Return the plain JSON that the server uses for `value`.

        Raises:
            InvalidArgument: it has no form in JSON, or is nested too deeply.
        """
        try:
            return plain(value)
        except RecursionError as error:
            raise InvalidArgument("value", "is nested too deeply") from error

    def _decoded(self, model: Any, text: str | bytes, excerpt: str) -> Any:
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DecodeError(f"not JSON ({error})", body=excerpt) from error
        return data if model is object else self._read(model, data, excerpt)

    def _read(self, model: Any, data: Any, excerpt: str) -> Any:
        try:
            return reader(model)(data)
        except MISFITS:
            place, problem = first_problem(model, data) or ("", "does not fit")
            raise DecodeError(problem, field=place.lstrip("."), body=excerpt) from None
