"""The table of docs/errors.md is true over every transport, for calls and for streams."""

from __future__ import annotations

import gzip
import re
import socket
import ssl
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from attrs import frozen

from flux0 import Flux0, RetryConfig, TransportError, models
from flux0.domain.errors import Flux0Error
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
from support.sending import over
from support.transports import ONCE, Way

pytestmark = pytest.mark.slow
TABLE = Path(__file__).parents[3] / "docs" / "errors.md"
ROW = re.compile(r"^\| ([^|`]+) \| `(\w+)` \| `(\w+)` \|$", re.MULTILINE)

# How long a client waits, in milliseconds: for what never comes, and for all else, which does.
SOON = 300
PATIENT = 60_000
WAITED_FOR = {
    "connecting takes too long",
    "the headers do not come",
    "the server falls silent within the body",
}
LIMIT = 100_000
BOMB = gzip.compress(b"data: " + bytes(20 * LIMIT))


@frozen
class Row:
    """One row of the table."""

    fault: str
    call: str
    stream: str

    def __str__(self) -> str:
        return self.fault


ROWS = [Row(*match.groups()) for match in ROW.finditer(TABLE.read_text("utf-8"))]


# --- no connection


@contextmanager
def nowhere() -> Generator[str, None, None]:
    yield "http://flux0.invalid"


