"""Flows: generators that describe I/O but do not perform it, so sync and async code share them.

A flow yields effects, such as `Send`. A driver (`flux0.client.drivers`) performs each effect. The
`yield` expression then returns the effect's result, or raises its error. Use cases and middleware
are flows.

A middleware is a function `(request, send) -> Flow[Response]`. It may call `send` any number of
times, always with `yield from`, and returns a response or raises.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

from attrs import field, frozen

from flux0.domain.http import IDEMPOTENT
from flux0.domain.retrying import RetryConfig
from flux0.domain.timeouts import Deadline
from flux0.observers import Call
from flux0.ports import Request, Response

T = TypeVar("T")


@frozen
class CallRequest(Request):
    """A `Request` with additional fields that describe its API call, for middleware.

    A transport sends only the fields of `Request`.

    Attributes:
        operation: the call's name in errors and traces, such as `agents.list`.
        route: the path with placeholders instead of ids.
        retries: the retry policy of this call; None means the default policy.
        attempt: the number of this attempt; the first is 1.
        deadline: the moment by which the call must end, with all its attempts.
        call: the `Call` that is passed to observers; None if the client has no observers.
        header_functions: the functions that compute header fields for each attempt, by the name of
            the field in lower case. A field in `headers` with this name is sent instead.
    """

    operation: str = ""
    route: str = ""
    retries: RetryConfig | None = None
    attempt: int = 1
    deadline: Deadline | None = None
    call: Call | None = field(default=None, eq=False, repr=False)
    header_functions: Mapping[str, HeaderFunction] = field(
        factory=dict[str, Any], eq=False, repr=False
    )

    @property
    def is_idempotent(self) -> bool:
        """Whether the method is idempotent, so that repeating the request has no further effect."""
        return self.method in IDEMPOTENT


@frozen
class Send:
    """Sends `request` over the transport; the result is the `Response`.

    Attributes:
        request: the request to send.
    """

    request: CallRequest


@frozen
class ReadBody:
    """Reads the body of `response` to its end and closes it; the result is the body as bytes.

    Raises `ResponseTooLarge` if the body has more than `limit` bytes, and `ReadTimeout` if the read
    timeout of `request` expires, or the call's deadline.

    Attributes:
        request: the request to which `response` belongs. Its timeouts apply to the reading.
        response: the response with the body to read.
        limit: the largest allowed size of a body in bytes.
    """

    request: CallRequest
    response: Response[Any]
    limit: int


@frozen
class Sleep:
    """Waits for `seconds`; the result is None.

    Attributes:
        seconds: the wait's duration in seconds.
    """

    seconds: float


@frozen
class Await:
    """Awaits `awaitable`; the result is the value that it returns.

    In a sync call, this effect raises `InvalidArgument`, because sync code cannot await. The error
    names `argument`, such as `headers['authorization']`.

    Attributes:
        awaitable: the object to await, such as a coroutine.
        argument: the name of the argument that contained the object.
    """

    awaitable: Awaitable[Any]
    argument: str


HeaderFunction: TypeAlias = Callable[[], "str | Awaitable[str]"]
"""A function that computes the value of a header field, such as a token that expires."""
Effect: TypeAlias = Send | ReadBody | Sleep | Await
"""An I/O operation that a flow yields."""
Flow: TypeAlias = Generator[Effect, Any, T]
"""A generator that yields effects, and returns its result."""
SendFlow: TypeAlias = Callable[[CallRequest], Flow[Response[Any]]]
"""The function `send` of a middleware: it sends a request through the rest of the chain."""
Middleware: TypeAlias = Callable[[CallRequest, SendFlow], Flow[Response[Any]]]
"""A function that gets each request and the rest of the chain, and returns the response."""


def send_once(request: CallRequest) -> Flow[Response[Any]]:
    """Send `request` over the transport, without any middleware."""
    response: Response[Any] = yield Send(request)
    return response


def chain(middleware: Iterable[Middleware], send: SendFlow = send_once) -> SendFlow:
    """Return a function that sends a request through `middleware`, from the first to the last."""
    for layer in reversed(tuple(middleware)):
        send = _around(layer, send)
    return send


def _around(layer: Middleware, inner: SendFlow) -> SendFlow:
    def send(request: CallRequest) -> Flow[Response[Any]]:
        return layer(request, inner)

    return send


__all__ = [
    "Await",
    "CallRequest",
    "Effect",
    "Flow",
    "HeaderFunction",
    "Middleware",
    "ReadBody",
    "Send",
    "SendFlow",
    "Sleep",
    "chain",
    "send_once",
]
