"""The two contracts, each made of its parts."""

from __future__ import annotations

from typing import ClassVar

from flux0.testing.contract.base import THREADS
from flux0.testing.contract.bodies import BodyContract
from flux0.testing.contract.connecting import ConnectContract, LimitedPoolContract, TLSContract
from flux0.testing.contract.connections import (
    CancellationContract,
    NeverTwiceContract,
    ReleaseContract,
)
from flux0.testing.contract.heads import HeadContract
from flux0.testing.contract.waiting import InterruptContract, LastingContract, SilenceContract


class _Parts(
    LastingContract,  # The first base's tests run last.
    HeadContract,
    BodyContract,
    ConnectContract,
    SilenceContract,
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


__all__ = ["AsyncTransportContract", "LimitedPoolContract", "TransportContract"]
