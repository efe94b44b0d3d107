"""The options that every call takes, written once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any, ForwardRef, TypedDict, TypeVar, cast

from flux0.domain.retrying import RetryConfig

F = TypeVar("F", bound=Callable[..., Any])


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


def show_options(options: type[CallOptions | TurnOptions]) -> Callable[[F], F]:
    """Return a decorator that has `help()` and `inspect` show every option by its name."""
    annotations = cast("dict[str, ForwardRef]", options.__annotations__)
    shown = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=given.__forward_arg__)
        for name, given in annotations.items()
    ]

    def decorate(method: F) -> F:
        written = signature(method)
        own = [each for each in written.parameters.values() if each.kind != Parameter.VAR_KEYWORD]
        vars(method)["__signature__"] = written.replace(parameters=[*own, *shown])
        return method

    return decorate
