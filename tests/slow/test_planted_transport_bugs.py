"""The contract detects bugs that these tests insert into `examples/transport`.

`tests/unit/testing/contract/test_checks.py` has the bugs that exactly one check detects. These bugs
take longer, or more than one check or an exception detects them.
"""

from __future__ import annotations

import gc
import sys
import threading
import warnings
from collections.abc import Iterator
from time import monotonic

import pytest
from attrs import frozen

from support.transports_page import CONTRACT, TRANSPORT

pytest_plugins = ["pytester"]
# Broken transports leave connections open.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


# The example of a transport, and its contract tests, with shorter waits than in the docs.
FAST_EXAMPLE = TRANSPORT.replace("MAX_IDLE_SECONDS = 4.0", "MAX_IDLE_SECONDS = 0.5")
FAST_CONTRACT = CONTRACT.replace(
    "Contract):\n", "Contract):\n    timeout = 1.0\n    idle_test_seconds = 1.0\n"
)
# A test that detects a bug may wait for the timeout. On a busy machine, it could also fail without
# a bug.
IMPATIENT_CONTRACT = FAST_CONTRACT.replace(" = 1.0", " = 0.6")


@frozen
class Bug:
    """A bug: the code to replace in the example, and the contract tests that then fail."""

    changes: dict[str, str]
    fails: tuple[str, ...]

    def inserted(self) -> str:
        source = FAST_EXAMPLE
        for correct, wrong in self.changes.items():
            assert source.count(correct) == 1, correct
            source = source.replace(correct, wrong)
        return source


BUGS = {
    # --- requests
    "parses the location of a redirect": Bug(
        {
            "        body = Body(": """\
        urlsplit(headers.get("location", ""))
        body = Body("""
        },
        ("test_redirects_are_not_followed",),
    ),
    "returns an interim response": Bug(
        {"isinstance(event, h11.Response)": "event.status_code != 100"},
        ("test_interim_responses_are_skipped",),
    ),
    "raises ConnectError for every error": Bug(
        {"raise error_class(": "raise ConnectError("},
        (
            "test_read_timeout_limits_the_wait_for_headers",
            "test_request_is_sent_once_if_its_response_fails",
        ),
    ),
    # --- errors
    "raises errors of the libraries": Bug(
        {"        raise error_class(str(error) or repr(error)) from error": "        raise"},
        ("test_read_timeout_limits_the_wait_for_headers", "test_unknown_authority_is_a_tls_error"),
    ),
    # --- waiting
    "applies the timeout of the first read to all reads": Bug(
        {"connection.timeout = timeout\n": "connection.timeout = FIRST.setdefault(self, timeout)\n"}
        | {"PIECE_BYTES = 65536\n": "PIECE_BYTES = 65536\nFIRST = {}\n"},
        ("test_each_read_has_its_own_timeout",),
    ),
    "applies the read timeout of the request to a body": Bug(
        {"        self._connection.timeout = timeout\n": ""},
        ("test_read_timeout_of_the_request_does_not_apply_to_a_body",),
    ),
    "applies the timeout of a read to the whole body": Bug(
        {
            "        self._connection.timeout = timeout\n": """\
        end = self.__dict__.setdefault("end", monotonic() + (timeout or 60))
        self._connection.timeout = end - monotonic()
"""
        },
        ("test_whole_body_may_take_longer_than_the_timeout_of_each_read",),
    ),
    "cannot be interrupted": Bug(
        {"interrupt.on_fire(connection.shut_down)": "interrupt.on_fire(Lock)"},
        ("test_interrupt_ends_the_wait_for_headers",),
    ),
    "cannot be interrupted over a pooled connection": Bug(
        {
            "interrupt.on_fire(connection.shut_down)": (
                "interrupt.on_fire(Lock if connection._idle_since else connection.shut_down)"
            )
        },
        ("test_interrupt_ends_the_wait_for_headers",),
    ),
    # --- bodies
    "loses the bytes before an error": Bug(
        {
            "            yield bytes(event.data)\n": """\
            event = bytes(event.data)
            event += b"".join(self.read_body())
            yield event
"""
        },
        ("test_bytes_before_an_error_are_yielded",),
    ),
    "has bodies without the method read": Bug(
        {"def read(self, timeout": "def read_piece(self, timeout"},
        ("test_body_is_returned_unchanged",),
    ),
    "does not limit trailers": Bug(
        {"MAX_HEAD_BYTES = 65536": "MAX_HEAD_BYTES = 10**9"},
        ("test_size_of_the_head_is_limited", "test_chunk_overhead_is_limited"),
    ),
    # --- connections
    "does not close connections": Bug(
        {"        self._closed = True\n        self._finalizer()": "        self._closed = True"},
        (
            "test_body_closed_early_closes_its_connection",
            "test_close_ends_a_read_in_another_thread_or_task",
        ),
    ),
    "takes a lock in a finalizer": Bug(
        {
            "finalize(self, connection.close)": "finalize(self, transport.discard, connection)",
            "    def release(": """\
    def discard(self, connection):
        with self._lock:
            connection.close()

    def release(""",
            "            self._bodies.add(body)\n": """\
            self._bodies.add(body)
            [set() for _ in range(60)]
""",
        },
        ("test_garbage_collection_at_any_moment_does_not_deadlock",),
    ),
    "reuses closed connections and those with surplus bytes": Bug(
        {"        self.socket.settimeout(0)\n": "        return True\n"},
        ("test_connection_with_surplus_bytes_is_not_reused",),
    ),
    "reuses connections for another scheme": Bug(
        {
            "self.origin = (url.scheme, url.netloc)": "self.origin = url.netloc",
            "self._idle.get((url.scheme, url.netloc))": "self._idle.get(url.netloc)",
        },
        ("test_connection_is_not_reused_for_another_scheme",),
    ),
}


