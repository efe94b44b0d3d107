"""The table of docs/errors.md is true over every transport, for calls and for streams."""

from __future__ import annotations

import asyncio
import gzip
import re
import socket
import ssl
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from attrs import frozen

from flux0 import Flux0, RetryConfig, TransportError, models
from flux0.domain.errors import Flux0Error
from flux0.testing.contract.answers import (
    Answer,
    Disconnect,
    Hold,
    Reset,
    Write,
    answer,
    cut,
    head,
    size,
)
from flux0.testing.contract.byte_server import ByteServer
from support.transports_under_test import TRANSPORTS, TransportUnderTest

TABLE = Path(__file__).parents[2] / "docs" / "errors.md"
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


ROWS = [Row(*match.groups()) for match in ROW.finditer(TABLE.read_text("utf-8"))]


@contextmanager
def somewhere(url: str) -> Generator[str, None, None]:
    yield url


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
def serving(*steps: Answer, tls: ssl.SSLContext | None = None) -> Generator[str, None, None]:
    with ByteServer(*steps, tls=tls) as server:
        yield server.url


@contextmanager
def untrusted() -> Generator[str, None, None]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = trustme.CA().issue_cert("127.0.0.1")
    certificate.configure_cert(context)  # pyright: ignore[reportUnknownMemberType] - of pyOpenSSL
    with serving(answer(), tls=context) as url:
        yield url


@contextmanager
def cutting() -> Generator[str, None, None]:
    """An address of a server that ends each connection before its TLS begins."""
    with ByteServer(unasked=(Disconnect(),)) as server:
        yield server.url.replace("http:", "https:")


def body(data: bytes, kind: str, **options: Any) -> Answer:
    return answer(data, headers=[("Content-Type", kind)], **options)


def cut_short(content: Callable[..., Answer], framing: str) -> Answer:
    whole = content(framing=framing)
    # Until close only what is missing tells; in the other framings, the end itself is missing.
    return cut(whole, size(whole) - (3 if framing != "until-close" else 2))


def reset_within(content: Callable[..., Answer]) -> Answer:
    return (*content(framing="chunked")[:-1], Reset())


def corrupt(content: Callable[..., Answer]) -> Answer:
    return tuple(
        Write(step.data.replace(b"\x1f\x8b\x08", b"\x1f\x8b\xff"))
        if isinstance(step, Write)
        else step
        for step in content(gzip=True)
    )


def bomb(kind: str) -> Answer:
    return answer(BOMB, headers=[("Content-Type", kind), ("Content-Encoding", "gzip")])


# What a server does, given what it would rightly answer and the type of that.
FAULTS: dict[str, Callable[[Callable[..., Answer], str], Any]] = {
    "the name is not found": lambda _content, _kind: somewhere("http://flux0.invalid"),
    "the connection is refused": lambda _content, _kind: refusing(),
    "connecting takes too long": lambda _content, _kind: full(),
    "the certificate is not trusted": lambda _content, _kind: untrusted(),
    "the TLS handshake is cut": lambda _content, _kind: cutting(),
    "the headers do not come": lambda _content, _kind: serving((Hold(),)),
    "the answer is not HTTP": lambda _content, _kind: serving(
        (Write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), Disconnect())
    ),
    "the header block is too large": lambda _content, _kind: serving(
        (head("200 OK", [(f"X-{n}", "x" * 1000) for n in range(1000)]), Disconnect())
    ),
    "the connection ends before the answer": lambda _content, _kind: serving((Disconnect(),)),
    "the body is cut short (chunked)": lambda c, _kind: serving(cut_short(c, "chunked")),
    "the body is cut short (content-length)": lambda c, _kind: serving(
        cut_short(c, "content-length")
    ),
    "the body is cut short (until close)": lambda c, _kind: serving(cut_short(c, "until-close")),
    "the connection is reset within the body": lambda c, _kind: serving(reset_within(c)),
    "the gzip is corrupt": lambda c, _kind: serving(corrupt(c)),
    "the gzip grows without end": lambda _content, kind: serving(bomb(kind)),
    "the body, or an event, is too large": lambda _content, kind: serving(
        body(b"data: " + bytes(2 * LIMIT), kind)
    ),
    "the JSON is broken": lambda _content, kind: serving(
        body(b'event: chunk\ndata: {"a"\n\n', kind)
    ),
    "the server falls silent within the body": lambda c, _kind: serving(
        (*c(framing="chunked")[:-1], Hold())
    ),
    "the answer is an HTML page": lambda _content, _kind: serving(
        body(b"<html>Log in</html>", "text/html")
    ),
    "the proxy answers 502": lambda _content, _kind: serving(
        body(b"<html>Bad gateway</html>", "text/html", status="502 Bad Gateway")
    ),
}

