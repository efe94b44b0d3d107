"""The options that all methods accept as keyword arguments, and the error for unknown names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from inspect import Parameter, signature
from typing import Any, ForwardRef, TypedDict, TypeVar, cast

from flux0.domain.errors import InvalidArgument
from flux0.domain.retrying import RetryConfig
from flux0.flows import HeaderFunction

T = TypeVar("T")


class CallOptions(TypedDict, total=False):
    """The options of one call. An option that is None has the client's setting.

    Attributes:
        retries: The retry policy for this call.
        server_url: The URL of the server for this call.
        timeout_ms: The longest time in milliseconds that the call may take, with all its retries.
            For a stream, the longest time until the response headers are received.
        http_headers: Header fields to send in addition to the client's fields. They replace the
            client's fields with the same name, except that cookies are joined. If a value is a
            function, it is called for each attempt.
        extra_query: Parameters to add to the query, for a server that is newer than this client.
        extra_body: Members to add to the JSON object in the request body, for a server that is
            newer than this client. Values are plain JSON or models.
    """

    retries: RetryConfig | None
    server_url: str | None
    timeout_ms: int | None
    http_headers: Mapping[str, str | HeaderFunction] | None
    extra_query: Mapping[str, str] | None
    extra_body: Mapping[str, Any] | None


class TurnOptions(CallOptions, total=False):
    """The options of a call that starts a turn.

    Attributes:
        stream_idle_timeout_ms: The longest time in milliseconds between two events of the stream.
    """

    stream_idle_timeout_ms: int | None


class UserOptions(CallOptions, total=False):
    """The options of a call that creates or lists the sessions of a user.

    Attributes:
        user: A name or id of the user, sent as the cookie `flux0_user_sub`. By default, all clients
            share one anonymous user.
    """

    user: str | None


def kept(options: CallOptions) -> dict[str, Any]:
    """Return `server_url` and `http_headers` from the options of a call.

    These options apply to all later requests in the same turn or conversation, too.
    """
    return {name: options.get(name) for name in ("server_url", "http_headers")}


def show_options(resource: type[T]) -> type[T]:
    """Decorate a class so that `help()` lists each option instead of `**options`.

    The decorator sets the `__signature__` of all methods that have a parameter `**options`.
    """
    for method in vars(resource).values():
        shown = _SHOWN.get(getattr(method, "__annotations__", {}).get("options", ""))
        if shown is not None:
            declared = signature(method)
            own = [each for each in declared.parameters.values() if each.kind != each.VAR_KEYWORD]
            vars(method)["__signature__"] = declared.replace(parameters=[*own, *shown])
    return resource


def _parameters(options: type[CallOptions]) -> tuple[Parameter, ...]:
    annotations = cast("dict[str, ForwardRef]", options.__annotations__)
    make = partial(Parameter, kind=Parameter.KEYWORD_ONLY, default=None)
    items = annotations.items()
    return tuple(make(name, annotation=each.__forward_arg__) for name, each in items)


# `_SHOWN` maps the annotation of `**options` to the parameters that `help()` shows instead. Methods
# with `**options: NoReturn` accept no options, and pass unknown names to `check_names`.
_KINDS = CallOptions, TurnOptions, UserOptions
_SHOWN = {f"Unpack[{kind.__name__}]": _parameters(kind) for kind in _KINDS} | {"NoReturn": ()}

# `_OTHER_NAMES` maps argument names of other libraries to the two names that the error message
# suggests: an argument of `Flux0`, and an option of one call.
_OTHER_NAMES = {
    "api_key": ('headers={"authorization": ...}', 'http_headers={"authorization": ...}'),
    "base_url": ("server_url", "server_url"),
    "default_headers": ("headers", "http_headers"),
    "extra_headers": ("headers", "http_headers"),
    "headers": ("headers", "http_headers"),
    "http_client": ("client", "Flux0(client=...)"),
    "max_retries": ("retry_config", "retries"),
    "timeout": ("timeout_ms, in milliseconds", "timeout_ms, in milliseconds"),
}


def check_options(options: Iterable[str], kind: type[CallOptions]) -> None:
    """Raise an error if a name in `options` is not an option in `kind`.

    Raises:
        InvalidArgument: It is an option of other methods.
        TypeError: No method has this option.
    """
    accepted = kind.__annotations__
    for name in options:
        if name not in accepted:
            if any(name in other.__annotations__ for other in _KINDS):
                problem = f"is not an option of this method: its options are {', '.join(accepted)}"
                raise InvalidArgument(name, problem)
            check_names((name,), of_call=True)


def check_names(unknown: Iterable[str], *, of_call: bool) -> None:
    """Raise `TypeError` if `unknown` is not empty.

    If the name is known from another library, the error suggests flux0's option.
    """
    for name in unknown:
        ours = _OTHER_NAMES.get(name, ("", ""))[of_call]
        hint = f": use {ours}" if ours else ""
        raise TypeError(f"unexpected keyword argument {name!r}{hint}")
