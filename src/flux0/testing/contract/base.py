"""The base class for contract tests of transports, with their fixtures and timeouts."""

# ruff: noqa: S101 - the tests in this module use assert statements

from __future__ import annotations

import gc
from abc import ABC
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, ClassVar, Final

import pytest

from flux0.domain.errors import ReadTimeout, TransportError
from flux0.testing.contract.byte_server import DEFAULT_TIMEOUT
from flux0.testing.contract.harness import (
    BlockingAsAsync,
    Harness,
    Pending,
    event_loop,
    run_in_thread,
)

# A timeout in seconds. Even on a busy machine, the test server responds within this time.
SHORT: Final = 0.2
EXPIRY: Final = 0.05  # The timeout, in seconds, in tests that wait until the timeout expires.
THREADS: Final = "threads"
_MAX_SHOWN: Final = 300  # The largest number of characters of a value in an error message.
streams: pytest.MarkDecorator = pytest.mark.parametrize(
    "stream", [False, True], ids=["whole", "stream"]
)


class Contract(ABC):
    """The base class for contract tests of transports: settings, fixtures and methods.

    Attributes:
        backends: the ways in which each test runs once: "threads" for a sync transport, or anyio's
            names of event loops, such as "asyncio", for an async transport.
        timeout: the longest duration of a call, in seconds. If a call takes longer, its test fails.
    """

    backends: ClassVar[tuple[str, ...]]
    timeout: ClassVar[float] = DEFAULT_TIMEOUT

    def make_transport(self) -> Any:
        """Return a new transport with its default settings."""
        raise NotImplementedError(f"{type(self).__name__} must define make_transport()")

    def make_harness(self, transport: Any, backend: str, ending: ExitStack) -> Harness:
        """Return a `Harness`, which calls `transport`. The stack `ending` closes the harness."""
        servers = ending.enter_context(ExitStack())
        if backend == THREADS:
            harness = Harness(BlockingAsAsync(transport), run_in_thread, self.timeout, servers)
        else:
            start = ending.enter_context(event_loop(backend, self.timeout))
            harness = Harness(transport, start, self.timeout, servers)
        ending.callback(harness.close)
        return harness

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "backend" in metafunc.fixturenames:
            metafunc.parametrize("backend", self.backends)

    @pytest.fixture
    def new_harness(self, backend: str) -> Iterator[Callable[[Any], Harness]]:
        # `gc.freeze` makes garbage collections faster: they ignore all objects that exist now.
        gc.freeze()
        with ExitStack() as ending:
            ending.callback(gc.unfreeze)
            # If the test has left a resource open, Python emits the ResourceWarning in this garbage
            # collection, and not during a later test.
            ending.callback(gc.collect)
            yield lambda transport: self.make_harness(transport, backend, ending)

    @pytest.fixture
    def harness(self, new_harness: Callable[[Any], Harness]) -> Harness:
        return new_harness(self.make_transport())


def check(value: object, required: object, subject: str) -> None:
    __tracebackhide__ = True
    texts = [repr(each)[:_MAX_SHOWN] for each in (required, value)]
    # In CI, pytest shows all differences between the operands of a failed assertion. For large
    # bodies, this takes minutes, so assert a variable.
    is_equal = value == required
    assert is_equal, f"{subject} must be {texts[0]}, not {texts[1]}"


def fails(
    call: Callable[[], object],
    kind: type[TransportError],
    *,
    caused: bool = True,
    subject: str = "the call",
) -> None:
    error: TransportError | None = None
    try:
        call()
    except TransportError as raised:
        error = raised
    assert type(error) is kind, f"{subject} must raise {kind.__name__}, not {error!r}"
    assert str(error), f"{kind.__name__} has no message"
    cause = getattr(error, "__cause__", None)
    has_cause = isinstance(cause, Exception) and not isinstance(cause, TransportError)
    assert has_cause or not caused, "the error's `__cause__` must be the HTTP library's exception"


def check_expired(reads: Mapping[str, Pending[bytes]]) -> None:
    for name, read in reads.items():
        fails(read.outcome, ReadTimeout, subject=f"the read {name!r}")
