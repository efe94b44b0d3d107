"""The codec: the server's JSON to models and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from json.decoder import JSONDecoder
from typing import Any, TypeVar, cast, get_args, get_origin

from cattrs import transform_error

from flux0.adapters.json.plain import plain
from flux0.adapters.json.structuring import converter, is_model, structure_hook
from flux0.domain.errors import DecodeError, InvalidArgument
from flux0.domain.stream_events import ChunkEvent, StatusEvent, StreamEvent, UnknownEvent
from flux0.ports import ServerSentEvent

T = TypeVar("T")

_EXCERPT = 200

_decode: Callable[[str], tuple[Any, int]] = JSONDecoder().raw_decode


class JsonCodec:
    """The `Codec` of the flux0 server.

    One converter reads fast. Only where it fails, another one reads again and says what is wrong.
    """

    def decode(self, model: type[T], body: bytes) -> T:
        """Return the model that `body` holds as JSON; `object` gives plain JSON."""
        data = _load(body)
        made: T = data if model is object else self._structure(model, data, body)
        return made

    def decode_event(self, event: ServerSentEvent) -> StreamEvent:
        """Return what one event of a turn's stream says; an unknown name keeps its data as text."""
        name, text, id_, _ = event
        if name not in _EVENTS:
            return UnknownEvent(name, text, id_)
        made: StreamEvent = self._structure(_EVENTS[name], _load(text), text)
        return made

    def encode(self, value: Any) -> bytes:
        """Return a model or plain JSON as the server reads it, in ASCII."""
        return json.dumps(self.to_dict(value), separators=(",", ":")).encode("ascii")

    def from_dict(self, model: type[T], data: Any) -> T:
        """Return the model that plain JSON stands for.

        `model` may also be a union of models, such as `StreamEvent`, or a list or tuple of models.

        Raises:
            InvalidArgument: `model` is none of these.
        """
        if not is_model(model):
            raise InvalidArgument("model", f"must be one of flux0.models, not {model!r}")
        kind: Any = model
        if get_origin(kind) is list:  # cattrs takes any iterable for one.
            kind = tuple.__class_getitem__((*get_args(kind), ...))
        made: Any = self._structure(kind, data, "")
        if kind is not model:
            made = list(made)
        return cast("T", made)

    def to_dict(self, value: Any) -> Any:
        """Return the plain JSON that the server uses for `value`.

        Raises:
            InvalidArgument: it has no form in JSON, or is nested too deeply.
        """
        try:
            return plain(value)
        except RecursionError as error:
            raise InvalidArgument("value", "is nested too deeply") from error

    def _structure(self, model: Any, data: Any, body: str | bytes) -> Any:
        try:
            return structure_hook(model)(data, model)
        except (ValueError, KeyError, TypeError):
            pass  # What follows says why.
        try:
            return converter(explaining=True).structure(data, model)
        except Exception as error:
            problem, _, place = transform_error(error, "", _in_words)[0].rpartition(" @ ")
            field = place.lstrip(".").removesuffix("_")  # `from_` stands for `from`.
            raise DecodeError(problem, field=field, body=_excerpt(body)) from error


_EVENTS: dict[str, Any] = {kind.event: kind for kind in (ChunkEvent, StatusEvent)}


def _load(text: str | bytes) -> Any:
    try:
        # The scanner alone, without the checks of json.loads for what JSON almost never is.
        usual = text if isinstance(text, str) else text.decode()
        data, end = _decode(usual)
        if end == len(usual):
            return data
    except (ValueError, RecursionError):
        pass  # What follows reads it all the same, or says why it cannot.
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"not JSON ({error})", body=_excerpt(text)) from error


def _in_words(error: BaseException, _: Any) -> str:
    return "is missing" if isinstance(error, KeyError) else str(error)


def _excerpt(body: str | bytes) -> str:
    start = body[:_EXCERPT]
    return start if isinstance(start, str) else start.decode("utf-8", "replace")
