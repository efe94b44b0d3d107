"""What every part of the contract shares: servers, and the transport under test."""

from __future__ import annotations

import gc
import ssl
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, ClassVar, Protocol

import pytest

from flux0.domain.headers import Headers
from flux0.ports import Request, Timeout
from flux0.testing.contract.answers import Answer
from flux0.testing.contract.byte_server import PATIENCE, ByteServer
from flux0.testing.contract.probe import Probe

# Long enough never to be reached, so that a hang shows as a hang.
PATIENT = Timeout(connect=60.0, read=60.0, write=60.0, pool=60.0, idle=60.0)


class Serve(Protocol):
    """Starts a server that runs until the test is over."""

    def __call__(
        self, *answers: Answer, unasked: Answer = (), tls: ssl.SSLContext | None = None
    ) -> ByteServer:
        """Start a `ByteServer` with these arguments."""
        ...


class Drive(Protocol):
    """Puts a transport behind a probe, and closes both when the test is over."""

    def __call__(self, transport: Any) -> Probe:
        """Return the probe."""
        ...


class Contract(ABC):
    """The part of a contract that is not tests.

    Attributes:
        backends: where each test runs: in threads, or in event loops by anyio's names for them.
        patience: how many seconds the transport may take for anything before it counts as hung.
    """

    backends: ClassVar[tuple[str, ...]]
    patience: ClassVar[float] = PATIENCE

    def make_transport(self) -> Any:
        """Return a new transport as users get it."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to make its transport")

    @abstractmethod
    def make_probe(self, transport: Any, backend: str) -> Probe:
        """Return what drives `transport`."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test once in each of `backends`."""
        if "backend" in metafunc.fixturenames:
            metafunc.parametrize("backend", self.backends)

    @pytest.fixture
    def serve(self) -> Iterator[Serve]:
        """Servers for this test."""
        with ExitStack() as running:
            yield lambda *answers, unasked=(), tls=None: running.enter_context(
                ByteServer(*answers, unasked=unasked, tls=tls, patience=self.patience)
            )

    @pytest.fixture
    def drive(self, serve: Serve, backend: str) -> Iterator[Drive]:  # noqa: ARG002 - ends later
        """Probes for this test; gone before the servers are."""
        probes: list[Probe] = []

        def start(transport: Any) -> Probe:
            probes.append(self.make_probe(transport, backend))
            return probes[-1]

        gc.freeze()  # So that collecting takes no time for what was there before.
        yield start
        for probe in probes:
            probe.close()
            probe.stop()
        gc.collect()  # What was left to the garbage collector must go without a warning.
        gc.unfreeze()

    @pytest.fixture
    def probe(self, drive: Drive) -> Probe:
        """Drives the transport under test."""
        return drive(self.make_transport())


def get(url: str, *, stream: bool = False, timeout: Timeout = PATIENT) -> Request:
    """Return a plain GET."""
    return Request("GET", url, Headers(), stream=stream, timeout=timeout)