# How the errors of calls begin, over every transport: what libraries say of it differs.
WORDS: dict[str, str | tuple[str, ...]] = {
    "the name is not found": "the host's name cannot be looked up: ",
    "the connection is refused": "connection refused",
    "connecting takes too long": "no connection was made in time",
    "the certificate is not trusted": "the server's certificate is not trusted: ",
    "the TLS handshake is cut": "the connection ended while it was made",
    "the headers do not come": "nothing came for too long",
    "the answer is not HTTP": "the answer is not valid HTTP: ",
    "the header block is too large": "the answer is not valid HTTP: ",
    "the connection ends before the answer": "the connection ended before the answer",
    "the body is cut short (chunked)": "the connection ended within the body",
    "the body is cut short (content-length)": "the connection ended within the body",
    "the connection is reset within the body": (
        "the connection was reset within the body",
        "the connection ended within the body",  # Older versions of anyio tell no more.
    ),
    "the gzip is corrupt": "the body's compression is broken: ",
    "the server falls silent within the body": "nothing came for too long",
}

CHUNK = (
    b'event: chunk\ndata: {"correlation_id": "RID(1)::2", "event_id": "m", "seq": 0, "patches": '
    b'[{"op": "add", "path": "/-", "value": "Hi"}], "metadata": {}, "timestamp": 1.5}\n\n'
)


def agents(**options: Any) -> Answer:
    return body(b'{"data": [    ]}', "application/json", **options)


def turn(**options: Any) -> Answer:
    return body(CHUNK + CHUNK, "text/event-stream", **options)


def client(url: str, transport: TransportUnderTest, patience: int) -> Flux0:
    return Flux0(
        url,
        **transport.arguments(),
        retry_config=RetryConfig("none"),
        timeout_ms=patience,
        stream_idle_timeout_ms=patience,
        max_body_bytes=LIMIT,
        max_event_bytes=LIMIT,
    )


def call(url: str, transport: TransportUnderTest, patience: int) -> None:
    with client(url, transport, patience) as flux0:
        flux0.agents.list()


def stream(url: str, transport: TransportUnderTest, patience: int) -> None:
    with (
        client(url, transport, patience) as flux0,
        flux0.sessions.create_event(session_id="s", content="Hello") as events,
    ):
        for _ in events:
            pass


async def call_async(url: str, transport: TransportUnderTest, patience: int) -> None:
    async with client(url, transport, patience) as flux0:
        await flux0.agents.list_async()


async def stream_async(url: str, transport: TransportUnderTest, patience: int) -> None:
    async with (
        client(url, transport, patience) as flux0,
        await flux0.sessions.create_event_async(session_id="s", content="Hello") as events,
    ):
        async for _ in events:
            pass


def raised(
    transport: TransportUnderTest, url: str, *, streaming: bool, patience: int = PATIENT
) -> Flux0Error:
    try:
        if transport.synchronous:
            (stream if streaming else call)(url, transport, patience)
        else:
            asyncio.run((stream_async if streaming else call_async)(url, transport, patience))
    except Flux0Error as error:
        return error
    raise AssertionError("nothing was raised")


def patience(row: Row) -> int:
    return SOON if row.fault in WAITED_FOR else PATIENT


def test_the_table_and_the_faults_here_are_the_same() -> None:
    assert [row.fault for row in ROWS] == list(FAULTS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.fault)
@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_a_call_raises_what_the_table_says(row: Row, transport: TransportUnderTest) -> None:
    with FAULTS[row.fault](agents, "application/json") as url:
        error = raised(transport, url, streaming=False, patience=patience(row))
    assert type(error).__name__ == row.call
    assert (error.operation, error.method, error.url) == ("agents.list", "GET", f"{url}/api/agents")
    if isinstance(error, TransportError):
        assert "timeout_ms" in error.problem or error.problem.startswith(WORDS[row.fault])
        assert error.__cause__ is not None
        assert not isinstance(error.__cause__, Flux0Error)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.fault)
@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_a_stream_raises_what_the_table_says(row: Row, transport: TransportUnderTest) -> None:
    with FAULTS[row.fault](turn, "text/event-stream") as url:
        error = raised(transport, url, streaming=True, patience=patience(row))
    assert type(error).__name__ == row.stream
    told = f"{url}/api/sessions/s/events/stream"
    assert (error.operation, error.method, error.url) == ("sessions.create_event", "POST", told)
    assert "None" not in str(error)


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_a_stream_that_breaks_off_says_how_far_it_came(transport: TransportUnderTest) -> None:
    whole = turn(framing="chunked")
    with serving(cut(whole, size(whole) - 40)) as url:
        error = raised(transport, url, streaming=True)
    assert isinstance(error, models.StreamInterrupted)
    assert error.correlation_id == "RID(1)::2"
    assert error.event_count in (1, 2)
    assert error.__cause__ is not None
    assert not isinstance(error.__cause__, Flux0Error)
