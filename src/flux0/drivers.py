"""The two drivers: they perform what flows describe, one by blocking, one by awaiting."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from flux0.domain.errors import ResponseTooLarge
from flux0.flows import Close, Effect, Flow, ReadBody, Send, Sleep
from flux0.ports import AsyncByteStream, AsyncTransport, ByteStream, Response, Transport

T = TypeVar("T")


class _Pieces:
    """The pieces of a body, and the check of their sum."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._pieces: list[bytes] = []

    def add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._limit:
            raise ResponseTooLarge(self._limit)
        self._pieces.append(piece)

    def joined(self) -> bytes:
        return b"".join(self._pieces)


def run(flow: Flow[T], transport: Transport, sleep: Callable[[float], None]) -> T:
    """Drive `flow` to its end over `transport` and return its result."""
    try:
        effect = next(flow)
        while True:
            try:
                outcome = _perform(effect, transport, sleep)
            except BaseException as error:  # noqa: BLE001 - the flow decides, and must get to clean up
                effect = flow.throw(error)
            else:
                effect = flow.send(outcome)
    except StopIteration as stop:
        result: T = stop.value
        return result


def _perform(effect: Effect, transport: Transport, sleep: Callable[[float], None]) -> object:
    match effect:
        case Send(request):
            return transport.send(request)
        case ReadBody(response, limit):
            return _read(response, limit)
        case Close(response):
            response.body.close()
            return None
        case Sleep(seconds):
            sleep(seconds)
            return None


def _read(response: Response[ByteStream], limit: int) -> bytes:
    pieces = _Pieces(limit)
    try:
        for piece in response.body:
            pieces.add(piece)
    finally:
        response.body.close()
    return pieces.joined()


async def run_async(
    flow: Flow[T], transport: AsyncTransport, sleep: Callable[[float], Awaitable[None]]
) -> T:
    """Drive `flow` to its end over `transport` and return its result."""
    try:
        effect = next(flow)
        while True:
            try:
                outcome = await _perform_async(effect, transport, sleep)
            except BaseException as error:  # noqa: BLE001 - as above; a cancelled flow closes what it holds
                effect = flow.throw(error)
            else:
                effect = flow.send(outcome)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def _perform_async(
    effect: Effect, transport: AsyncTransport, sleep: Callable[[float], Awaitable[None]]
) -> object:
    match effect:
        case Send(request):
            return await transport.send_async(request)
        case ReadBody(response, limit):
            return await _read_async(response, limit)
        case Close(response):
            await response.body.close_async()
            return None
        case Sleep(seconds):
            await sleep(seconds)
            return None


async def _read_async(response: Response[AsyncByteStream], limit: int) -> bytes:
    pieces = _Pieces(limit)
    try:
        async for piece in response.body:
            pieces.add(piece)
    finally:
        await response.body.close_async()
    return pieces.joined()
