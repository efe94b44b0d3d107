"""The transport contract: what every transport must do, as tests to run against one's own.

Subclass `TransportContract` or `AsyncTransportContract` in a test module under a name that begins
with `Test`, and say how to make the transport, and how to make one that trusts an authority::

    class TestMyTransport(TransportContract):
        def make_transport(self) -> MyTransport:
            return MyTransport()

        def make_trusting_transport(self, ca_file: str) -> MyTransport:
            return MyTransport(ca_file)

If your library can limit the connections of a pool, subclass `LimitedPoolContract` as well. The
tests need pytest, trustme, trio for asynchronous transports, and Linux.
"""

# ruff: noqa: E402 - asserts are rewritten from here on

from __future__ import annotations

from typing import ClassVar

import pytest

_PARTS = ("base", "connecting", "connections", "harness", "messages", "waiting")
pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in _PARTS))

from flux0.testing.contract.base import THREADS
from flux0.testing.contract.connecting import (
    ConnectContract,
    LimitedPoolContract as LimitedPoolContract,
    TLSContract,
)
from flux0.testing.contract.connections import (
    CancellationContract,
    NeverTwiceContract,
    ReleaseContract,
)
from flux0.testing.contract.messages import BodyContract, HeadContract
from flux0.testing.contract.waiting import IdleContract, InterruptContract, TimeoutContract


class _Parts(
    IdleContract,  # The first base's tests run last.
    HeadContract,
    BodyContract,
    ConnectContract,
    TimeoutContract,
    NeverTwiceContract,
    ReleaseContract,
    TLSContract,
):
    pass


class TransportContract(_Parts, InterruptContract):
    """What a `Transport` must do. Say how to make one; `make_trusting_transport` is for TLS."""

    backends: ClassVar[tuple[str, ...]] = (THREADS,)


class AsyncTransportContract(_Parts, CancellationContract):
    """What an `AsyncTransport` must do, under asyncio and trio."""

    backends: ClassVar[tuple[str, ...]] = ("asyncio", "trio")
