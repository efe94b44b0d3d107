"""The two contracts, each made of its parts."""

from __future__ import annotations

from typing import ClassVar

from flux0.ports import AsyncTransport, Transport
from flux0.testing.contract.faults import BrokenAnswerContract, ConnectFaultContract
from flux0.testing.contract.framing import FramingContract
from flux0.testing.contract.heads import HeadContract
from flux0.testing.contract.lasting import LastingContract
from flux0.testing.contract.limits import LimitContract
from flux0.testing.contract.never_twice import NeverTwiceContract
from flux0.testing.contract.probe import LoopProbe, Probe, ThreadProbe
from flux0.testing.contract.release import (
    CancellationContract,
    LimitedPoolContract,
    ReleaseContract,
)
from flux0.testing.contract.tls import TLSContract
from flux0.testing.contract.waiting import InterruptContract, SilenceContract


class _Parts(
    LastingContract,  # The first base's tests run last.
    HeadContract,
    FramingContract,
    ConnectFaultContract,
    SilenceContract,
    BrokenAnswerContract,
    LimitContract,
    NeverTwiceContract,
    ReleaseContract,
    TLSContract,
):
    pass


class TransportContract(_Parts, InterruptContract):
    """What a `Transport` must do. Say how to make one; `make_trusting_transport` is for TLS."""

    backends: ClassVar[tuple[str, ...]] = ("threads",)

    def make_probe(self, transport: Transport, backend: str, patience: float) -> Probe:  # noqa: ARG002 - threads
        """Return what drives `transport` with threads."""
        return ThreadProbe(transport, patience)


class AsyncTransportContract(_Parts, CancellationContract):
    """What an `AsyncTransport` must do, under asyncio and trio."""

    backends: ClassVar[tuple[str, ...]] = ("asyncio", "trio")

    def make_probe(self, transport: AsyncTransport, backend: str, patience: float) -> Probe:
        """Return what drives `transport` in one event loop."""
        return LoopProbe(transport, backend, patience)


__all__ = ["AsyncTransportContract", "LimitedPoolContract", "TransportContract"]
