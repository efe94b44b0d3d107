"""The transports that one behaviour is tested over."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from attrs import frozen

import flux0


@frozen
class TransportUnderTest:
    """One transport, by its name in `flux0`; `argument` is how a client takes it."""

    name: str
    argument: str = "transport"
    synchronous: bool = True

    def arguments(self) -> dict[str, Any]:
        """Return the client's argument for a new transport."""
        make: Callable[[], Any] = getattr(flux0, self.name)
        return {self.argument: make()}

    def __str__(self) -> str:
        return f"{self.name}-{'sync' if self.synchronous else 'async'}"


TRANSPORTS = [
    TransportUnderTest("HttpxTransport"),
    TransportUnderTest("HttpxTransport", synchronous=False),
    TransportUnderTest("RequestsTransport"),
    TransportUnderTest("RequestsTransport", synchronous=False),
    TransportUnderTest("Urllib3Transport"),
    TransportUnderTest("AiohttpTransport", argument="async_transport", synchronous=False),
]
if sys.version_info >= (3, 11):  # As httpx2 needs; see conftest.py, which says what is left out.
    TRANSPORTS += [
        TransportUnderTest("Httpx2Transport"),
        TransportUnderTest("Httpx2Transport", synchronous=False),
    ]
