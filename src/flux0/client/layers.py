"""Builds the chain of middleware that each request of a client passes through."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from inspect import iscoroutinefunction
from typing import cast

from flux0.domain.errors import InvalidArgument
from flux0.domain.retrying import RetryDetails
from flux0.flows import Middleware, SendFlow, chain
from flux0.middleware.headers import compute_headers
from flux0.middleware.logging import DebugLogger, Logging
from flux0.middleware.observing import Observers
from flux0.middleware.responses import ResponsePolicy
from flux0.middleware.retry import Retry, RetryBudget
from flux0.ports import Codec, Time


def build_chain(
    codec: Codec,
    time: Time,
    max_body_bytes: int,
    middleware: Iterable[Middleware],
    on_retry: Callable[[RetryDetails], None] | None,
    debug_logger: DebugLogger | None,
    observers: Observers,
) -> SendFlow:
    """Return a function that sends a request through all middleware of a client.

    The middleware is, from the outermost to the innermost: the user's middleware, retries, computed
    headers, observers, the debug log and the response policy. All middleware after the retries is
    called for each attempt.
    """
    if on_retry is not None and (not callable(on_retry) or iscoroutinefunction(on_retry)):
        raise InvalidArgument("on_retry", f"must be a sync function, not {on_retry!r}")
    if debug_logger is not None and not callable(getattr(debug_logger, "debug", None)):
        problem = f"must be a logging.Logger or an object with a method debug, not {debug_logger!r}"
        raise InvalidArgument("debug_logger", problem)
    policy = ResponsePolicy(codec, max_body_bytes)
    users, retry = _user_layers(middleware, policy), Retry(RetryBudget(), time, on_retry)
    logger = debug_logger if debug_logger is not None else _environment_logger()
    attempt: list[Middleware] = [policy] if logger is None else [Logging(logger, time), policy]
    if observers:
        attempt = [partial(observers.observe_attempt, attempt)]
    return chain([*users, retry, compute_headers, *attempt])


def _user_layers(middleware: object, policy: ResponsePolicy) -> list[Middleware]:
    if callable(middleware) or not isinstance(middleware, Iterable):
        raise InvalidArgument("middleware", f"must be a list of functions: pass [{middleware!r}]")
    layers = tuple(cast("Iterable[Middleware]", middleware))
    if not layers:
        return []
    from flux0.middleware.checked import checked  # noqa: PLC0415 - most clients have no middleware

    return [checked(layer, policy) for layer in layers]


def _environment_logger() -> DebugLogger | None:
    if os.environ.get("FLUX0_DEBUG", "").lower() not in ("1", "true", "yes", "on"):
        return None
    import logging  # noqa: PLC0415 - rarely needed

    logger = logging.getLogger("flux0")
    logger.setLevel(logging.DEBUG)
    # Without a handler, Python drops debug messages. Add a handler if the logger has none.
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
        logger.addHandler(handler)
    return logger
