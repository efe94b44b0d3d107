"""Puts together the layers that a client's requests go through."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from inspect import isclass, iscoroutinefunction
from typing import TYPE_CHECKING, TypeAlias, cast

from flux0._version import __version__
from flux0.domain import arguments
from flux0.domain.errors import InvalidArgument
from flux0.domain.headers import Headers
from flux0.domain.retrying import RetryDetails
from flux0.flows import Middleware, SendFlow, chain
from flux0.middleware.responses import ResponsePolicy
from flux0.middleware.retry import Retry, RetryBudget
from flux0.ports import Codec, Time

if TYPE_CHECKING:
    from flux0.middleware.logging import DebugLogger

HeaderFunction: TypeAlias = Callable[[], "str | Awaitable[str]"]

_USER_AGENT = Headers((("user-agent", f"flux0-client/{__version__}"),))


def build_chain(
    codec: Codec,
    time: Time,
    max_body_bytes: int,
    *,
    middleware: Iterable[Middleware],
    computed_headers: Mapping[str, HeaderFunction],
    on_retry: Callable[[RetryDetails], None] | None,
    debug_logger: DebugLogger | None,
) -> SendFlow:
    """Return the chain of layers that every request of a client goes through."""
    if on_retry is not None and (not callable(on_retry) or iscoroutinefunction(on_retry)):
        raise InvalidArgument("on_retry", f"must be a function that is not async: {on_retry!r}")
    if debug_logger is not None and not callable(getattr(debug_logger, "debug", None)):
        problem = f"must be a logging.Logger, or have its method debug: {debug_logger!r}"
        raise InvalidArgument("debug_logger", problem)
    layers: list[Middleware] = [
        *_checked(middleware),
        Retry(RetryBudget(), time, _teller(on_retry)),
    ]
    if computed_headers:
        from flux0.middleware.headers import ComputedHeaders  # noqa: PLC0415 - if there are any

        layers.append(ComputedHeaders(computed_headers))
    logger = debug_logger if debug_logger is not None else _environment_logger()
    if logger is not None:
        from flux0.middleware.logging import Logging  # noqa: PLC0415 - only where it is asked for

        layers.append(Logging(logger, time))
    return chain((*layers, ResponsePolicy(codec, max_body_bytes)))


def split_headers(
    headers: Mapping[str, str | HeaderFunction],
) -> tuple[Headers, dict[str, HeaderFunction]]:
    """Return the header fields with fixed values, and those whose values are computed."""
    arguments.mapping("headers", headers)
    fixed = {name: value for name, value in headers.items() if not callable(value)}
    computed = {name: value for name, value in headers.items() if callable(value)}
    names = arguments.headers("headers", dict.fromkeys(computed, ""))
    # A computed value would lose against the one that is sent by default.
    own = Headers() if "user-agent" in names else _USER_AGENT
    return own.merge(arguments.headers("headers", fixed)), computed


def _checked(middleware: object) -> Iterable[Middleware]:
    """Return the layers of the user's own."""
    if callable(middleware) or not isinstance(middleware, Iterable):
        raise InvalidArgument("middleware", f"must be a list of layers: pass [{middleware!r}]")
    layers = tuple(cast("Iterable[Middleware]", middleware))
    for layer in layers:
        if isclass(layer) or not callable(layer):
            raise InvalidArgument("middleware", f"has a layer that is not a function: {layer!r}")
        if iscoroutinefunction(layer) or iscoroutinefunction(type(layer).__call__):
            problem = (
                f"has a layer that is an async def: {layer!r}; a layer is a generator function"
            )
            raise InvalidArgument("middleware", problem)
    return layers


def _teller(on_retry: Callable[[RetryDetails], None] | None) -> Callable[[RetryDetails], None]:
    def tell(details: RetryDetails) -> None:
        from flux0.middleware.logging import log_retry  # noqa: PLC0415 - retries are rare

        log_retry(details)
        if on_retry is not None:
            on_retry(details)

    return tell


def _environment_logger() -> DebugLogger | None:
    if os.environ.get("FLUX0_DEBUG", "").lower() not in ("1", "true", "yes", "on"):
        return None
    import logging  # noqa: PLC0415 - only where it is asked for

    logger = logging.getLogger("flux0")
    logger.setLevel(logging.DEBUG)
    if not logger.hasHandlers():  # Asked for by the environment, so it must be seen.
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
        logger.addHandler(handler)
    return logger
