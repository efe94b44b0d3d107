"""The base class for all parts of the contract, with the test harness and the timeouts."""

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
from flux0.testing.contract.byte_server import DEFAULT_TIMEOUT
from flux0.testing.contract.harness import BlockingAsAsync, Harness, event_loop, run_in_thread

# A timeout in seconds, within which the test server begins its response, even on a busy machine.
SHORT: Final = 0.2
EXPIRY: Final = 0.05  # A timeout in seconds, for tests in which it always expires.
THREADS: Final = "threads"
_MAX_SHOWN: Final = 300  # The largest number of characters of a value in a message.
streams: pytest.MarkDecorator = pytest.mark.parametrize(
    "stream", [False, True], ids=["whole", "stream"]
)
# The time budget of a test class: the seconds that its tests may still wait for hung calls.
_TIME_BUDGET = pytest.StashKey[float]()


class Contract(ABC):
    """Settings, fixtures and methods for all parts of the contract."""

    # The backends in which each test runs once: `THREADS` for a sync transport, or anyio's names of
    # event loops, such as "asyncio", for an async transport.
    backends: ClassVar[tuple[str, ...]]
    # Seconds after which a call counts as hung; see `hang_timeout`.
    timeout: ClassVar[float] = DEFAULT_TIMEOUT

    def make_transport(self) -> Any:
        """Return a new transport with its default settings."""
        raise NotImplementedError(f"{type(self).__name__} must define make_transport()")

    def make_harness(
        self, transport: Any, backend: str, timeout: float, ending: ExitStack
    ) -> Harness:
        """Return a harness for `transport`. When `ending` is closed, the harness is closed, too."""
        servers = ending.enter_context(ExitStack())
        if backend == THREADS:
            harness = Harness(BlockingAsAsync(transport), run_in_thread, timeout, servers)
        else:
            start = ending.enter_context(event_loop(backend, timeout))
            harness = Harness(transport, start, timeout, servers)
        ending.callback(harness.close)
        return harness

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test once in each of `backends`."""
        if "backend" in metafunc.fixturenames:
            metafunc.parametrize("backend", self.backends)

    @pytest.fixture
    def hang_timeout(self, request: pytest.FixtureRequest) -> Iterator[float]:
        """Seconds after which a call counts as hung: `timeout`.

        When the tests in a class have waited `3 * timeout` seconds for hung calls, each further
        test fails without running, so that a broken transport does not waste hours.
        """
        stash = class_of(request).stash
        if stash.setdefault(_TIME_BUDGET, 3 * self.timeout) <= 0:
            problem = "not run: the transport hung in too many earlier tests; see their failures"
            pytest.fail(problem, pytrace=False)
        started = monotonic()
        yield self.timeout
        # On a busy machine, tests without a hung call are slow, too, but not as slow as `timeout`.
        if (lost := monotonic() - started) >= self.timeout:
            stash[_TIME_BUDGET] -= lost

    @pytest.fixture
    def new_harness(self, backend: str, hang_timeout: float) -> Iterator[Callable[[Any], Harness]]:
        """A function that returns a new harness for a transport."""
        gc.freeze()  # Garbage collections are faster if they skip all existing objects.
        with ExitStack() as ending:
            ending.callback(gc.unfreeze)
            ending.callback(gc.collect)  # Emits any ResourceWarning in this test, not later.
            yield lambda transport: self.make_harness(transport, backend, hang_timeout, ending)

    @pytest.fixture
    def harness(self, new_harness: Callable[[Any], Harness]) -> Harness:
        """A harness for the transport under test."""
        return new_harness(self.make_transport())


def class_of(request: pytest.FixtureRequest) -> pytest.Class:
    """Return pytest's node for the class that contains the running test."""
    node: pytest.Item = request.node
    found = node.getparent(pytest.Class)
    assert found is not None
    return found


def check(value: object, required: object, subject: str) -> None:
    """Assert that `value` is equal to `required`. The message of a failure names the `subject`."""
    __tracebackhide__ = True
    texts = [repr(each)[:_MAX_SHOWN] for each in (required, value)]
    assert value == required, f"{subject} must be {texts[0]}, not {texts[1]}"


def fails(
    call: Callable[[], object], kind: type[TransportError], *, caused: bool = True
) -> TransportError:
    """Assert that `call` raises an error of the class `kind`, and return the error.

    If `caused` is true, the error must be raised `from` the HTTP library's exception.
    """
    with pytest.raises(TransportError) as caught:
        call()
    error, cause = caught.value, caught.value.__cause__
    assert type(error) is kind, f"raised {error!r}, expected {kind.__name__}"
    assert str(error), f"{kind.__name__} has no message"
    has_cause = isinstance(cause, Exception) and not isinstance(cause, TransportError)
    assert has_cause or not caused, "the error's `__cause__` must be the HTTP library's exception"
    return error
