"""The exception of a signal handler reaches the caller unchanged, and causes no retry."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest

from flux0 import Flux0
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import ServerSteps, WaitForRelease, Write, http_response
from support.in_memory import SSE, chunk
from support.over_httpx import FAMILY_SYNC, FAST, OverHttpx
from support.secured import Secured
from support.unreachable import unreachable_address

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no setitimer")

TURN = http_response(chunk("a"), WaitForRelease(), headers=list(SSE.items()), framing="chunked")
JSON = http_response(b'{"data"', WaitForRelease(), framing="chunked")
# The server pauses in each phase. `on_connect` is before the request, and before a TLS handshake.
PAUSES: dict[str, tuple[ServerSteps, ServerSteps]] = {
    "sending": ((WaitForRelease(),), ()),
    "waiting for the head": ((), (WaitForRelease(),)),
    "reading the head": ((), (Write(b"HTTP/1.1 200 OK\r\n"), WaitForRelease())),
    "reading a body": ((), JSON),
    "reading a turn": ((), TURN),
}


class SoftTimeLimitExceeded(Exception):
    """An exception like the one of Celery: a subclass of `Exception`."""


@contextmanager
def time_limit(
    raised: list[Exception], is_due: Callable[[], object]
) -> Generator[None, None, None]:
    """Raise `SoftTimeLimitExceeded` in the block, once, after `is_due` has returned."""

    def limit(*_: object) -> None:
        raised.append(SoftTimeLimitExceeded())
        raise raised[-1]

    def start() -> None:
        is_due()
        signal.setitimer(signal.ITIMER_REAL, 0.15)

    before = signal.signal(signal.SIGALRM, limit)
    starting = threading.Thread(target=start)
    starting.start()
    try:
        yield
    finally:
        starting.join()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def call(client: Flux0, phase: str) -> None:
    if phase in ("sending", "reading a turn"):
        content = "x" * 30_000_000 if phase == "sending" else "Hello"
        with client.sessions.create_event(session_id="0123456789", content=content) as stream:
            list(stream)
    else:
        client.agents.list()


def check(url: str, transport: Any, phase: str, is_due: Callable[[], object] = int) -> None:
    raised: list[Exception] = []
    with Flux0(url, transport=transport, retry_config=FAST, timeout_ms=20_000) as client:
        with time_limit(raised, is_due), pytest.raises(SoftTimeLimitExceeded) as caught:
            call(client, phase)
        assert [caught.value] == raised


@pytest.mark.parametrize("own_client", [False, True], ids=["built-in", "own"])
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("phase", PAUSES)
@pytest.mark.parametrize("way", FAMILY_SYNC, ids=str)
def test_exception_of_a_signal_handler_is_raised_unchanged(
    way: OverHttpx, phase: str, tls: bool, own_client: bool, secured: Secured
) -> None:
    on_connect, response = PAUSES[phase]
    server = ByteServer(response, on_connect=on_connect, tls=secured.server if tls else None)
    with ExitStack() as stack:
        stack.enter_context(server)
        client = stack.enter_context(way.client(verify=secured.client)) if own_client else None
        is_sent = phase != "sending"
        is_due = partial(server.wait_for_requests, int(is_sent))
        check(server.url, way.transport_over(client), phase, is_due)
        assert len(server.requests) == is_sent
        server.release()


@pytest.mark.parametrize("own_client", [False, True], ids=["built-in", "own"])
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("way", FAMILY_SYNC, ids=str)
def test_exception_of_a_signal_handler_is_raised_unchanged_while_connecting(
    way: OverHttpx, tls: bool, own_client: bool, secured: Secured
) -> None:
    with ExitStack() as stack:
        client = stack.enter_context(way.client(verify=secured.client)) if own_client else None
        if tls:  # The server sends nothing during the handshake.
            server = stack.enter_context(ByteServer((), on_connect=(WaitForRelease(),)))
            url = server.url.replace("http:", "https:")
        else:
            host, port = stack.enter_context(unreachable_address())
            url = f"http://{host}:{port}"
        check(url, way.transport_over(client), "connecting")
