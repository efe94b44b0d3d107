"""Each transport raises the errors that docs/errors.md lists, for calls and for streams."""

from __future__ import annotations

import gzip
import re
import socket
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from flux0 import Flux0, RetryConfig, TransportError, models
from flux0.domain.errors import Flux0Error
from flux0.flows import Middleware
from flux0.testing.contract.base import EXPIRY
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import (
    Disconnect,
    Reset,
    ServerSteps,
    WaitForRelease,
    Write,
    head,
    http_response,
    size,
    truncated,
)
from support.in_memory import CORRELATION_ID, chunk
from support.modes import in_mode
from support.secured import NO_TRUSTME, server_context
from support.sending import limiting, over
from support.transports import LIBRARIES, Way
from support.unreachable import unreachable_address

TABLE = Path(__file__).parents[3] / "docs" / "errors.md"
ROW = re.compile(r"^\| ([^|`]+) \| `(\w+)`(?:; in a stream, `(\w+)`)? \|$", re.MULTILINE)

# The timeouts that expire with these faults. All others are long.
PAUSE = "the server stops sending within the body"
LIMITS = {
    "the connect timeout expires": {"connect": EXPIRY},
    "no response head is received": {"read": EXPIRY},
    PAUSE: {"read": EXPIRY},
}
LIMIT = 100_000
BOMB = gzip.compress(b"data: " + bytes(20 * LIMIT))


@frozen
class Row:
    """A fault of the table. Faults that raise the same errors are in one row of the page."""

    fault: str
    call: str
    stream: str

    def __str__(self) -> str:
        return self.fault


ROWS = [
    Row(fault, call, stream or call)
    for faults, call, stream in ROW.findall(TABLE.read_text("utf-8"))
    for fault in faults.split("; ")
]


# --- the connection cannot be established


@contextmanager
def unknown_host() -> Generator[str, None, None]:
    yield "http://flux0.invalid"


@contextmanager
def refusing() -> Generator[str, None, None]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextmanager
def full_backlog() -> Generator[str, None, None]:
    with unreachable_address() as (host, port):
        yield f"http://{host}:{port}"


@contextmanager
def untrusted() -> Generator[str, None, None]:
    trustme: Any = pytest.importorskip("trustme", reason=NO_TRUSTME)
    with ByteServer(http_response(), tls=server_context(trustme.CA())) as server:
        yield server.url


@contextmanager
def closing() -> Generator[str, None, None]:
    """Yield the URL of a server that closes each connection before the TLS handshake."""
    with ByteServer(on_connect=(Disconnect(),)) as server:
        yield server.url.replace("http:", "https:")


@contextmanager
def without_tls() -> Generator[str, None, None]:
    """Yield an https URL of a server that replies to a TLS handshake with HTTP."""
    with ByteServer(on_connect=(Write(b"HTTP/1.1 400 Bad Request\r\n\r\n"),)) as server:
        yield server.url.replace("http:", "https:")


CONNECT_FAULTS: dict[str, Callable[[], AbstractContextManager[str]]] = {
    "the host name cannot be resolved": unknown_host,
    "the connection is refused": refusing,
    "the connect timeout expires": full_backlog,
    "the certificate is not trusted": untrusted,
    "the server replies without TLS to an https URL": without_tls,
    "the server closes the connection in the TLS handshake": closing,
}


# --- the response is invalid

# A function that returns a valid response. Its options are options of `http_response`.
Content = Callable[..., ServerSteps]


def truncated_end(content: Content, framing: str) -> ServerSteps:
    whole = content(framing=framing)
    # No bytes mark the end of a close-delimited body, so truncate its content.
    return truncated(whole, size(whole) - (3 if framing != "close-delimited" else 2))


def corrupt(content: Content) -> ServerSteps:
    return tuple(
        Write(step.data.replace(b"\x1f\x8b\x08", b"\x1f\x8b\xff"))
        if isinstance(step, Write)
        else step
        for step in content(gzip=True)
    )


MANY_FIELDS = [(f"X-{number}", "x" * 1000) for number in range(1000)]
HTML = [("Content-Type", "text/html")]

# For each fault, a function that returns the server's steps. Its arguments: a `Content`, and
# the response's content-type field.
RESPONSES: dict[str, Callable[[Content, tuple[str, str]], ServerSteps]] = {
    "no response head is received": lambda _content, _type: (WaitForRelease(),),
    "the response is not HTTP": lambda _content, _type: (
        Write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
        Disconnect(),
    ),
    "the response head is too large": lambda _content, _type: (
        head("200 OK", MANY_FIELDS),
        Disconnect(),
    ),
    "the connection is closed before the response": lambda _content, _type: (Disconnect(),),
    "the body is truncated (chunked)": lambda content, _: truncated_end(content, "chunked"),
    "the body is truncated (content-length)": lambda content, _: truncated_end(
        content, "content-length"
    ),
    "the body is truncated (close-delimited)": lambda content, _: truncated_end(
        content, "close-delimited"
    ),
    "the connection is reset within the body": lambda content, _: (
        *content(framing="chunked")[:-1],
        Reset(),
    ),
    "the gzip data is corrupt": lambda content, _: corrupt(content),
    "the decompressed body, or an event in it, is too large": lambda _, kind: http_response(
        BOMB, headers=[kind, ("Content-Encoding", "gzip")]
    ),
    "the body, or an event, is too large": lambda _, kind: http_response(
        b"data: " + bytes(2 * LIMIT), headers=[kind]
    ),
    "the JSON is invalid": lambda _, kind: http_response(
        b'event: chunk\ndata: {"a"\n\n', headers=[kind]
    ),
    PAUSE: lambda content, _: (
        *content(framing="chunked")[:-1],
        WaitForRelease(),
    ),
    "the response is an HTML page": lambda _content, _type: http_response(
        b"<html>Log in</html>", headers=HTML
    ),
    "a proxy returns 502": lambda _content, _type: http_response(
        b"<html>Bad gateway</html>", headers=HTML, status="502 Bad Gateway"
    ),
}