@pytest.fixture(autouse=True)
def _plain_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run pytest without plugins, because the contract does not need any."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


@pytest.fixture(scope="module", autouse=True)
def _connections_of_broken_transports() -> Iterator[None]:
    """Free the connections that broken transports left open, so that no later test warns."""
    before = set(threading.enumerate())
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        end = monotonic() + 0.2
        for thread in set(threading.enumerate()) - before:
            thread.join(max(0.0, end - monotonic()))
        for name in ("last_exc", "last_traceback", "last_value"):  # pytest sets them.
            if hasattr(sys, name):
                delattr(sys, name)
        gc.collect()


# The plugin unraisableexception would collect garbage five times at the end of each run.
FAST_RUN = ("--assert=plain", "--tb=native", "-pno:cacheprovider", "-pno:unraisableexception")


def failures(pytester: pytest.Pytester, transport: str, contract: str, *options: str) -> int:
    """Return the number of contract tests that fail for the code `transport`."""
    pytester.makepyfile(h11_transport=transport, test_example=contract)
    pytester.syspathinsert()
    arguments = ("--import-mode=importlib", *FAST_RUN, *options)
    run = pytester.inline_run(*arguments)  # pyright: ignore[reportUnknownMemberType] - of pytest
    passed, _, failed = run.listoutcomes()
    assert passed or failed, "no test ran"
    return len(failed)


@pytest.mark.parametrize(
    ("bug", "test"),
    [
        pytest.param(bug, test, id=f"{name}-{test}")
        for name, bug in BUGS.items()
        for test in bug.fails
    ],
)
def test_bug_in_a_transport_is_detected(pytester: pytest.Pytester, bug: Bug, test: str) -> None:
    only = f"python_functions={test}"  # Faster than -k, which collects all tests first.
    assert failures(pytester, bug.inserted(), IMPATIENT_CONTRACT, "-x", "-o", only)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("returns an interim response", "the status of the final response must be 200, not 102"),
        (
            "has bodies without the method read",
            "the body of a response must have a method read(timeout), but <h11_transport.Body *",
        ),
    ],
)
def test_failure_names_the_required_value(
    pytester: pytest.Pytester, name: str, message: str
) -> None:
    bug = BUGS[name]
    pytester.makepyfile(h11_transport=bug.inserted(), test_example=FAST_CONTRACT)
    pytester.syspathinsert()
    result = pytester.runpytest_inprocess("--import-mode=importlib", "-x", "-k", *bug.fails)
    result.stdout.fnmatch_lines([f"E*AssertionError: {message}"])


def test_long_waits_pass_without_a_bug(pytester: pytest.Pytester) -> None:
    assert (
        failures(
            pytester,
            FAST_EXAMPLE,
            FAST_CONTRACT,
            "-k",
            "timeout_none or whole_body or idle_for_long or not_apply_to_a_body",
        )
        == 0
    )


def test_uninterruptible_transport_passes_if_declared(pytester: pytest.Pytester) -> None:
    contract = CONTRACT.replace("Contract):\n", "Contract):\n    interruptible = False\n")
    bug = BUGS["cannot be interrupted"]
    assert failures(pytester, bug.inserted(), contract, "-k", "interrupt_ends_the_wait") == 0


def test_hanging_transport_fails(pytester: pytest.Pytester) -> None:
    url = "        url = urlsplit(request.url)\n"
    hangs = FAST_EXAMPLE.replace(url, f"        self._lock.acquire()\n{url}")
    contract = FAST_CONTRACT.replace("timeout = 1.0", "timeout = 0.3")
    assert failures(pytester, hangs, contract, "--maxfail=3")
