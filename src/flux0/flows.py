"""Flows: code that describes I/O instead of doing it, written once for sync and async.

A flow is a generator. It yields an effect and gets the outcome back; a failure is raised at the
`yield`. Use cases and middleware are flows. A driver (`flux0.client.drivers`) performs the effects.

A middleware is `(request, send) -> Flow[Response]`: it calls `send` as often as it likes, each time
with `yield from`, and returns the response or raises.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterable
from typing import Any, TypeAlias, TypeVar

from attrs import frozen

from flux0.ports import Request, Response

T = TypeVar("T")


@frozen
class Send:
    """Send `request` over the transport; the outcome is the `Response`."""

    request: Request


@frozen
class ReadBody:
    """Read `response` to its end and release it; the outcome is the body as bytes.

    Raises `ResponseTooLarge` past `limit` bytes, and `ReadTimeout` past `deadline`.
    """

    response: Response[Any]
    limit: int
    deadline: float | None = None


@frozen
class Sleep:
    """Wait for `seconds`; the outcome is None."""

    seconds: float


@frozen
class Await:
    """Await `awaitable`; the outcome is what it gives.

    Synchronous code cannot, and raises `InvalidArgument`, which names `argument`.
    """

    awaitable: Awaitable[Any]
    argument: str


Effect: TypeAlias = Send | ReadBody | Sleep | Await
Flow: TypeAlias = Generator[Effect, Any, T]
SendFlow: TypeAlias = Callable[[Request], Flow[Response[Any]]]
Middleware: TypeAlias = Callable[[Request, SendFlow], Flow[Response[Any]]]


def send_once(request: Request) -> Flow[Response[Any]]:
    """Hand `request` to the transport: the innermost flow of every chain."""
    response: Response[Any] = yield Send(request)
    return response


def chain(middleware: Iterable[Middleware]) -> SendFlow:
    """Return one flow out of `middleware`, the first of which is the outermost."""
    send: SendFlow = send_once
    for layer in reversed(tuple(middleware)):
        send = _around(layer, send)
    return send


def _around(layer: Middleware, inner: SendFlow) -> SendFlow:
    def send(request: Request) -> Flow[Response[Any]]:
        return layer(request, inner)

    return send
