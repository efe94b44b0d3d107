"""Malformed response heads, over each transport: the error is the same, and nothing is sent twice.

Some malformed heads are accepted by some HTTP libraries. None of them has an ambiguous end.
"""

from __future__ import annotations

import pytest

from flux0 import BackoffStrategy, Flux0, RetryConfig
from flux0.domain.errors import ProtocolError
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import Disconnect, Write
from support.modes import in_mode
from support.sending import over
from support.transports import LIBRARIES, Way

EAGER = RetryConfig("backoff", BackoffStrategy(1, 1, 1, 60_000), max_attempts=3)
BODY = b'{"data": []}'
LENGTH = b"Content-Length: 12\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
IN_CHUNKS = b"c\r\n" + BODY + b"\r\n0\r\n\r\n"


def response(*lines: bytes, body: bytes = BODY) -> bytes:
    start = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    return start + b"".join(lines) + b"\r\n" + body


def with_length(value: bytes) -> bytes:
    return response(b"Content-Length: " + value + b"\r\n")


def with_coding(value: bytes) -> bytes:
    return response(b"Transfer-Encoding: " + value + b"\r\n", body=IN_CHUNKS)


AMBIGUOUS = {
    "two lengths": response(LENGTH, b"Content-Length: 5\r\n"),
    "list of lengths": with_length(b"12, 5"),
    "length with a sign": with_length(b"+12"),
    "negative length": with_length(b"-12"),
    "length with an underscore": with_length(b"1_2"),
    "hexadecimal length": with_length(b"0xc"),
    "length with a fraction": with_length(b"12.0"),
    "length with a space": with_length(b"1 2"),
    "length that is no number": with_length(b"\xb2"),
    "empty length": with_length(b""),
    "length of 30 digits": with_length(b"9" * 30),
    "length after chunked": response(CHUNKED, LENGTH, body=IN_CHUNKS),
    "length before chunked": response(LENGTH, CHUNKED, body=IN_CHUNKS),
    "length with identity": response(b"Transfer-Encoding: identity\r\n", LENGTH),
    "length in a folded line": response(LENGTH, b"X: a\r\n", b"Content-Length:\r\n 5\r\n"),
    "gzip coding": with_coding(b"gzip"),
    "gzip and chunked": with_coding(b"gzip, chunked"),
    "chunked and gzip": with_coding(b"chunked, gzip"),
    "chunked twice in a list": with_coding(b"chunked, chunked"),
    "chunked twice": response(CHUNKED, CHUNKED, body=IN_CHUNKS),
    "unknown coding": with_coding(b"xchunked"),
    "empty coding": with_coding(b""),
    "quoted coding": with_coding(b'"chunked"'),
    "coding with a parameter": with_coding(b"chunked;a=b"),
    "coding after a control character": with_coding(b"\x0bchunked"),
    "coding with a space in its name": response(
        b"Transfer-Encoding : chunked\r\n", LENGTH, body=IN_CHUNKS
    ),
    "carriage return before a length": response(b"X: a\rContent-Length: 5\r\n", LENGTH),
    "line without a colon": response(b"broken line\r\n", LENGTH),
    "NUL in a value": response(b"X: a\0b\r\n", LENGTH),
    "NUL in a name": response(b"X\0: a\r\n", LENGTH),
    "carriage return in a value": response(b"X: a\rb\r\n", LENGTH),
    "empty name": response(b": a\r\n", LENGTH),
    "space in a name": response(b"X Y: a\r\n", LENGTH),
    "name that is not ASCII": response(b"X-\xe9: a\r\n", LENGTH),
}
# Data that is not HTTP, and a pattern for the message's end.
NOT_HTTP = {
    "SSH": (b"SSH-2.0-OpenSSH_9.6\r\n", "SSH-2.0"),
    "HTML": (b"<html>\r\n<body>hello</body></html>", "<html>"),
    "text": (b"hi", "hi"),
    "blank lines": (b"\r\n\r\n\r\n", r"it starts with '\\r\\n"),
    "lower case": (response(LENGTH).lower(), "it starts with 'http/1.1 200 ok"),
    **{
        version: (
            response(LENGTH).replace(b"HTTP/1.1", version.encode()),
            f"it starts with '{version} 200 OK",
        )
        for version in ("HTTP/0.9", "HTTP/1", "HTTP/1.2", "HTTP/1.10", "HTTP/2.0", "HTTP/9.9")
    },
    "unknown version after an interim response": (
        b"HTTP/1.1 102 Processing\r\n\r\n" + response(LENGTH).replace(b"1.1", b"9.9"),
        "(HTTP/9.9|Bad status line|Invalid HTTP version)",
    ),
    "status of four digits": (b"HTTP/1.1 2000 OK\r\n\r\n", "(status|2000)"),
    "status that is no number": (b"HTTP/1.1 abc OK\r\n\r\n", "(status|abc)"),
}
VALID = {
    "capitals": with_coding(b"CHUNKED"),
    "spaces after a coding": with_coding(b"chunked  "),
    "spaces after a length": with_length(b"12  "),
    "zeros before a length": with_length(b"0012"),
    "folded field": response(b"X: a\r\n  b\r\n", LENGTH),
    "no carriage returns": response(b"X: a\r\n", LENGTH).replace(b"\r\n", b"\n"),
    "no reason": response(LENGTH).replace(b"200 OK", b"200"),
    "HTTP/1.0": response(LENGTH).replace(b"1.1", b"1.0"),
    "control character in a value": response(b"X: a\x01b\r\n", LENGTH),
}


async def list_agents(way: Way, server: ByteServer) -> None:
    flux0 = Flux0(server.url, transport=way.make_transport(), retry_config=EAGER)
    async with in_mode(way.mode, flux0) as either:
        await either.agents.list_async()


@over(*LIBRARIES)
@pytest.mark.parametrize(
    ("raw", "shown"),
    [*((raw, ".") for raw in AMBIGUOUS.values()), *NOT_HTTP.values()],
    ids=[*AMBIGUOUS, *NOT_HTTP],
)
async def test_malformed_head_is_a_protocol_error(way: Way, raw: bytes, shown: str) -> None:
    with ByteServer((Write(raw), Disconnect())) as server:
        with pytest.raises(ProtocolError, match=f"the response is not valid HTTP: .*{shown}"):
            await list_agents(way, server)
        server.wait_until_closed()
        assert len(server.requests) == 1


@over(*LIBRARIES)
@pytest.mark.parametrize("raw", VALID.values(), ids=VALID)
async def test_unusual_head_is_accepted(way: Way, raw: bytes) -> None:
    with ByteServer((Write(raw), Disconnect())) as server:
        await list_agents(way, server)
