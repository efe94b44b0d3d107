"""The HTTP libraries that tests go over: a new one is a line in `TRANSPORTS`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeAlias

from attrs import frozen

import flux0
from flux0.ports import AsyncTransport, Transport

Mode: TypeAlias = Literal["sync", "asyncio", "trio"]

SYNC: Final[tuple[Mode, ...]] = ("sync",)
ASYNC: Final[tuple[Mode, ...]] = ("asyncio", "trio")

# Name: the transport's class, and the kinds of code that it serves. A library is loaded when its
# transport is made, since not every one is there on every Python.
TRANSPORTS: Mapping[str, tuple[str, tuple[Mode, ...]]] = {
    "aiohttp": ("AiohttpTransport", ("asyncio",)),
    "httpx": ("HttpxTransport", SYNC + ASYNC),
    "httpx2": ("Httpx2Transport", SYNC + ASYNC),
    "requests": ("RequestsTransport", SYNC + ASYNC),
    "urllib3": ("Urllib3Transport", SYNC + ASYNC),
}


def make_transport(name: str) -> Transport | AsyncTransport:
    """Return a new transport, with its defaults."""
    kind: Callable[[], Transport | AsyncTransport] = getattr(flux0, TRANSPORTS[name][0])
    return kind()


@frozen
class Way:
    """One transport in one kind of code: every test of the client runs once each way."""

    transport: str
    mode: Mode

    def __str__(self) -> str:
        return f"{self.transport}-{self.mode}"

    def make_transport(self) -> Transport | AsyncTransport:
        """Return a transport of its own, with the transport's defaults."""
        return make_transport(self.transport)


WAYS = tuple(
    Way(name, mode)
    for name, (_, modes) in TRANSPORTS.items()
    for mode in modes
    if name != "httpx2" or sys.version_info >= (3, 11)  # As httpx2 needs.
)
BLOCKING = tuple(way for way in WAYS if way.mode == "sync")
# Each adapter in the kinds of code that it has code for. requests runs in threads for urllib3 too.
ONCE = tuple(way for way in WAYS if way.mode != "trio" and way != Way("urllib3", "asyncio"))
