"""What every part of the contract shares: servers, the transport under test, and patience."""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

import gc
import ssl
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from time import monotonic
from typing import Any, ClassVar, Protocol

import pytest
from attrs import define

from flux0.domain.headers import Headers
from flux0.ports import Request, Timeout
from flux0.testing.contract.answers import Answer
from flux0.testing.contract.byte_server import PATIENCE, ByteServer
from flux0.testing.contract.probe import Probe

SHORT = 0.2  # Seconds to wait for what never comes.
# Long enough never to be reached, so that a hang shows as a hang.
PATIENT = Timeout(connect=60.0, read=60.0, write=60.0, pool=60.0, idle=60.0)
streams: pytest.MarkDecorator = pytest.mark.parametrize(
    "stream", [False, True], ids=["whole", "stream"]
)


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


@define
class Budget:
    """The seconds that all tests of one class may lose by waiting in vain."""

    left: float

    def patience(self, usual: float) -> float:
        """Return how long the next test waits: less and less, for a transport that hangs often."""
        return min(usual, max(self.left / 4, usual / 10))


_BUDGET = pytest.StashKey[Budget]()


class Contract(ABC):
    """The part of a contract that is not tests.

    Attributes:
        backends: where each test runs: in threads, or in event loops by anyio's names for them.
        patience: how many seconds the transport may take for anything before it counts as hung.
            All tests together may lose three times as long; those that are left then fail at once.
    """

    backends: ClassVar[tuple[str, ...]]
    patience: ClassVar[float] = PATIENCE

    def make_transport(self) -> Any:
        """Return a new transport as users get it."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to make its transport")

    @abstractmethod
    def make_probe(self, transport: Any, backend: str, patience: float) -> Probe:
        """Return what drives `transport`."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test once in each of `backends`."""
        if "backend" in metafunc.fixturenames:
            metafunc.parametrize("backend", self.backends)

    @pytest.fixture
    def limit(self, request: pytest.FixtureRequest) -> Iterator[float]:
        """How many seconds this test waits for anything."""
        budget = class_of(request).stash.setdefault(_BUDGET, Budget(3 * self.patience))
        if budget.left <= 0:
            pytest.fail("not run: the transport was too slow for the tests before", pytrace=False)
        started = monotonic()
        yield budget.patience(self.patience)
        budget.left -= max(0.0, monotonic() - started - self.patience / 20)

    @pytest.fixture
    def serve(self, limit: float) -> Iterator[Serve]:
        """Servers for this test."""
        with ExitStack() as running:
            yield lambda *answers, unasked=(), tls=None: running.enter_context(
                ByteServer(*answers, unasked=unasked, tls=tls, patience=limit)
            )

    @pytest.fixture
    def drive(self, serve: Serve, backend: str, limit: float) -> Iterator[Drive]:  # noqa: ARG002 - the servers end later
        """Probes for this test; gone before the servers are."""
        gc.freeze()  # So that collecting takes no time for what was there before.
        with ExitStack() as ending:
            ending.callback(gc.unfreeze)
            ending.callback(gc.collect)  # What was forgotten must go without a warning.

            def start(transport: Any) -> Probe:
                probe = self.make_probe(transport, backend, limit)
                ending.callback(probe.stop)
                ending.callback(probe.close)
                return probe

            yield start

    @pytest.fixture
    def probe(self, drive: Drive) -> Probe:
        """Drives the transport under test."""
        return drive(self.make_transport())


def class_of(request: pytest.FixtureRequest) -> pytest.Class:
    """Return what holds the things that the tests of one class share."""
    node: pytest.Item = request.node
    found = node.getparent(pytest.Class)
    assert found is not None
    return found


def get(url: str, *, stream: bool = False, timeout: Timeout = PATIENT) -> Request:
    """Return a plain GET."""
    return Request("GET", url, Headers(), stream=stream, timeout=timeout)


def post(url: str, body: bytes = b"{}", *, timeout: Timeout = PATIENT) -> Request:
    """Return a plain POST."""
    return Request("POST", url, Headers(), body, timeout=timeout)
