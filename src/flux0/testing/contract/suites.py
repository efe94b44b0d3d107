"""The two contracts, each made of its parts."""

from __future__ import annotations

from flux0.ports import AsyncTransport, Transport
from flux0.testing.contract.faults import (
    BrokenAnswerContract,
    ConnectFaultContract,
    SilenceContract,
)
from flux0.testing.contract.framing import FramingContract
from flux0.testing.contract.heads import HeadContract
from flux0.testing.contract.probe import LoopProbe, Probe, ThreadProbe
from flux0.testing.contract.release import (
    CancellationContract,
    LimitedPoolContract,
    ReleaseContract,
)
from flux0.testing.contract.tls import TLSContract


class _Parts(
    HeadContract,
    FramingContract,
    ConnectFaultContract,
    SilenceContract,
    BrokenAnswerContract,
    ReleaseContract,
    TLSContract,
):
    pass


class TransportContract(_Parts):
    """What a `Transport` must do. Say how to make one; `make_trusting_transport` is for TLS."""

    backends = ("threads",)

    def make_probe(self, transport: Transport, backend: str) -> Probe:  # noqa: ARG002 - threads
        """Return what drives `transport` with threads."""
        return ThreadProbe(transport, self.patience)


class AsyncTransportContract(_Parts, CancellationContract):
    """What an `AsyncTransport` must do, under asyncio and trio."""

    backends = ("asyncio", "trio")

    def make_probe(self, transport: AsyncTransport, backend: str) -> Probe:
        """Return what drives `transport` in one event loop."""
        return LoopProbe(transport, backend, self.patience)


__all__ = ["AsyncTransportContract", "LimitedPoolContract", "TransportContract"]
