"""What every part of the contract shares: the transport under test, behind a probe; patience."""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

import gc
from abc import ABC
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from time import monotonic
from typing import Any, ClassVar, Final

import pytest

from flux0.domain.errors import TransportError
from flux0.testing.contract.byte_server import PATIENCE
from flux0.testing.contract.probe import Blocking, Probe, in_a_thread, running_loop

SHORT: Final = 0.2  # Seconds to wait for what never comes.
THREADS: Final = "threads"
streams: pytest.MarkDecorator = pytest.mark.parametrize(
    "stream", [False, True], ids=["whole", "stream"]
)
# The seconds that all tests of one class may still lose by waiting in vain.
_LEFT = pytest.StashKey[float]()


class Contract(ABC):
    """The part of a contract that is not tests."""

    # Where each test runs: in threads, or in event loops by anyio's names for them.
    backends: ClassVar[tuple[str, ...]]
    # How many seconds the transport may take for anything before it counts as hung. All tests
    # together may lose three times as long; those that are left then fail at once.
    patience: ClassVar[float] = PATIENCE

    def make_transport(self) -> Any:
        """Return a new transport as users get it."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to make its transport")

    def make_probe(self, transport: Any, backend: str, patience: float, ending: ExitStack) -> Probe:
        """Return what drives `transport`, and closes it with all that belongs to it in the end."""
        servers = ending.enter_context(ExitStack())
        if backend == THREADS:
            probe = Probe(Blocking(transport), in_a_thread, patience, servers)
        else:
            begin = ending.enter_context(running_loop(backend, patience))
            probe = Probe(transport, begin, patience, servers)
        ending.callback(probe.close)
        return probe

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test once in each of `backends`."""
        if "backend" in metafunc.fixturenames:
            metafunc.parametrize("backend", self.backends)

    @pytest.fixture
    def left(self, request: pytest.FixtureRequest) -> float:
        """How many seconds the tests of this class may still lose; none is a failure."""
        left = class_of(request).stash.setdefault(_LEFT, 3 * self.patience)
        if left <= 0:
            pytest.fail("not run: the transport was too slow for the tests before", pytrace=False)
        return left

    @pytest.fixture
    def limit(self, request: pytest.FixtureRequest, left: float) -> Iterator[float]:
        """How many seconds this test waits: less and less, for a transport that hangs often."""
        started = monotonic()
        yield min(self.patience, max(left / 4, self.patience / 10))
        lost = max(0.0, monotonic() - started - self.patience / 20)
        class_of(request).stash[_LEFT] -= lost

    @pytest.fixture
    def drive(self, backend: str, limit: float) -> Iterator[Callable[[Any], Probe]]:
        """Puts transports behind probes."""
        gc.freeze()  # So that collecting takes no time for what was there before.
        with ExitStack() as ending:
            ending.callback(gc.unfreeze)
            ending.callback(gc.collect)  # What was forgotten must go without a warning.
            yield lambda transport: self.make_probe(transport, backend, limit, ending)

    @pytest.fixture
    def probe(self, drive: Callable[[Any], Probe]) -> Probe:
        """Drives the transport under test."""
        return drive(self.make_transport())


def class_of(request: pytest.FixtureRequest) -> pytest.Class:
    """Return what holds the things that the tests of one class share."""
    node: pytest.Item = request.node
    found = node.getparent(pytest.Class)
    assert found is not None
    return found


def fails(
    call: Callable[[], object], *kinds: type[TransportError], caused: bool = True
) -> TransportError:
    """Return the error, one of `kinds`, that `call` raises from the library's, if `caused`."""
    with pytest.raises(TransportError) as caught:
        call()
    error = caught.value
    assert type(error) in kinds
    assert str(error)
    if caused:
        assert isinstance(error.__cause__, Exception), "the library's exception is not the cause"
        assert not isinstance(error.__cause__, TransportError)
    return error
