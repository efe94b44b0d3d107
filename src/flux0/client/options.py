"""The options that every call takes, written once."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import ForwardRef, TypedDict, TypeVar, cast

from flux0.domain.retrying import RetryConfig

T = TypeVar("T")


class CallOptions(TypedDict, total=False):
    """What a single call does otherwise than its client; None means what the client does.

    Attributes:
        retries: what is tried again.
        server_url: where the server is.
        timeout_ms: how long the call may take with all its retries, in milliseconds; for a turn,
            until the answer's headers.
        http_headers: header fields to send besides those of the client.
    """

    retries: RetryConfig | None
    server_url: str | None
    timeout_ms: int | None
    http_headers: Mapping[str, str] | None


class TurnOptions(CallOptions, total=False):
    """The options of a call that begins a turn.

    Attributes:
        stream_idle_timeout_ms: how long to wait for an event, in milliseconds.
    """

    stream_idle_timeout_ms: int | None


def show_options(resource: type[T]) -> type[T]:
    """Have `help()` and `inspect` show by its name every option that a class's methods take."""
    for method in vars(resource).values():
        shown = _SHOWN.get(getattr(method, "__annotations__", {}).get("options", ""))
        if shown is not None:
            written = signature(method)
            own = [each for each in written.parameters.values() if each.kind != each.VAR_KEYWORD]
            vars(method)["__signature__"] = written.replace(parameters=[*own, *shown])
    return resource


def _shown(options: type[CallOptions | TurnOptions]) -> tuple[Parameter, ...]:
    annotations = cast("dict[str, ForwardRef]", options.__annotations__)
    return tuple(
        Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=given.__forward_arg__)
        for name, given in annotations.items()
    )


_SHOWN = {f"Unpack[{kind.__name__}]": _shown(kind) for kind in (CallOptions, TurnOptions)}
