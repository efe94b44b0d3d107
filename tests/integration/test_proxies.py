"""The effect of settings of nginx and haproxy on streams, as documented in docs/proxies.md."""

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
    b'[{"op": "add", "path": "/-", "value": "Hi"}], '
    b'"metadata": {"agent_id": "a", "agent_name": "D"}, "timestamp": 1.5}\n\n'
)
HEADERS = [("Content-Type", "text/event-stream; charset=utf-8"), ("Server", "uvicorn")]
VERSION = 'proxy_http_version 1.1; proxy_set_header Connection "";'
PROMPT = f"{VERSION} proxy_buffering off;"
NAMED = "proxy_pass_header Server;"
GZIP = "gzip on; gzip_types text/event-stream; gzip_min_length 1;"
ABORT = "option abortonclose"
COMPRESSION = "compression algo gzip\n    compression type text/event-stream"


@frozen
class Setup:
    """A proxy, its settings, and the framing of the server's response to its requests."""

    program: str
    settings: str
    framing: Framing = "chunked"

    def __str__(self) -> str:
        return f"{self.program}-{self.settings or 'default'}-{self.framing}"


GOOD = [
    Setup("nginx", VERSION),
    Setup("nginx", PROMPT),
    Setup("nginx", f"{PROMPT} {NAMED}"),
    Setup("nginx", f"{PROMPT} {GZIP}"),
    Setup("haproxy", ABORT),
    Setup("haproxy", f"{ABORT}\n    {COMPRESSION}"),
]
# By default, nginx sends HTTP/1.0 to the server, whose response then is close-delimited.
BUFFERING = [Setup("nginx", "", "close-delimited"), Setup("nginx", f"{VERSION} {GZIP}")]
SHORT_TIMEOUT = [
    Setup("nginx", f"{PROMPT} proxy_read_timeout 1s;"),
    Setup("haproxy", "timeout server 1s"),
]
setups = pytest.mark.parametrize("setup", GOOD, ids=str)


StartTurn = Callable[..., tuple[ByteServer, EventStream]]


@pytest.fixture
def start_turn(tmp_path: Path) -> Iterator[StartTurn]:
    """Starts a turn through a proxy: two events and the end, or one event and the steps `end`."""
    with ExitStack() as stack:

        def start(setup: Setup, *end: Disconnect, idle: int = 20_000) -> Any:
            steps = http_response(
                EVENT, WaitForRelease(), EVENT, framing=setup.framing, headers=HEADERS
            )
            server = ByteServer(
                (*steps[:3], *end) if end else steps, http_response(b'{"data": []}')
            )
            port = stack.enter_context(server).port
            url = stack.enter_context(reverse_proxy(setup.program, setup.settings, port, tmp_path))
            no_retries = RetryConfig("none")
            flux0 = Flux0(
                url, timeout_ms=idle, stream_idle_timeout_ms=idle, retry_config=no_retries
            )
            sessions = stack.enter_context(flux0).sessions
            return server, sessions.create_event(session_id="s", content="Hello")

        yield start


@setups
def test_events_arrive_promptly_and_the_end_is_confirmed_unless_nginx_is_named(
    setup: Setup, start_turn: StartTurn
) -> None:
    server, events = start_turn(setup)
    assert next(events).event == "chunk"
    server.release()
    assert len(list(events)) == 1
    # Without the setting, nginx puts its own name into the response head.
    assert events.finished is (setup.program == "haproxy" or NAMED in setup.settings)


@setups
def test_disconnect_of_the_server_interrupts_the_stream(
    setup: Setup, start_turn: StartTurn
) -> None:
    server, events = start_turn(setup, Disconnect())
    next(events)
    server.release()
    with pytest.raises(StreamInterrupted):
        next(events)
    assert len(server.requests) == 1


@setups
def test_closing_early_closes_the_connection_to_the_server(
    setup: Setup, start_turn: StartTurn
) -> None:
    server, events = start_turn(setup)
    with events:
        next(events)
    server.wait_until_closed()


@pytest.mark.parametrize("setup", BUFFERING, ids=str)
def test_settings_that_buffer_events_cause_timeouts(setup: Setup, start_turn: StartTurn) -> None:
    with pytest.raises((ReadTimeout, StreamIdleTimeout)):
        next(start_turn(setup, idle=1_000)[1])


@pytest.mark.parametrize("setup", SHORT_TIMEOUT, ids=str)
def test_shorter_timeout_of_the_proxy_interrupts_the_stream(
    setup: Setup, start_turn: StartTurn
) -> None:
    _, events = start_turn(setup)
    next(events)
    with pytest.raises(StreamInterrupted):
        next(events)


# With HTTP/1.0, nginx converts a close-delimited response to chunked. It sends the last chunk even
# if the server disconnected early.
@pytest.mark.parametrize(
    ("program", "settings"), [("haproxy", ""), ("nginx", "proxy_buffering off;")]
)
def test_end_of_a_close_delimited_response_is_unconfirmed(
    program: str, settings: str, start_turn: StartTurn
) -> None:
    server, events = start_turn(Setup(program, settings, "close-delimited"), Disconnect())
    next(events)
    server.release()
    assert list(events) == []
    assert events.ending == "unconfirmed"
    with pytest.raises(StreamInterrupted, match="has not stored all messages of the turn"):
        events.confirm()
