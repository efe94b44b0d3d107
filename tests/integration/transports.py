"""The HTTP libraries that the integration tests go over: a new one is a line in `TRANSPORTS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeAlias

from attrs import frozen

import flux0
from flux0.ports import AsyncTransport, Transport

Mode: TypeAlias = Literal["sync", "asyncio", "trio"]

SYNC: Final[tuple[Mode, ...]] = ("sync",)
ASYNC: Final[tuple[Mode, ...]] = ("asyncio", "trio")

# Name: what makes the transport, and the kinds of code that it serves. A library is loaded when its
# transport is made, since not every one is there on every Python.
TRANSPORTS: Mapping[str, tuple[Callable[[], Transport | AsyncTransport], tuple[Mode, ...]]] = {
    "aiohttp": (lambda: flux0.AiohttpTransport(), ("asyncio",)),
    "httpx": (lambda: flux0.HttpxTransport(), SYNC + ASYNC),
    "httpx2": (lambda: flux0.Httpx2Transport(), SYNC + ASYNC),
    "requests": (lambda: flux0.RequestsTransport(), SYNC + ASYNC),
    "urllib3": (lambda: flux0.Urllib3Transport(), SYNC + ASYNC),
}


@frozen
class Way:
    """One transport in one kind of code: every test of the client runs once each way."""

    transport: str
    mode: Mode

    def __str__(self) -> str:
        return f"{self.transport}-{self.mode}"

    def make_transport(self) -> Transport | AsyncTransport:
        """Return a transport of its own, with the transport's defaults."""
        return TRANSPORTS[self.transport][0]()


WAYS = tuple(Way(name, mode) for name, (_, modes) in TRANSPORTS.items() for mode in modes)