@contextmanager
def refusing() -> Generator[str, None, None]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextmanager
def full() -> Generator[str, None, None]:
    """A port whose queue of connections is full."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = sockets.enter_context(socket.socket())
            waiting.settimeout(0)
            waiting.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def untrusted() -> Generator[str, None, None]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = trustme.CA().issue_cert("127.0.0.1")
    certificate.configure_cert(context)  # pyright: ignore[reportUnknownMemberType] - of pyOpenSSL
    with ByteServer(http_response(), tls=context) as server:
        yield server.url


@contextmanager
def cutting() -> Generator[str, None, None]:
    """An address of a server that ends each connection before its TLS begins."""
    with ByteServer(on_connect=(Disconnect(),)) as server:
        yield server.url.replace("http:", "https:")


UNCONNECTED: dict[str, Callable[[], AbstractContextManager[str]]] = {
    "the name is not found": nowhere,
    "the connection is refused": refusing,
    "connecting takes too long": full,
    "the certificate is not trusted": untrusted,
    "the TLS handshake is cut": cutting,
}


# --- a broken answer

# Makes what a server would rightly answer, with these options of `answer`.
Content = Callable[..., ServerSteps]


def cut_short(content: Content, framing: str) -> ServerSteps:
    whole = content(framing=framing)
    # Until close only what is missing tells; in the other framings, the end itself is missing.
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

# What the server answers, given what it would rightly answer and the type of that.
ANSWERS: dict[str, Callable[[Content, tuple[str, str]], ServerSteps]] = {
    "the headers do not come": lambda _content, _type: (WaitForRelease(),),
    "the response is not HTTP": lambda _content, _type: (
        Write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
        Disconnect(),
    ),
    "the header block is too large": lambda _content, _type: (
        head("200 OK", MANY_FIELDS),
        Disconnect(),
    ),
    "the connection ends before the response": lambda _content, _type: (Disconnect(),),
    "the body is cut short (chunked)": lambda content, _: cut_short(content, "chunked"),
    "the body is cut short (content-length)": lambda content, _: cut_short(
        content, "content-length"
    ),
    "the body is cut short (until close)": lambda content, _: cut_short(content, "close-delimited"),
    "the connection is reset within the body": lambda content, _: (
        *content(framing="chunked")[:-1],
        Reset(),
    ),
    "the gzip is corrupt": lambda content, _: corrupt(content),
    "the gzip grows without end": lambda _, kind: http_response(
        BOMB, headers=[kind, ("Content-Encoding", "gzip")]
    ),
    "the body, or an event, is too large": lambda _, kind: http_response(
        b"data: " + bytes(2 * LIMIT), headers=[kind]
    ),
    "the JSON is broken": lambda _, kind: http_response(
        b'event: chunk\ndata: {"a"\n\n', headers=[kind]
    ),
    "the server falls silent within the body": lambda content, _: (
        *content(framing="chunked")[:-1],
        WaitForRelease(),
    ),
    "the answer is an HTML page": lambda _content, _type: http_response(
        b"<html>Log in</html>", headers=HTML
    ),
    "the proxy answers 502": lambda _content, _type: http_response(
        b"<html>Bad gateway</html>", headers=HTML, status="502 Bad Gateway"
    ),
}

# How the errors of calls begin, over every transport: what libraries say of it differs.
WORDS: dict[str, str | tuple[str, ...]] = {
    "the name is not found": "the host name cannot be resolved: ",
    "the connection is refused": "connection refused",
    "connecting takes too long": "could not connect within ",
    "the certificate is not trusted": "the server's certificate is not trusted: ",
    "the TLS handshake is cut": "the server closed the connection before it was established",
    "the headers do not come": "no data received within ",
    "the response is not HTTP": "the response is not valid HTTP: ",
    "the header block is too large": "the response is not valid HTTP: ",
    "the connection ends before the response": "the connection was closed before the response",
    "the body is cut short (chunked)": "the connection was closed within the body",
    "the body is cut short (content-length)": "the connection was closed within the body",
    "the connection is reset within the body": (
        "the connection was reset within the body",
        "the connection was closed within the body",  # Older versions of anyio tell no more.
    ),
    "the gzip is corrupt": "the body's compression is broken: ",
    "the server falls silent within the body": "no event for ",
}


@contextmanager
def serving(fault: str, content: bytes, kind: str) -> Generator[str, None, None]:
    """Yield the URL of a server with this fault."""
    if fault in UNCONNECTED:
        with UNCONNECTED[fault]() as url:
            yield url
    else:
        header = ("Content-Type", kind)
        steps = ANSWERS[fault](partial(http_response, content, headers=[header]), header)
        with ByteServer(steps) as server:
            yield server.url


Use = Callable[[Flux0], Coroutine[Any, Any, None]]


async def call(flux0: Flux0) -> None:
    await flux0.agents.list_async()


async def turn(flux0: Flux0) -> None:
    async with await flux0.sessions.create_event_async(session_id="s", content="Hi") as stream:
        async for _ in stream:
            pass


async def raised(way: Way, row: Row, url: str, use: Use) -> Any:
    """Return the error of a call, or of a turn."""
    patience = SOON if row.fault in WAITED_FOR else PATIENT
    flux0 = Flux0(
        url,
        transport=way.make_transport(),
        retry_config=RetryConfig("none"),
        timeout_ms=patience,
        stream_idle_timeout_ms=patience,
        max_body_bytes=LIMIT,
        max_event_bytes=LIMIT,
    )
    async with in_mode(way.mode, flux0) as either:
        with pytest.raises(Flux0Error) as caught:
            await use(either)
    return caught.value


def test_the_table_and_the_faults_here_are_the_same() -> None:
    assert [row.fault for row in ROWS] == [*UNCONNECTED, *ANSWERS]


@over(*ONCE)
@pytest.mark.parametrize("row", ROWS, ids=str)
async def test_a_call_raises_what_the_table_says(way: Way, row: Row) -> None:
    with serving(row.fault, b'{"data": [    ]}', "application/json") as url:
        error = await raised(way, row, url, call)
    assert type(error).__name__ == row.call
    assert (error.operation, error.method, error.url) == ("agents.list", "GET", f"{url}/api/agents")
    if isinstance(error, TransportError):
        assert "timeout_ms" in error.problem or error.problem.startswith(WORDS[row.fault])
        assert error.__cause__ is not None
        assert not isinstance(error.__cause__, Flux0Error)


@over(*ONCE)
@pytest.mark.parametrize("row", ROWS, ids=str)
async def test_a_stream_raises_what_the_table_says(way: Way, row: Row) -> None:
    with serving(row.fault, chunk("a") * 2, "text/event-stream") as url:
        error = await raised(way, row, url, turn)
    assert type(error).__name__ == row.stream
    told = f"{url}/api/sessions/s/events/stream"
    assert (error.operation, error.method, error.url) == ("sessions.create_event", "POST", told)
    assert "None" not in str(error)
    if row.fault == "the body is cut short (chunked)":
        assert isinstance(error, models.StreamInterrupted)
        assert (error.correlation_id, error.event_count) == (CORRELATION_ID, 2)
        assert error.__cause__ is not None
        assert not isinstance(error.__cause__, Flux0Error)
