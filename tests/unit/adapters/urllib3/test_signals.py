"""Exceptions of signal handlers in calls over urllib3 and requests: Ctrl-C, `sys.exit`, and others.

They are raised unchanged, and the next calls of the client work.
"""

from __future__ import annotations

import gc
import http.client
import ssl
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from types import CodeType, FrameType
from typing import Any
from weakref import ref

import pytest
import socks  # type: ignore[import-untyped]
import urllib3
from attrs import evolve

from flux0 import RequestsTransport, Urllib3Transport
from flux0.adapters.shared.connecting import Connector
from flux0.adapters.urllib3.connection import Urllib3Exchange
from flux0.adapters.urllib3.http_response import TrackedResponse
from flux0.domain.errors import TransportError
from flux0.ports import Transport
from flux0.testing.contract.byte_server import DEFAULT_TIMEOUT, ByteServer
from flux0.testing.contract.harness import LONG_TIMEOUT, get
from flux0.testing.contract.responses import (
    Receive,
    Reset,
    ServerSteps,
    WaitForRelease,
    Write,
    head,
)
from support.calls import before, press_ctrl_c
from support.garbage_collection import no_garbage_collection
from support.sending import HALF, OK, Pieces, fetch_sync

Make = Callable[[], Transport]
over_both = pytest.mark.parametrize("make", [Urllib3Transport, RequestsTransport])


class SoftTimeLimitExceeded(Exception):
    """An exception of a user's signal handler, as in Celery."""


# The functions in which a signal arrives, and the URL scheme of the request.
PHASES: dict[str, tuple[CodeType, str]] = {
    "resolving": (Connector.connect.__code__, "http"),
    "connecting": (Connector._connect.__code__, "http"),  # pyright: ignore[reportPrivateUsage] - only its code
    "TLS": (ssl.SSLSocket.do_handshake.__code__, "https"),
    "SOCKS": (socks.socksocket.connect.__code__, "socks5"),
    "sending": (http.client.HTTPConnection.send.__code__, "http"),
    "head": (TrackedResponse.begin.__code__, "http"),
    "body": (TrackedResponse._read.__code__, "http"),  # pyright: ignore[reportPrivateUsage] - only its code
}


# Python 3.10 does not close the socket of an interrupted TLS handshake before it is freed.
@pytest.mark.usefixtures("little_garbage")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@over_both
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, SoftTimeLimitExceeded])
@pytest.mark.parametrize("phase", PHASES)
def test_exception_of_a_signal_handler_is_raised_unchanged(
    make: Make, kind: type[BaseException], phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised, (code, scheme) = kind(), PHASES[phase]

    def handle_signal() -> None:
        raise raised

    with ByteServer(OK) as server:
        url = server.url
        if scheme == "https":
            url = url.replace("http:", "https:")
        elif scheme == "socks5":
            monkeypatch.setenv("ALL_PROXY", url.replace("http:", "socks5:"))
            url = "http://flux0.test"
        transport = make()
        with before((code,), handle_signal), pytest.raises(kind) as caught:
            fetch_sync(transport, get(url))
        assert caught.value is raised
        assert raised.__cause__ is None
        monkeypatch.delenv("ALL_PROXY", raising=False)
        assert fetch_sync(transport, get(server.url)) == b"ok"
        transport.close()
        server.wait_until_closed()
        # Free the socket in this test, which ignores the warning.
        raised.__traceback__ = None
        del caught
        gc.collect()


def interrupt_after_acquire(number: int, act: Callable[[], object]) -> bool:
    """Raise `KeyboardInterrupt` in `act` after the nth call of the method `acquire` of a lock.

    Return whether there was an nth call.
    """
    left = number

    def profile(_: FrameType, event: str, function: Any) -> None:
        nonlocal left
        if event == "c_return" and function.__name__ == "acquire":
            left -= 1
            if left == 0:
                press_ctrl_c()

    sys.setprofile(profile)
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


@over_both
def test_ctrl_c_after_a_lock_was_acquired_does_not_block_other_threads(make: Make) -> None:
    with ByteServer(OK) as server, ThreadPoolExecutor(1) as threads:
        transport = make()
        fetch = partial(fetch_sync, transport, get(server.url))
        assert fetch() == b"ok"
        for number in count(1):
            if not interrupt_after_acquire(number, fetch):
                break
            assert threads.submit(fetch).result(DEFAULT_TIMEOUT) == b"ok"


@pytest.mark.usefixtures("little_garbage")
@over_both
def test_freed_response_calls_no_function_of_python(make: Make) -> None:
    """Python ignores an exception that a signal handler raises in a finalizer."""
    transport = make()
    with ByteServer(OK) as server:
        response: Any = transport.send(get(server.url))
        assert list(Pieces(response.body)) == [b"ok"]
        calls: list[CodeType] = []

        def profile(frame: FrameType, event: str, _: object) -> None:
            if event == "call":
                calls.append(frame.f_code)

        sys.setprofile(profile)
        response = None
        sys.setprofile(None)
        assert response is None
        assert calls == []


def test_interrupted_exchange_does_not_affect_the_requests_of_the_user() -> None:
    """A signal arrives before `Urllib3Exchange.__exit__` has reset the current exchange."""
    manager = urllib3.PoolManager()
    transport = Urllib3Transport(manager)
    with ByteServer(OK) as server:
        request, end = get(server.url), Urllib3Exchange.__exit__.__code__
        with before((end,), press_ctrl_c), pytest.raises(KeyboardInterrupt):
            transport.send(request)
        request.interrupt.fire()
        assert manager.request("GET", server.url).data == b"ok"


FAILURES: dict[str, ServerSteps | None] = {
    "refused": None,
    "reset": (Reset(),),
    "silent": (Receive(), WaitForRelease()),
    "invalid": (Receive(), Write(b"no HTTP\r\n\r\n")),
    "reset in the body": (head("200 OK", [("Content-Length", "9")]), Reset()),
    "silent in the body": HALF,
}


@over_both
@pytest.mark.parametrize("steps", FAILURES.values(), ids=FAILURES)
def test_failed_call_leaves_no_reference_cycle(make: Make, steps: ServerSteps | None) -> None:
    transport = make()
    timeout = evolve(LONG_TIMEOUT, read=0.01)
    with ByteServer(steps or OK) as server:
        url = "http://127.0.0.1:1" if steps is None else server.url

        def fail() -> ref[Any]:
            request = get(url, timeout=timeout)
            with pytest.raises(TransportError):
                list(Pieces(transport.send(request).body, timeout=0.01))
            return ref(request)

        fail()
        with no_garbage_collection():
            # The traceback of the error refers to frames that refer to the request.
            assert fail()() is None
