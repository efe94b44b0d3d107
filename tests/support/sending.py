"""Functions that send requests over any transport, with the same code for sync and async."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import pytest
from attrs import evolve

from flux0.flows import CallRequest, Flow, Middleware, SendFlow
from flux0.ports import AsyncByteStream, AsyncTransport, Request, Response, Transport
from flux0.runtime.threads import ThreadedTransport
from flux0.testing.contract.harness import LONG, BlockingAsAsync
from flux0.testing.contract.responses import WaitForRelease, http_response
from support.modes import run
from support.transports import Mode

OK = http_response(b"ok")
HALF = http_response(b"first", WaitForRelease(), b"second", framing="chunked")
AGENTS = http_response(b'{"data": []}', headers=[("Content-Type", "application/json")])


class HasMode(Protocol):
    """A parameter of a test that has a mode, such as a `Way`."""

    @property
    def mode(self) -> Mode: ...


OverT = TypeVar("OverT", bound=HasMode)
P = ParamSpec("P")


def over(
    *ways: OverT,
) -> Callable[[Callable[Concatenate[OverT, P], Coroutine[Any, Any, None]]], Callable[..., None]]:
    """Return a decorator that runs an async test once for each way, the first argument."""

    def decorate(
        test: Callable[Concatenate[OverT, P], Coroutine[Any, Any, None]],
    ) -> Callable[..., None]:
        @wraps(test)
        def run_test(way: OverT, *args: P.args, **arguments: P.kwargs) -> None:
            run(way.mode, partial(test, way, *args, **arguments))

        parametrized: Callable[..., None] = pytest.mark.parametrize("way", ways, ids=str)(run_test)
        return parametrized

    return decorate


def limiting(**timeouts: float) -> Middleware:
    """Return a middleware that sets these timeouts of each request, in seconds.

    A short `timeout_ms` also limits the whole call. On a busy machine, it may expire first.
    """

    def limit(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        return (yield from send(evolve(request, timeout=evolve(request.timeout, **timeouts))))

    return limit


class Pieces:
    """The pieces of a sync or async body, as an iterator. Each read has the same timeout."""

    def __init__(self, body: Any, timeout: float | None = LONG) -> None:
        self._body = body
        self._timeout = timeout

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece: bytes | None = self._body.read(self._timeout)
        if piece is None:
            raise StopIteration
        return piece

    def close(self) -> None:
        self._body.close()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece: bytes | None = await self._body.read_async(self._timeout)
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def close_async(self) -> None:
        await self._body.close_async()


def fetch_sync(transport: Transport, request: Request) -> bytes:
    """Send a request over a sync transport, and return the body."""
    return b"".join(Pieces(transport.send(request).body))


async def fetch(transport: AsyncTransport, request: Request) -> bytes:
    """Send a request over an async transport, and return the body."""
    return await read((await transport.send_async(request)).body)


async def read(body: AsyncByteStream) -> bytes:
    return b"".join([piece async for piece in Pieces(body)])


def as_async(mode: Mode, transport: Any) -> AsyncTransport:
    """Return the async version of a transport. In the mode "sync", its calls block."""
    if mode == "sync":
        return BlockingAsAsync(transport)
    return transport if hasattr(transport, "send_async") else ThreadedTransport(transport)
