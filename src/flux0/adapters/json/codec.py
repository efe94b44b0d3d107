"""The codec, which converts between the server's JSON and models. It is based on cattrs."""

from __future__ import annotations

from collections.abc import Callable
from json import JSONDecoder, JSONEncoder
from typing import Any, Final, TypeVar, cast, get_args

from cattrs import transform_error

from flux0.adapters.json.plain import is_nested, plain
from flux0.adapters.json.structuring import converter, is_model, structure_hook
from flux0.domain import arguments
from flux0.domain.errors import DecodeError, InvalidArgument
from flux0.domain.stream_events import StreamEvent, UnknownEvent
from flux0.ports import ServerSentEvent

T = TypeVar("T")

# The fast converter raises one of the exceptions in `_UNFIT` if JSON does not fit the model.
# `_scan` raises one of them if text is not JSON.
_UNFIT = (ValueError, KeyError, TypeError, RecursionError, StopIteration)

# The encoder raises an error for NaN and infinities, because JSON does not have them. They are not
# sent as null, because the server then stores a value that the user has not passed.
_encoder = JSONEncoder(allow_nan=False, separators=(",", ":"))
_unescaped: Callable[[Any], str] = JSONEncoder(ensure_ascii=False).encode
_decoder = JSONDecoder()
# Python's recursion limit allows more levels than `_DEEP`, unless the caller's stack is deep.
_DEEP: Final = 100
# `_scan` decodes the JSON at a position of a string, and returns the value and its end position.
_scan: Callable[[str, int], tuple[Any, int]] = cast("Any", _decoder).scan_once


class JsonCodec:
    """Converts between the server's JSON and models, with cattrs.

    A fast converter builds the models. If it fails, a slower converter converts the JSON again, so
    that the error message can name the wrong value and the problem.
    """

    def __init__(self) -> None:
        # `_event_hooks` maps an event's name to the function that builds the event from JSON.
        self._event_hooks: dict[str, Callable[[Any, None], StreamEvent]] = {}

    def decode(self, model: type[T], body: bytes) -> T:
        data = _load(body)
        return cast("T", data if model is object else self._structure(model, data, body))

    def decode_event(self, event: ServerSentEvent) -> StreamEvent:
        name, text, id_, _ = event
        hook = self._event_hooks.get(name)
        if hook is None:
            if name not in _EVENTS:
                return UnknownEvent(name, text, id_)
            hook = self._event_hooks[name] = structure_hook(_EVENTS[name])
        try:  # Try a fast conversion first. The functions `_load` and `_structure` are slower.
            data, end = _scan(text, 0)
            if end == len(text):
                return hook(data, None)
        except _UNFIT:
            # The event is not JSON or does not fit its class. `_load` or `_structure` below raises
            # an error that names the problem.
            pass
        return cast("StreamEvent", self._structure(_EVENTS[name], _load(text), text))

    def encode(self, value: Any, argument: str = "value") -> bytes:
        body = _convert(_encode, value, argument)
        # In JSON, `\ud...` is an escaped surrogate, which is valid only in a pair. Check the text
        # of `body`, so that a surrogate without its pair raises an error that names the argument.
        if rb"\ud" in body:
            arguments.check_utf8(argument, _unescaped(_load(body)))
        return body

    def from_dict(self, model: type[T], data: Any) -> T:
        if not is_model(model):
            expected = "must be a class in flux0.models, or a list or tuple of such a class"
            raise InvalidArgument("model", f"{expected}, not {model!r}")
        return cast("T", self._structure(model, data, ""))

    def to_dict(self, value: Any) -> Any:
        return _convert(plain, value, "value")

    def _structure(self, model: Any, data: Any, body: str | bytes) -> Any:
        try:
            return structure_hook(model)(data, model)
        except _UNFIT:
            pass  # The slower converter below raises an error that names the wrong value.
        try:
            return converter(explaining=True).structure(data, model)
        except Exception as error:
            problem, _, place = transform_error(error, "", _describe_problem)[0].rpartition(" @ ")
            # The error names the JSON key, such as `from`, not the attribute, such as `from_`.
            field = place.lstrip(".").removesuffix("_")
            _drop_tracebacks(error)
            raise DecodeError(problem, field=field, body=_text(body)) from error


_EVENTS: dict[str, Any] = {
    kind.event: kind for kind in get_args(StreamEvent) if kind is not UnknownEvent
}


def _drop_tracebacks(error: BaseException) -> None:
    # The frames in an error's traceback refer to the error. Drop the traceback, because this
    # reference cycle keeps the error and the JSON in memory.
    error.__traceback__ = None
    for each in getattr(error, "exceptions", ()):
        _drop_tracebacks(each)


def _encode(value: Any) -> bytes:
    return _encoder.encode(plain(value)).encode("ascii")


def _convert(convert: Callable[[Any], T], value: Any, argument: str) -> T:
    try:
        return convert(value)
    except RecursionError as error:
        # If `value` is shallow, the caller's own stack is close to the recursion limit.
        if not is_nested(value, _DEEP):
            raise
        raise InvalidArgument(argument, "is nested too deeply") from error
    except (TypeError, ValueError) as error:
        problem = f"cannot be represented in JSON: {error}"
        raise InvalidArgument(argument, problem) from error


def _load(text: str | bytes) -> Any:
    try:
        return _decoder.decode(text if isinstance(text, str) else text.decode())
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"not JSON ({error})", body=_text(text)) from error


def _describe_problem(error: BaseException, _: Any) -> str:
    return "is missing" if isinstance(error, KeyError) else str(error)


def _text(body: str | bytes) -> str:
    return body if isinstance(body, str) else body.decode("utf-8", "replace")
