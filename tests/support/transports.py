"""The transports that the tests use. To test another transport, add it to `TRANSPORTS`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeAlias

from attrs import frozen

import flux0
from flux0.ports import AsyncTransport, Transport

Mode: TypeAlias = Literal["sync", "asyncio", "trio"]

SYNC: Final[tuple[Mode, ...]] = ("sync",)
ASYNC: Final[tuple[Mode, ...]] = ("asyncio", "trio")

# The name of the transport class and its modes, by library. Some libraries do not support every
# Python version, so a library is imported only when its transport is created.
TRANSPORTS: Mapping[str, tuple[str, tuple[Mode, ...]]] = {
    "aiohttp": ("AiohttpTransport", ("asyncio",)),
    "httpx": ("HttpxTransport", SYNC + ASYNC),
    "httpx2": ("Httpx2Transport", SYNC + ASYNC),
    "requests": ("RequestsTransport", SYNC + ASYNC),
    "urllib3": ("Urllib3Transport", SYNC + ASYNC),
}


def make_transport(name: str) -> Transport | AsyncTransport:
    """Return a new transport with its default settings."""
    kind: Callable[[], Transport | AsyncTransport] = getattr(flux0, TRANSPORTS[name][0])
    return kind()


@frozen
class Way:
    """A transport and a mode. Client tests run once for each `Way`."""

    transport: str
    mode: Mode

    def __str__(self) -> str:
        return f"{self.transport}-{self.mode}"

    def make_transport(self) -> Transport | AsyncTransport:
        """Return a new transport with its default settings."""
        return make_transport(self.transport)


_HTTPX2 = sys.version_info >= (3, 11)  # httpx2 needs Python 3.11.
WAYS = tuple(
    Way(name, mode)
    for name, (_, modes) in TRANSPORTS.items()
    for mode in modes
    if name != "httpx2" or _HTTPX2
)
SYNC_WAYS = tuple(way for way in WAYS if way.mode == "sync")
ASYNC_WAYS = tuple(way for way in WAYS if way.mode != "sync")
# Each library once. httpx and httpx2 share an adapter, and requests is based on urllib3, so both
# modes of these adapters run.
LIBRARIES = (
    Way("aiohttp", "asyncio"),
    Way("httpx", "sync"),
    Way("httpx2" if _HTTPX2 else "httpx", "asyncio"),
    Way("requests", "asyncio"),
    Way("urllib3", "sync"),
)


class WithoutLongWaits:
    """The first base class of a contract. Its long waits are in `test_long_waits`."""

    background: Any = None
    test_timeout_none_waits_without_limit: Any = None
    test_whole_body_may_take_longer_than_the_timeout_of_each_read: Any = None
    test_read_timeout_of_the_request_does_not_apply_to_a_body: Any = None
    test_connection_idle_for_long_is_not_reused: Any = None
