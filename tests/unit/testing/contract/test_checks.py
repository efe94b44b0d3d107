"""Each check of the contract of transports detects a bug that no other check of its test detects.

`support/transport_bugs.py` has the bugs of each check.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from inspect import signature
from typing import Any, ClassVar

import pytest
from urllib3 import PoolManager

from flux0 import Urllib3Transport
from flux0.testing.contract import AsyncTransportContract, LimitedPoolContract, TransportContract
from flux0.testing.contract.base import THREADS
from support.broken_transports import (
    KEPT,
    AnyBug,
    AsyncBug,
    Example,
    Only,
    Over,
    WrongAsyncTransport,
    WrongTransport,
    send_without_a_bug,
    send_without_a_bug_async,
)
from support.contract_checks import arguments_of, names_of_checks, recorded, rows_of
from support.secured import Secured
from support.transport_bugs import (
    ASYNC_BUGS,
    HELPER_BUGS,
    SHORT_IDLE,
    TRANSPORT_BUGS,
    covered,
)

MODULES = ("base", "bodies", "connecting", "connections", "harness", "heads", "waiting")
# The servers or clients of these tests work for up to a second, without a bug.
TIMEOUTS = {
    "bytes_without_content_do_not_extend_the_timeout": 1.0,
    "decompression_bomb_is_decoded_in_pieces": 5.0,
    "each_read_has_its_own_timeout": 1.0,
    "garbage_collection_at_any_moment_does_not_deadlock": 5.0,
    "request_that_the_server_began_to_read_is_not_resent": 5.0,
}
# On a busy machine, the short waits of these tests would fail with a correct transport.
TOO_SHORT = {
    "read_timeout_of_the_request_does_not_apply_to_a_body",
    "whole_body_may_take_longer_than_the_timeout_of_each_read",
}
pytestmark = [
    pytest.mark.usefixtures("little_garbage", "nothing_kept"),
    # Broken transports leave connections open.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning"),
]


@pytest.fixture
def nothing_kept() -> Iterator[None]:
    """Free the connections that a broken transport left open."""
    yield
    KEPT.clear()
    gc.collect()


class QuickContract(TransportContract, LimitedPoolContract):
    idle_test_seconds = 0.1

    def __init__(self, bug: AnyBug, secured: Secured, timeout: float) -> None:
        self.bug = bug
        self.secured = secured
        self.timeout = timeout  # type: ignore[misc]

    def make_transport(self, limited: bool = False) -> Any:
        bug = self.bug.bug if isinstance(self.bug, Only) else self.bug
        match bug:
            case Example():
                return bug.transport(self.secured.client)
            case Over(inner, example):
                return WrongTransport(inner, example.transport(self.secured.client))
            case _ if limited:
                return WrongTransport(bug, Urllib3Transport(PoolManager(maxsize=1, block=True)))
            case _:
                return WrongTransport(bug)


def run(contract: QuickContract, test: str, parameters: Mapping[str, Any]) -> None:
    """Run a test of the contract with these parameters, in threads."""
    function, secured = getattr(contract, f"test_{test}"), contract.secured
    names = [*signature(function).parameters]
    with ExitStack() as ending, pytest.MonkeyPatch.context() as patch:
        transport = contract.make_transport("limited" in names)
        harness = contract.make_harness(transport, THREADS, ending)
        given = {**dict.fromkeys(("harness", "trusting", "limited"), harness), **parameters}
        given |= {"authority": secured.authority, "backend": THREADS, "monkeypatch": patch}
        if "tls" in names:
            given["tls"] = secured.server if "trusting" in names else secured.unknown
        if "background" in names:
            started = contract._start(THREADS, ending)  # pyright: ignore[reportPrivateUsage]
            given["background"] = {THREADS: started}
        function(**{name: given[name] for name in names})


def failures_in(
    function: Any,
    label: str,
    bug: AnyBug,
    secured: Secured,
    test: str,
    parameters: Mapping[str, Any],
) -> set[str]:
    """Run a test of the contract. Return the labels of the function's checks that fail."""
    with suppress(Exception, pytest.fail.Exception), recorded(function) as failures:
        run(QuickContract(bug, secured, TIMEOUTS.get(test, 0.1)), test, parameters)
    if failures.ended and failures.labels <= {label}:
        return failures.labels
    # On a busy machine, a correct step of the test can exceed the short timeout.
    KEPT.clear()
    with recorded(function) as failures:
        run(QuickContract(bug, secured, 5.0), test, parameters)
    return failures.labels


