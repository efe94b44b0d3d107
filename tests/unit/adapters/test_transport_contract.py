"""The contract catches bugs that are planted in the example of docs/transports.md."""

from __future__ import annotations

import gc
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest
from attrs import frozen

from flux0.testing.contract import AsyncTransportContract, LimitedPoolContract, TransportContract
from support.transports_page import CONTRACT, TRANSPORT

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.slow


# Waits that are long are shorter here, in the example and in its contract.
HASTY = TRANSPORT.replace("LONGEST_IDLE = 4.0", "LONGEST_IDLE = 0.5")
IMPATIENT = CONTRACT.replace(
    "Contract):\n", "Contract):\n    timeout = 1.0\n    idle_test_seconds = 1.0\n"
)


@frozen
class Bug:
    """What to write in place of what in the example, and the tests that then fail."""

    changes: dict[str, str]
    fails: tuple[str, ...]

    def planted(self) -> str:
        source = HASTY
        for right, wrong in self.changes.items():
            assert source.count(right) == 1, right
            source = source.replace(right, wrong)
        return source


SENDING = """\
            with translated(READING):
                answer = connection.read_head(request.timeout.read)
"""


def sending_again(*errors: str, condition: str = "True") -> dict[str, str]:
    """Send again after such an error of reading the head."""
    return {
        SENDING: f"""\
            try:
                with translated(READING):
                    answer = connection.read_head(request.timeout.read)
            except ({", ".join(errors)},):
                if {condition}:
                    connection.close()
                    return self.send(request)
                raise
"""
    }


