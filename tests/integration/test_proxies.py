"""What nginx and haproxy do to streams, by their settings; docs/proxies.md tells the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from flux0 import EventStream, Flux0, RetryConfig
from flux0.models import ReadTimeout, StreamIdleTimeout, StreamInterrupted
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import Disconnect, Framing, WaitForRelease, http_response
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
HELD_BACK = [Setup("nginx", "", "close-delimited"), Setup("nginx", f"{VERSION} {GZIP}")]
IMPATIENT = [
    Setup("nginx", f"{PROMPT} proxy_read_timeout 1s;"),
    Setup("haproxy", "timeout server 1s"),
]
setups = pytest.mark.parametrize("setup", GOOD, ids=str)


Begin = Callable[..., tuple[ByteServer, EventStream]]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Begins a turn through a proxy: two events and their end, or one and what is given."""
    with ExitStack() as stack:

        def begin(setup: Setup, *end: Disconnect, idle: int = 20_000) -> Any:
            steps = http_response(
                EVENT, WaitForRelease(), EVENT, framing=setup.framing, headers=TYPE
            )
            server = ByteServer(
                (*steps[:3], *end) if end else steps, http_response(b'{"data": []}')
            )
            port = stack.enter_context(server).port
            url = stack.enter_context(reverse_proxy(setup.program, setup.settings, port, tmp_path))
            once = RetryConfig("none")
            flux0 = Flux0(url, timeout_ms=idle, stream_idle_timeout_ms=idle, retry_config=once)
            sessions = stack.enter_context(flux0).sessions
            return server, sessions.create_event(session_id="s", content="Hello")

        yield begin


@setups
def test_events_come_at_once_and_a_proxy_proves_no_end(setup: Setup, begin: Begin) -> None:
    server, events = begin(setup)
    assert next(events).event == "chunk"
    server.release()
    assert len(list(events)) == 1
    assert events.finished is (setup.program != "nginx")  # Which puts its name in the head.


@setups
def test_a_server_that_dies_is_noticed(setup: Setup, begin: Begin) -> None:
    server, events = begin(setup, Disconnect())
    next(events)
    server.release()
    with pytest.raises(StreamInterrupted):
        next(events)
    assert len(server.requests) == 1


@setups
def test_leaving_early_reaches_the_server(setup: Setup, begin: Begin) -> None:
    server, events = begin(setup)
    with events:
        next(events)
    server.wait_until_closed()


@pytest.mark.parametrize("setup", HELD_BACK, ids=str)
def test_settings_that_hold_events_back(setup: Setup, begin: Begin) -> None:
    with pytest.raises((ReadTimeout, StreamIdleTimeout)):
        next(begin(setup, idle=1_000)[1])


@pytest.mark.parametrize("setup", IMPATIENT, ids=str)
def test_a_proxy_that_is_less_patient_than_the_client(setup: Setup, begin: Begin) -> None:
    _, events = begin(setup)
    next(events)
    with pytest.raises(StreamInterrupted):
        next(events)


# With HTTP/1.0, nginx makes chunks of an answer without, and its end of a server that died.
@pytest.mark.parametrize(
    ("program", "settings"), [("haproxy", ""), ("nginx", "proxy_buffering off;")]
)
def test_an_end_that_the_server_did_not_frame_is_not_believed(
    program: str, settings: str, begin: Begin
) -> None:
    server, events = begin(Setup(program, settings, "close-delimited"), Disconnect())
    next(events)
    server.release()
    assert list(events) == []
    assert not events.finished
    with pytest.raises(StreamInterrupted, match="has not stored what it said"):
        events.confirm()