@pytest.mark.parametrize(("test", "label", "bug"), rows_of(TRANSPORT_BUGS))
def test_only_this_check_detects_the_bug(
    test: str, label: str, bug: AnyBug, secured: Secured
) -> None:
    function = getattr(QuickContract, f"test_{test}")
    detecting: list[dict[str, Any]] = []
    for parameters in arguments_of(function):
        failures = failures_in(function, label, bug, secured, test, parameters)
        assert failures <= {label}
        detecting += [parameters] * len(failures)
    assert detecting, "the check accepts the bug"
    if isinstance(bug, Only):
        expected = bug.arguments.items()
        all_parameters = arguments_of(function)
        assert detecting == [each for each in all_parameters if expected <= each.items()]


@pytest.mark.parametrize(
    ("function", "label", "test", "bug"),
    [
        pytest.param(function, label, *row, id=f"{function.__name__}-{label}")
        for function, labels in HELPER_BUGS.items()
        for label, row in labels.items()
    ],
)
def test_only_this_check_of_a_helper_detects_the_bug(
    function: Any, label: str, test: str, bug: AnyBug, secured: Secured
) -> None:
    failures = set[str]()
    for parameters in arguments_of(getattr(QuickContract, f"test_{test}")):
        failures |= failures_in(function, label, bug, secured, test, parameters)
    assert failures == {label}


def without_a_bug(test: str) -> AnyBug:
    is_idle = test == "connection_idle_for_long_is_not_reused"
    return Over(send_without_a_bug, SHORT_IDLE) if is_idle else send_without_a_bug


@pytest.mark.parametrize("test", sorted(TRANSPORT_BUGS.keys() - TOO_SHORT))
def test_contract_accepts_a_transport_without_a_bug(test: str, secured: Secured) -> None:
    """A test that always fails would detect each bug."""
    contract = QuickContract(without_a_bug(test), secured, 10.0)
    for parameters in arguments_of(getattr(contract, f"test_{test}")):
        run(contract, test, parameters)


class QuickAsyncContract(AsyncTransportContract):
    timeout: ClassVar[float] = 0.1


def run_in_asyncio(test: str, bug: AsyncBug) -> None:
    contract, function = QuickAsyncContract(), getattr(QuickAsyncContract, f"test_{test}")
    for parameters in arguments_of(function):
        with ExitStack() as ending:
            harness = contract.make_harness(WrongAsyncTransport(bug), "asyncio", ending)
            function(contract, harness, **parameters)


@pytest.mark.parametrize(("test", "label", "bug"), rows_of(ASYNC_BUGS))
def test_only_this_check_detects_the_bug_of_an_async_transport(
    test: str, label: str, bug: AsyncBug
) -> None:
    with recorded(getattr(QuickAsyncContract, f"test_{test}")) as failed:
        run_in_asyncio(test, bug)
    assert failed.labels == {label}


@pytest.mark.parametrize("test", ASYNC_BUGS)
def test_contract_accepts_an_async_transport_without_a_bug(
    test: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QuickAsyncContract, "timeout", 10.0)
    run_in_asyncio(test, send_without_a_bug_async)


@pytest.mark.parametrize("module", MODULES)
def test_each_check_has_a_bug_that_only_it_detects(module: str) -> None:
    """A missing check here needs a row in `support/transport_bugs.py`."""
    assert names_of_checks(module) - covered() == set()


def test_each_bug_belongs_to_a_check() -> None:
    assert covered() - set[str]().union(*map(names_of_checks, MODULES)) == set()
