"""The contract for the transport over httpx2, which has the same adapter as httpx."""

from __future__ import annotations

from typing import ClassVar

from flux0 import Httpx2Transport
from flux0.testing.contract import AsyncTransportContract, TransportContract
from support.over_httpx import HttpxContract


class TestHttpx2Transport(HttpxContract, TransportContract):
    transport: ClassVar[type[Httpx2Transport]] = Httpx2Transport


class TestAsyncHttpx2Transport(HttpxContract, AsyncTransportContract):
    transport: ClassVar[type[Httpx2Transport]] = Httpx2Transport
