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
    "Contract):\n", "Contract):\n    patience = 1.0\n    idle_test_seconds = 1.0\n"
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
        ("test_a_redirect_leads_nowhere",),
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
        ("test_cookies_are_not_kept",),
    ),
    "sends UTF-8": Bug({'value.encode("latin-1")': "value.encode()"}, ("test_a_header_value",)),
    "reads UTF-8": Bug(
        {'value.decode("latin-1")': 'value.decode("utf-8", "replace")'}, ("test_a_header_value",)
    ),
    "sends no empty header": Bug(
        {"for name, value in fields]": "for name, value in fields if value]"},
        ("test_a_header_value",),
    ),
    "drops empty headers": Bug(
        {"for name, value in answer.headers": "for name, value in answer.headers if value"},
        ("test_a_header_value",),
    ),
    "takes an interim answer": Bug(
        {"isinstance(event, h11.Response)": "event.status_code != 100"},
        ("test_interim_answers_are_skipped",),
    ),
    # --- sending once
    "sends again after a reset": Bug(
        sending_again("ConnectionInterrupted"), ("test_a_request_reaches_the_server_once",)
    ),
    "sends again after silence": Bug(
        sending_again("ReadTimeout"), ("test_a_request_reaches_the_server_once",)
    ),
    "sends again after garbage": Bug(
        sending_again("ProtocolError"), ("test_a_request_reaches_the_server_once",)
    ),
    "sends again over another connection": Bug(
        sending_again("ConnectionInterrupted", condition="pooled")
        | {
            "        if connection is None:\n": """\
        pooled = connection is not None
        if connection is None:
"""
        },
        ("test_a_request_reaches_the_server_once",),
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
        ("test_the_server_breaks_off_while_it_is_written_to",),
    ),
    "calls a break while writing a ConnectError": Bug(
        {"ConnectionInterrupted),\n)\nREADING": "ConnectError),\n)\nREADING"},
        ("test_the_server_breaks_off_while_it_is_written_to",),
    ),
    "calls everything a ConnectError": Bug(
        {"raise kind(": "raise ConnectError("},
        ("test_the_headers_do_not_come", "test_a_request_reaches_the_server_once"),
    ),
    # --- errors
    "raises bare errors": Bug(
        {"        raise kind(str(error) or repr(error)) from error": "        raise"},
        ("test_the_headers_do_not_come", "test_an_unknown_authority"),
    ),
    "hides the cause": Bug(
        {"(str(error) or repr(error)) from error": "(str(error) or repr(error)) from None"},
        ("test_a_silent_server", "test_the_headers_do_not_come"),
    ),
    # --- waiting
    "waits for the head for ever": Bug(
        {"self.socket.settimeout(timeout)": "self.socket.settimeout(None)"},
        ("test_the_headers_do_not_come",),
    ),
    "waits for a piece for ever": Bug(
        {"settimeout(request.timeout.idle)": "settimeout(None)"}, ("test_a_body_stops",)
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
        ("test_the_idle_timeout_begins_anew",),
    ),
    "takes None for half a second": Bug(
        {
            "create_connection(address, timeout)": "create_connection(address, timeout or 0.5)",
            "settimeout(request.timeout.write)": "settimeout(request.timeout.write or 0.5)",
            "settimeout(timeout)": "settimeout(timeout or 0.5)",
            "settimeout(request.timeout.idle)": "settimeout(request.timeout.idle or 0.5)",
        },
        ("test_a_timeout_may_be_off",),
    ),
    "cannot be interrupted": Bug(
        {"interrupt.on_fire(connection.shut_down)": "interrupt.on_fire(Lock)"},
        ("test_a_call_is_interrupted",),
    ),
    "can be interrupted for ever": Bug(
        {"request.interrupt.clear()": "pass"}, ("test_an_interrupt_that_comes_too_late",)
    ),
    "keeps control while no content comes": Bug(
        {"            yield piece  #": "            if piece: yield piece  #"},
        ("test_compressed_data_without_content",),
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
        ("test_many_at_once",),
    ),
    "reads one body at a time": Bug(
        {
            "            data = self.socket.recv(PIECE)": """\
            with ONE:
                    data = self.socket.recv(PIECE)""",
            "PIECE = 65536\n": "PIECE = 65536\nONE = Lock()\n",
        },
        ("test_many_are_read_at_once",),
    ),
    # --- bodies
    "buffers bodies": Bug(
        {"yield from self._decoded()": "yield b''.join(self._decoded())"},
        ("test_a_piece_is_handed_over_at_once", "test_a_body_fails_late"),
    ),
    "loses what came before a failure": Bug(
        {
            "            yield bytes(event.data)\n": """\
            event = bytes(event.data)
            event += b"".join(self._framed())
            yield event
"""
        },
        ("test_a_body_fails_late",),
    ),
    "takes any end for the end": Bug(
        {"raise EOFError(str(error)) from error": "return h11.EndOfMessage()"},
        ("test_a_body_is_cut_short", "test_a_body_fails_late"),
    ),
    "takes every end for a proof": Bug(
        {", answer, not is_framed(headers))": ", answer)"}, ("test_a_body_comes_as_it_is",)
    ),
    "loses bytes": Bug(
        {"yield bytes(event.data)": "yield bytes(event.data[:-1])"}, ("test_a_body_comes_as_it_is",)
    ),
    "reads trailers without end": Bug(
        {"LARGEST_HEAD = 65536": "LARGEST_HEAD = 10**9"},
        ("test_the_head_is_too_large", "test_the_chunks_say_too_much"),
    ),
    "reads interim answers without end": Bug(
        {"MOST_INTERIM_ANSWERS = 20": "MOST_INTERIM_ANSWERS = 10**9"},
        ("test_there_are_too_many_interim_answers",),
    ),
    # --- connections
    "never closes": Bug(
        {"        self._closed = True\n        self._let_go()": "        self._closed = True"},
        ("test_a_body_is_closed", "test_closing_ends_a_read_elsewhere"),
    ),
    "remembers bodies": Bug(
        {"WeakSet[Body] = WeakSet()": "set[Body] = set()"}, ("test_a_body_is_forgotten",)
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
        ("test_the_collector_runs_at_any_moment",),
    ),
    "uses connections that are not silent": Bug(
        {"        self.socket.settimeout(0)\n": "        return True\n"},
        ("test_a_pooled_connection_has_unread_bytes",),
    ),
    "takes what is too much for the next answer": Bug(
        {'or self._state.trailing_data != (b"", False)': ""},
        ("test_a_pooled_connection_has_unread_bytes",),
    ),
    "uses old connections": Bug(
        {"LONGEST_IDLE = 0.5": "LONGEST_IDLE = 4e9"}, ("test_an_idle_connection_grows_old",)
    ),
    "stays open": Bug(
        {"        for connections in idle.values():\n": "        for connections in ():\n"},
        ("test_closing_the_transport",),
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
    assert failures(pytester, HASTY, IMPATIENT, "-k", "timeout or idle") == 0


def test_a_transport_may_say_that_it_cannot_be_interrupted(pytester: pytest.Pytester) -> None:
    says_so = CONTRACT.replace("Contract):\n", "Contract):\n    interruptible = False\n")
    bug = BUGS["cannot be interrupted"]
    assert failures(pytester, bug.planted(), says_so, "-k", *bug.fails) == 0


def test_a_transport_that_hangs_is_soon_given_up(pytester: pytest.Pytester) -> None:
    url = "        url = urlsplit(request.url)\n"
    hangs = HASTY.replace(url, f"        self._lock.acquire()\n{url}")
    contract = IMPATIENT.replace("patience = 1.0", "patience = 0.3")
    assert failures(pytester, hangs, contract, "--maxfail=60") >= 60


@pytest.mark.parametrize("contract", [TransportContract, AsyncTransportContract])
@pytest.mark.parametrize(
    ("method", "arguments"), [("make_transport", ()), ("make_trusting_transport", ("ca.pem",))]
)
def test_what_is_not_said_is_asked_for(
    contract: type[Any], method: str, arguments: tuple[str, ...]
) -> None:
    with pytest.raises(NotImplementedError, match=f"{contract.__name__} does not say how"):
        getattr(contract(), method)(*arguments)


def test_a_limited_pool_is_asked_for() -> None:
    class Limited(LimitedPoolContract, TransportContract):
        pass

    with pytest.raises(NotImplementedError, match="Limited does not say how"):
        Limited().make_limited_transport()


@pytest.mark.parametrize("contract", [TransportContract, AsyncTransportContract])
def test_no_test_hides_another(contract: type[Any]) -> None:
    names = Counter(
        name for part in contract.__mro__ for name in vars(part) if name.startswith("test_")
    )
    assert len(names) > 50
    assert {name: count for name, count in names.items() if count > 1} == {}