BUGS = {
    # --- requests
    "follows redirects": Bug(
        {
            "        return Response(answer": """\
        if answer.status_code == 307 and not request.url.endswith("/elsewhere"):
            return self.send(evolve(request, url=request.url + "/elsewhere"))
        return Response(answer""",
            "import h11\n": "import h11\nfrom attrs import evolve\n",
        },
        ("test_every_status_is_returned",),
    ),
    "reads where a redirect leads": Bug(
        {
            "        body = Body(": """\
        urlsplit(headers.get("location", ""))
        body = Body("""
        },
        ("test_redirects_are_not_followed",),
    ),
    "keeps cookies": Bug(
        {
            "        body = Body(": """\
        COOKIES.extend(("cookie", value) for value in headers.get_all("set-cookie"))
        body = Body(""",
            "        head = h11.Request": """\
        fields = (*fields, *COOKIES)
        head = h11.Request""",
            "PIECE = 65536\n": "PIECE = 65536\nCOOKIES = []\n",
        },
        ("test_cookies_are_not_stored",),
    ),
    "sends UTF-8": Bug(
        {'value.encode("latin-1")': "value.encode()"}, ("test_header_values_are_latin_1",)
    ),
    "reads UTF-8": Bug(
        {'value.decode("latin-1")': 'value.decode("utf-8", "replace")'},
        ("test_header_values_are_latin_1",),
    ),
    "sends no empty header": Bug(
        {"for name, value in fields]": "for name, value in fields if value]"},
        ("test_header_values_are_latin_1",),
    ),
    "drops empty headers": Bug(
        {"for name, value in answer.headers": "for name, value in answer.headers if value"},
        ("test_header_values_are_latin_1",),
    ),
    "takes an interim answer": Bug(
        {"isinstance(event, h11.Response)": "event.status_code != 100"},
        ("test_interim_responses_are_skipped",),
    ),
    # --- sending once
    "sends again after a reset": Bug(
        sending_again("ConnectionInterrupted"), ("test_request_is_sent_once_if_its_response_fails",)
    ),
    "sends again after silence": Bug(
        sending_again("ReadTimeout"), ("test_request_is_sent_once_if_its_response_fails",)
    ),
    "sends again after garbage": Bug(
        sending_again("ProtocolError"), ("test_request_is_sent_once_if_its_response_fails",)
    ),
    "sends again over another connection": Bug(
        sending_again("ConnectionInterrupted", condition="pooled")
        | {
            "        if connection is None:\n": """\
        pooled = connection is not None
        if connection is None:
"""
        },
        ("test_request_is_sent_once_if_its_response_fails",),
    ),
    "sends again if it could not write all": Bug(
        {
            "                connection.write(url, request)\n": """\
                try:
                    connection.write(url, request)
                except OSError:
                    connection.close()
                    connection = Connection(url, request.timeout.connect, self._context)
                    connection.write(url, request)
"""
        },
        ("test_request_is_sent_once_if_writing_fails",),
    ),
    "calls a break while writing a ConnectError": Bug(
        {"ConnectionInterrupted),\n)\nREADING": "ConnectError),\n)\nREADING"},
        ("test_request_is_sent_once_if_writing_fails",),
    ),
    "calls everything a ConnectError": Bug(
        {"raise kind(": "raise ConnectError("},
        (
            "test_read_timeout_limits_the_wait_for_headers",
            "test_request_is_sent_once_if_its_response_fails",
        ),
    ),
    # --- errors
    "raises bare errors": Bug(
        {"        raise kind(str(error) or repr(error)) from error": "        raise"},
        ("test_read_timeout_limits_the_wait_for_headers", "test_unknown_authority_is_a_tls_error"),
    ),
    "hides the cause": Bug(
        {"(str(error) or repr(error)) from error": "(str(error) or repr(error)) from None"},
        (
            "test_connect_timeout_limits_the_tls_handshake",
            "test_read_timeout_limits_the_wait_for_headers",
        ),
    ),
    # --- waiting
    "waits for the head for ever": Bug(
        {"self.socket.settimeout(timeout)": "self.socket.settimeout(None)"},
        ("test_read_timeout_limits_the_wait_for_headers",),
    ),
    "waits for a piece for ever": Bug(
        {"settimeout(request.timeout.idle)": "settimeout(None)"},
        ("test_read_or_idle_timeout_limits_the_wait_for_a_piece",),
    ),
    "limits a stream as a whole": Bug(
        {
            "connection.socket.settimeout(request.timeout.idle)": (
                "connection.end = monotonic() + request.timeout.idle"
            ),
            "                data = self.socket.recv(PIECE)\n": """\
                if getattr(self, "end", None):
                    self.socket.settimeout(max(0.01, self.end - monotonic()))
                data = self.socket.recv(PIECE)
""",
        },
        ("test_each_piece_restarts_the_idle_timeout",),
    ),
    "takes None for half a second": Bug(
        {
            "create_connection(address, timeout)": "create_connection(address, timeout or 0.5)",
            "settimeout(request.timeout.write)": "settimeout(request.timeout.write or 0.5)",
            "settimeout(timeout)": "settimeout(timeout or 0.5)",
            "settimeout(request.timeout.idle)": "settimeout(request.timeout.idle or 0.5)",
        },
        ("test_timeout_none_waits_without_limit",),
    ),
    "cannot be interrupted": Bug(
        {"interrupt.on_fire(connection.shut_down)": "interrupt.on_fire(Lock)"},
        ("test_interrupt_ends_the_wait_for_headers",),
    ),
    "can be interrupted for ever": Bug(
        {"request.interrupt.clear()": "pass"}, ("test_interrupt_after_the_headers_has_no_effect",)
    ),
    "keeps control while no content comes": Bug(
        {"            yield piece  #": "            if piece: yield piece  #"},
        ("test_gzip_data_without_content_yields_an_empty_piece",),
    ),
    # --- at once
    "sends one request at a time": Bug(
        {
            "    def send(self, request: Request) -> Response[Body]:\n": """\
    def send(self, request):
        with ONE:
            return self.send_one(request)

    def send_one(self, request):
""",
            "PIECE = 65536\n": "PIECE = 65536\nONE = Lock()\n",
        },
        ("test_concurrent_requests_do_not_block_each_other",),
    ),
    "reads one body at a time": Bug(
        {
            "            data = self.socket.recv(PIECE)": """\
            with ONE:
                    data = self.socket.recv(PIECE)""",
            "PIECE = 65536\n": "PIECE = 65536\nONE = Lock()\n",
        },
        ("test_waiting_reads_do_not_block_other_calls",),
    ),
    # --- bodies
    "buffers bodies": Bug(
        {"yield from self._decoded()": "yield b''.join(self._decoded())"},
        ("test_pieces_are_yielded_when_they_arrive", "test_bytes_before_an_error_are_yielded"),
    ),
    "loses what came before a failure": Bug(
        {
            "            yield bytes(event.data)\n": """\
            event = bytes(event.data)
            event += b"".join(self._framed())
            yield event
"""
        },
        ("test_bytes_before_an_error_are_yielded",),
    ),
    "takes any end for the end": Bug(
        {"raise EOFError(str(error)) from error": "return h11.EndOfMessage()"},
        ("test_truncated_body_is_an_interruption", "test_bytes_before_an_error_are_yielded"),
    ),
    "takes every end for a proof": Bug(
        {", answer, not is_framed(headers))": ", answer)"}, ("test_body_is_returned_unchanged",)
    ),
    "loses bytes": Bug(
        {"yield bytes(event.data)": "yield bytes(event.data[:-1])"},
        ("test_body_is_returned_unchanged",),
    ),
    "reads trailers without end": Bug(
        {"LARGEST_HEAD = 65536": "LARGEST_HEAD = 10**9"},
        ("test_size_of_the_head_is_limited", "test_chunk_overhead_is_limited"),
    ),
    "reads interim answers without end": Bug(
        {"MOST_INTERIM_ANSWERS = 20": "MOST_INTERIM_ANSWERS = 10**9"},
        ("test_size_of_interim_responses_is_limited",),
    ),
    # --- connections
    "never closes": Bug(
        {"        self._closed = True\n        self._let_go()": "        self._closed = True"},
        (
            "test_body_closed_early_closes_its_connection",
            "test_close_ends_a_read_in_another_thread_or_task",
        ),
    ),
    "remembers bodies": Bug(
        {"WeakSet[Body] = WeakSet()": "set[Body] = set()"},
        ("test_garbage_collected_body_closes_its_connection",),
    ),
    "locks in a finalizer": Bug(
        {
            "finalize(self, connection.close)": "finalize(self, transport.forget, connection)",
            "    def give_back(": """\
    def forget(self, connection):
        with self._lock:
            connection.close()

    def give_back(""",
            "            self._bodies.add(body)\n": """\
            self._bodies.add(body)
            [set() for _ in range(60)]
""",
        },
        ("test_garbage_collection_at_any_moment_does_not_deadlock",),
    ),
    "uses connections that are not silent": Bug(
        {"        self.socket.settimeout(0)\n": "        return True\n"},
        ("test_connection_with_surplus_bytes_is_not_reused",),
    ),
    "takes what is too much for the next answer": Bug(
        {'or self._state.trailing_data != (b"", False)': ""},
        ("test_connection_with_surplus_bytes_is_not_reused",),
    ),
    "uses old connections": Bug(
        {"LONGEST_IDLE = 0.5": "LONGEST_IDLE = 4e9"},
        ("test_connection_idle_for_long_is_not_reused",),
    ),
    "stays open": Bug(
        {"        for connections in idle.values():\n": "        for connections in ():\n"},
        ("test_closing_the_transport_closes_idle_connections",),
    ),
}


