"""What nginx and haproxy do to streams, by their settings; docs/proxies.md tells the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from attrs import frozen

from flux0 import EventStream, Flux0, RetryConfig
from flux0.models import ReadTimeout, StreamIdleTimeout, StreamInterrupted
from flux0.testing.contract.answers import Answer, Disconnect, Framing, Hold, answer
from flux0.testing.contract.byte_server import ByteServer
from support.reverse_proxies import reverse_proxy

EVENT = (
    b'event: chunk\ndata: {"correlation_id": "RID(1)::2", "event_id": "m", "seq": 0, "patches": '
    b'[{"op": "add", "path": "/-", "value": "Hi"}], "metadata": {}, "timestamp": 1.5}\n\n'
)
TYPE = [("Content-Type", "text/event-stream; charset=utf-8")]
VERSION = 'proxy_http_version 1.1; proxy_set_header Connection "";'
PROMPT = f"{VERSION} proxy_buffering off;"
GZIP = "gzip on; gzip_types text/event-stream; gzip_min_length 1;"
ABORT = "option abortonclose"
COMPRESSION = "compression algo gzip\n    compression type text/event-stream"


@frozen
class Setup:
    """A program, its settings, and how a flux0 server frames its answer to what asks so."""

    program: str
    settings: str
    framing: Framing = "chunked"

    def __str__(self) -> str:
        return f"{self.program}-{self.settings or 'default'}-{self.framing}"


GOOD = [
    Setup("nginx", VERSION),
    Setup("nginx", PROMPT),
    Setup("nginx", f"{PROMPT} {GZIP}"),
    Setup("haproxy", ABORT),
    Setup("haproxy", f"{ABORT}\n    {COMPRESSION}"),
]
# nginx speaks HTTP/1.0 to the server unless told otherwise, which is answered without chunks.
HELD_BACK = [Setup("nginx", "", "until-close"), Setup("nginx", f"{VERSION} {GZIP}")]
IMPATIENT = [
    Setup("nginx", f"{PROMPT} proxy_read_timeout 1s;"),
    Setup("haproxy", "timeout server 1s"),
]
setups = pytest.mark.parametrize("setup", GOOD, ids=str)


def turn(setup: Setup, *end: Disconnect) -> Answer:
    """Return an answer of two events, or of one and an early end."""
    whole = answer(EVENT, Hold(), EVENT, framing=setup.framing, headers=TYPE)
    return (*whole[:3], *end) if end else whole


Proxied = Callable[[Setup, ByteServer], AbstractContextManager[str]]


@pytest.fixture
def connect(tmp_path: Path) -> Proxied:
    return lambda setup, server: reverse_proxy(setup.program, setup.settings, server.port, tmp_path)


def client(url: str, *, idle: int = 20_000) -> Flux0:
    return Flux0(
        url,
        timeout_ms=idle,
        stream_idle_timeout_ms=idle,
        retry_config=RetryConfig("none"),
    )


def send(flux0: Flux0) -> EventStream:
    return flux0.sessions.create_event(session_id="s", content="Hello")


@setups
def test_events_come_at_once_and_a_proxy_proves_no_end(setup: Setup, connect: Proxied) -> None:
    with ByteServer(turn(setup)) as server, connect(setup, server) as url, client(url) as flux0:
        events = send(flux0)
        assert next(events).event == "chunk"
        server.release()
        assert len(list(events)) == 1
        assert events.finished is (setup.program != "nginx")  # Which puts its name in the head.


@setups
def test_a_server_that_dies_is_noticed(setup: Setup, connect: Proxied) -> None:
    steps = turn(setup, Disconnect())
    with ByteServer(steps) as server, connect(setup, server) as url, client(url) as flux0:
        events = send(flux0)
        next(events)
        server.release()
        with pytest.raises(StreamInterrupted):
            next(events)
        assert len(server.requests) == 1


@setups
def test_leaving_early_reaches_the_server(setup: Setup, connect: Proxied) -> None:
    with ByteServer(turn(setup)) as server, connect(setup, server) as url, client(url) as flux0:
        with send(flux0) as events:
            next(events)
        server.wait_until_gone()


@pytest.mark.parametrize("setup", HELD_BACK, ids=str)
def test_settings_that_hold_events_back(setup: Setup, connect: Proxied) -> None:
    with (
        ByteServer(turn(setup)) as server,
        connect(setup, server) as url,
        client(url, idle=1_000) as flux0,
        pytest.raises((ReadTimeout, StreamIdleTimeout)),
    ):
        next(send(flux0))


@pytest.mark.parametrize("setup", IMPATIENT, ids=str)
def test_a_proxy_that_is_less_patient_than_the_client(setup: Setup, connect: Proxied) -> None:
    with ByteServer(turn(setup)) as server, connect(setup, server) as url, client(url) as flux0:
        events = send(flux0)
        next(events)
        with pytest.raises(StreamInterrupted):
            next(events)


def test_haproxy_leaves_an_end_unproven_that_the_server_did_not_frame(connect: Proxied) -> None:
    setup = Setup("haproxy", "", "until-close")
    steps = turn(setup, Disconnect())
    with ByteServer(steps) as server, connect(setup, server) as url, client(url) as flux0:
        events = send(flux0)
        next(events)
        server.release()
        assert list(events) == []
        assert not events.finished


def test_nginx_invents_an_end_that_is_not_believed(connect: Proxied) -> None:
    """With HTTP/1.0 it makes chunks of an answer without, and its end of a server that died."""
    setup = Setup("nginx", "proxy_buffering off;", "until-close")
    steps = turn(setup, Disconnect())
    nothing = answer(b'{"data": []}')
    with (
        ByteServer(steps, nothing) as server,
        connect(setup, server) as url,
        client(url) as flux0,
    ):
        events = send(flux0)
        next(events)
        server.release()
        assert list(events) == []
        assert not events.finished
        with pytest.raises(StreamInterrupted, match="has not stored what it said"):
            events.confirm()
