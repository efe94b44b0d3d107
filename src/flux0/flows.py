"""Flows: generators that describe I/O but do not perform it, so sync and async code share them.

A flow yields effects: objects that describe one I/O operation, such as `Send`. A driver
(`flux0.client.drivers`) performs the operation. Then the `yield` expression returns the operation's
result, or raises its error. Use cases and middleware are flows.

A middleware is a function `(request, send) -> Flow[Response]`. It may call `send` any number of
times, always with `yield from`, and returns a response or raises.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from functools import partial
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
        deadline: the moment by which the call must end, with all its attempts; None if the call has
            no `timeout_ms`.
        call: the `Call` that is passed to observers; None if the client has no observers.
        header_functions: a mapping from the lower-case name of a header field to the function that
            computes its value for each attempt. If `headers` has a field with this name, the value
            in `headers` is sent.
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
    """An I/O operation: `response = yield Send(request)` sends a request over the transport.

    Attributes:
        request: the request to send.
    """

    request: CallRequest


@frozen
class ReadBody:
    """An I/O operation: `body = yield ReadBody(...)` reads a response's body to its end.

    The result is the body as bytes; the body is closed. The `yield` raises `ResponseTooLarge` if
    the body has more than `limit` bytes, and `ReadTimeout` if the read timeout of `request` or the
    call's deadline expires.

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
    """An I/O operation: `yield Sleep(seconds)` waits, and returns None.

    Attributes:
        seconds: the wait's duration in seconds.
    """

    seconds: float


@frozen
class Await:
    """An I/O operation: `value = yield Await(...)` awaits an object, and returns its value.

    In a sync call, the `yield` raises `InvalidArgument`, because sync code cannot await. The error
    names `argument`, such as `headers['authorization']`.

    Attributes:
        awaitable: the object to await, such as a coroutine.
        argument: the name of the user's argument that contained `awaitable`.
        request: the request that needs the value. If the call's deadline ends the wait, the error
            names this request.
    """

    awaitable: Awaitable[Any]
    argument: str
    request: CallRequest | None = None


HeaderFunction: TypeAlias = Callable[[], "str | Awaitable[str]"]
"""A function that computes the value of a header field, such as a token that expires."""
Effect: TypeAlias = Send | ReadBody | Sleep | Await
"""An I/O operation that a generator of type `Flow` yields, such as `Send` or `Sleep`."""
Flow: TypeAlias = Generator[Effect, Any, T]
"""A generator that yields effects, and returns its result."""
SendFlow: TypeAlias = Callable[[CallRequest], Flow[Response[Any]]]
"""The type of the function `send` that a middleware calls to send a request."""
Middleware: TypeAlias = Callable[[CallRequest, SendFlow], Flow[Response[Any]]]
"""A function `(request, send) -> Flow[Response]`, which may change each request and response."""


def send_once(request: CallRequest) -> Flow[Response[Any]]:
    """Send `request` over the transport, without any middleware."""
    response: Response[Any] = yield Send(request)
    return response


def chain(middleware: Iterable[Middleware], send: SendFlow = send_once) -> SendFlow:
    """Return a function that sends a request through each middleware in order, then `send`."""
    for layer in reversed(tuple(middleware)):
        send = partial(_send_through, layer, send)
    return send


def _send_through(layer: Middleware, inner: SendFlow, request: CallRequest) -> Flow[Response[Any]]:
    return layer(request, inner)


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