# The whole message of each transport error. The end `.+` is a message of the HTTP library, of the
# operating system, or of OpenSSL or zlib.
NO_DATA = r"no data received within 0\.05 s \(read timeout; set timeout_ms\)"
MESSAGES = {
    "the host name cannot be resolved": "the host name cannot be resolved: .+",
    "the connection is refused": "connection refused",
    "the connect timeout expires": r"could not connect within 0\.05 s \(connect timeout\)",
    "the certificate is not trusted": "the server's certificate is not trusted: .+",
    "the server replies without TLS to an https URL": (
        "TLS failed: the server or the proxy replied without TLS; use http:// in its URL"
    ),
    "the server closes the connection in the TLS handshake": (
        "the server closed the connection before it was established"
    ),
    "no response head is received": NO_DATA,
    "the response is not HTTP": "the response is not valid HTTP: .*SSH-2.*",
    "the response head is too large": "the response is not valid HTTP: .+",
    "the connection is closed before the response": "the connection was closed before the response",
    "the body is truncated (chunked)": "the connection was closed within the body",
    "the body is truncated (content-length)": "the connection was closed within the body",
    # Older versions of anyio report a reset connection as closed.
    "the connection is reset within the body": "the connection was (reset|closed) within the body",
    "the gzip data is corrupt": "the gzip data is invalid: .+",
    PAUSE: NO_DATA,
}


@contextmanager
def serving(fault: str, content: bytes, kind: str) -> Generator[str, None, None]:
    """Yield the URL of a server with this fault."""
    if fault in CONNECT_FAULTS:
        with CONNECT_FAULTS[fault]() as url:
            yield url
    else:
        header = ("Content-Type", kind)
        steps = RESPONSES[fault](partial(http_response, content, headers=[header]), header)
        with ByteServer(steps) as server:
            yield server.url


Use = Callable[[Flux0], Coroutine[Any, Any, None]]


async def call(flux0: Flux0) -> None:
    await flux0.agents.list_async()


async def turn(flux0: Flux0) -> None:
    async with await flux0.sessions.create_event_async(session_id="s", content="Hi") as stream:
        async for _ in stream:
            pass


async def error_of(way: Way, url: str, use: Use, *middleware: Middleware, idle: float = 60) -> Any:
    """Return the error that `use` raises."""
    flux0 = Flux0(
        url,
        transport=way.make_transport(),
        retry_config=RetryConfig("none"),
        stream_idle_timeout_ms=int(idle * 1000),
        max_body_bytes=LIMIT,
        max_event_bytes=LIMIT,
        middleware=middleware,
    )
    async with in_mode(way.mode, flux0) as either:
        with pytest.raises(Flux0Error) as caught:
            await use(either)
    return caught.value


def test_table_lists_all_faults_of_this_module() -> None:
    assert sorted(row.fault for row in ROWS) == sorted([*CONNECT_FAULTS, *RESPONSES])


@over(*LIBRARIES)
@pytest.mark.parametrize("row", ROWS, ids=str)
async def test_calls_raise_the_documented_errors(way: Way, row: Row) -> None:
    with serving(row.fault, b'{"data": [    ]}', "application/json") as url:
        error = await error_of(way, url, call, limiting(**LIMITS.get(row.fault, {})))
    assert type(error).__name__ == row.call
    assert (error.operation, error.method, error.url) == ("agents.list", "GET", f"{url}/api/agents")
    if isinstance(error, TransportError):
        assert re.fullmatch(MESSAGES[row.fault], error.problem)
        assert error.__cause__ is not None
        assert not isinstance(error.__cause__, Flux0Error)


@over(*(way for way in LIBRARIES if way.transport in ("aiohttp", "httpx", "urllib3")))
@pytest.mark.parametrize("row", ROWS, ids=str)
async def test_streams_raise_the_documented_errors(way: Way, row: Row) -> None:
    with serving(row.fault, chunk("a") * 2, "text/event-stream") as url:
        if row.fault == PAUSE:
            error = await error_of(way, url, turn, idle=EXPIRY)
        else:
            error = await error_of(way, url, turn, limiting(**LIMITS.get(row.fault, {})))
    assert type(error).__name__ == row.stream
    expected_url = f"{url}/api/sessions/s/events/stream"
    assert (error.operation, error.method, error.url) == (
        "sessions.create_event",
        "POST",
        expected_url,
    )
    assert "None" not in str(error)
    if isinstance(error, TransportError):
        assert re.fullmatch(MESSAGES[row.fault], error.problem)
    elif isinstance(error, models.StreamInterrupted) and row.fault in MESSAGES:
        assert re.search(MESSAGES[row.fault], error.problem)
    if row.fault == "the body is truncated (chunked)":
        assert isinstance(error, models.StreamInterrupted)
        assert (error.correlation_id, error.event_count) == (CORRELATION_ID, 2)
        assert error.__cause__ is not None
        assert not isinstance(error.__cause__, Flux0Error)