@pytest.fixture(autouse=True)
def _plain_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contract needs no plugins."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


@pytest.fixture(autouse=True)
def _connections_of_broken_transports() -> Iterator[None]:
    """Collect what a broken transport leaves open, before a later test is blamed for it."""
    before = set(threading.enumerate())
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        end = monotonic() + 0.2
        for thread in set(threading.enumerate()) - before:
            thread.join(max(0.0, end - monotonic()))
        for name in ("last_exc", "last_traceback", "last_value"):  # pytest keeps them.
            if hasattr(sys, name):
                delattr(sys, name)
        gc.unfreeze()
        gc.collect()


class _NothingToCollect:
    """pytest collects garbage five times in the end, and that of the outer pytest too."""

    def pytest_unconfigure(self) -> None:
        gc.freeze()


def failures(pytester: pytest.Pytester, transport: str, contract: str, *options: str) -> int:
    """Return how many tests fail for the example with this code."""
    pytester.makepyfile(h11_transport=transport, test_example=contract)
    pytester.syspathinsert()
    arguments = ("--import-mode=importlib", "-pno:cacheprovider", *options)
    run = pytester.inline_run(*arguments, plugins=[_NothingToCollect()])  # pyright: ignore[reportUnknownMemberType] - of pytest
    passed, _, failed = run.listoutcomes()
    assert passed or failed, "nothing ran"
    return len(failed)


@pytest.mark.parametrize(
    ("bug", "test"),
    [
        pytest.param(bug, test, id=f"{name}-{test}")
        for name, bug in BUGS.items()
        for test in bug.fails
    ],
)
def test_a_bug_is_caught(pytester: pytest.Pytester, bug: Bug, test: str) -> None:
    assert failures(pytester, bug.planted(), IMPATIENT, "-x", "-k", test)


def test_without_a_bug_no_wait_fails(pytester: pytest.Pytester) -> None:
    assert (
        failures(pytester, HASTY, IMPATIENT, "-k", "timeout_none or restarts or idle_for_long") == 0
    )


def test_a_transport_may_say_that_it_cannot_be_interrupted(pytester: pytest.Pytester) -> None:
    says_so = CONTRACT.replace("Contract):\n", "Contract):\n    interruptible = False\n")
    bug = BUGS["cannot be interrupted"]
    assert failures(pytester, bug.planted(), says_so, "-k", *bug.fails) == 0


def test_a_transport_that_hangs_is_soon_given_up(pytester: pytest.Pytester) -> None:
    url = "        url = urlsplit(request.url)\n"
    hangs = HASTY.replace(url, f"        self._lock.acquire()\n{url}")
    contract = IMPATIENT.replace("timeout = 1.0", "timeout = 0.3")
    assert failures(pytester, hangs, contract, "--maxfail=60") >= 60


@pytest.mark.parametrize("contract", [TransportContract, AsyncTransportContract])
@pytest.mark.parametrize(
    ("method", "arguments"), [("make_transport", ()), ("make_trusting_transport", ("ca.pem",))]
)
def test_what_is_not_said_is_asked_for(
    contract: type[Any], method: str, arguments: tuple[str, ...]
) -> None:
    with pytest.raises(NotImplementedError, match=rf"{contract.__name__} must define {method}\(\)"):
        getattr(contract(), method)(*arguments)


def test_a_limited_pool_is_asked_for() -> None:
    class Limited(LimitedPoolContract, TransportContract):
        pass

    with pytest.raises(NotImplementedError, match="Limited must define make_limited"):
        Limited().make_limited_transport()


@pytest.mark.parametrize("contract", [TransportContract, AsyncTransportContract])
def test_no_test_hides_another(contract: type[Any]) -> None:
    names = Counter(
        name for part in contract.__mro__ for name in vars(part) if name.startswith("test_")
    )
    assert len(names) > 50
    assert {name: count for name, count in names.items() if count > 1} == {}
