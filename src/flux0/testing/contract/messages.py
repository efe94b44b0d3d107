"""The contract for requests and responses: both are unchanged, or the call fails."""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

import random
import tracemalloc
import zlib
from gzip import compress

import pytest
from attrs import evolve

from flux0.domain import errors
from flux0.domain.headers import Headers
from flux0.testing.contract.base import Contract, check, fails, streams
from flux0.testing.contract.harness import Harness, get, post
from flux0.testing.contract.responses import (
    FRAMINGS,
    Disconnect,
    Framing,
    Reset,
    ServerSteps,
    WaitForRelease,
    Write,
    byte_by_byte,
    head,
    http_response,
    size,
    to_bytes,
    truncated,
)

_framings = pytest.mark.parametrize("framing", FRAMINGS)
# The combinations of framing and coding in which a truncated body can be detected: all except
# close-delimited bodies without gzip.
_DETECTABLE = [(each, gzip) for each in FRAMINGS for gzip in (True, False)][:-1]
_codings = pytest.mark.parametrize("gzip", [False, True], ids=["identity", "gzip"])

_EVENTS = (b"data: one\n\n", b"data: \xc3\xa9\xe2\x80\xa8\n", b"\n", b"data: three\n\n")
_LARGE = random.Random(1).randbytes(1_000_000)  # noqa: S311 - not a secret
_BODIES: dict[str, tuple[bytes, ...]] = {
    "events": _EVENTS,
    "byte-by-byte": _EVENTS,
    "empty": (),
    "large": (_LARGE[:1000], _LARGE[1000:]),
}
_TARGETS = (
    "/api/agents/..%2Fagents%3Fx",
    "/api/a%20b/%25/%C3%A9?types=%5B%22a%22%5D&q=1+2%26%20x&empty=",
)
_OK = http_response(b"ok")
_GZIPPED = [("Content-Encoding", "gzip")]
_START = http_response(framing="chunked")[0]

_FIRST = Write(to_bytes(http_response(b"first", framing="chunked")[:-1]))
_BAD_CHUNK = Write(b"xyz\r\nsecond\r\n")
_ZIPPED = to_bytes(http_response(b"first", framing="chunked", gzip=True)[:2])
_BAD_CHECKSUM = b"a\r\n\x03\x00" + bytes(8) + b"\r\n"
# The steps of a body with a fault after its first piece, and the error that they must cause.
_LATE_FAULTS: dict[str, tuple[ServerSteps, type[errors.TransportError]]] = {
    "chunk": ((_FIRST, WaitForRelease(), _BAD_CHUNK, Disconnect()), errors.ProtocolError),
    "chunk-at-once": ((Write(_FIRST.data + _BAD_CHUNK.data), Disconnect()), errors.ProtocolError),
    "gzip": (
        (Write(_ZIPPED), WaitForRelease(), Write(_BAD_CHECKSUM), Disconnect()),
        errors.ProtocolError,
    ),
    "gzip-at-once": ((Write(_ZIPPED + _BAD_CHECKSUM), Disconnect()), errors.ProtocolError),
    "end": ((_FIRST, WaitForRelease(), Disconnect()), errors.ConnectionInterrupted),
    "end-at-once": ((_FIRST, Disconnect()), errors.ConnectionInterrupted),
    "reset": ((_FIRST, WaitForRelease(), Reset()), errors.ConnectionInterrupted),
}
_MEGABYTES = [(f"X-{number}", "x" * 1000) for number in range(2000)]


class HeadContract(Contract):
    """Requests are sent unchanged, and response heads are returned unchanged."""

    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
    @pytest.mark.parametrize("target", _TARGETS)
    def test_target_and_body_are_sent_unchanged(
        self, harness: Harness, method: str, target: str
    ) -> None:
        """Percent-encodings are kept. Any method may have a body, with a `content-length`."""
        server = harness.serve(_OK)
        body = bytes(range(256)) * 300
        check(
            harness.fetch(evolve(post(f"{server.url}{target}", body), method=method)),
            b"ok",
            "the body",
        )
        (received,) = server.requests
        check(received.method, method, "the method")
        check(received.target, target, "the received target")
        check(received.body, body, "the received body")
        check(
            received.headers.get_all("content-length"),
            (str(len(body)),),
            "the content-length headers of the request",
        )
        assert "transfer-encoding" not in received.headers, (
            "the request must have a content-length instead of a transfer-encoding"
        )

    def test_large_body_is_sent_completely(self, harness: Harness) -> None:
        """The operating system may accept only a part of the body at a time."""
        server = harness.serve(_OK)
        harness.fetch(post(server.url, _LARGE * 8))
        is_complete = server.requests[0].body == _LARGE * 8
        assert is_complete, "the received body differs from the sent body"

    def test_empty_body_has_a_content_length(self, harness: Harness) -> None:
        """Some servers reject a POST without a length (RFC 9110, section 8.6)."""
        server = harness.serve(_OK)
        harness.fetch(post(server.url, b""))
        check(
            server.requests[0].headers.get_all("content-length"),
            ("0",),
            "the content-length headers of the request",
        )

    def test_default_headers_are_sent_once(self, harness: Harness) -> None:
        """A field of the request replaces the default field, such as `accept-encoding`."""
        server = harness.serve(_OK)
        harness.fetch(get(server.url))
        own = Headers((("accept-encoding", "gzip"),))
        harness.fetch(evolve(get(server.url), headers=own))
        for received in server.requests:
            names = [name.lower() for name, _ in received.headers.pairs]
            assert len(names) == len(set(names)), f"a field was sent twice: {sorted(names)}"
        sent = server.requests[1].headers.get_all("accept-encoding")
        assert sent == ("gzip",), "accept-encoding must have the value of the request"

    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_request_without_a_body_announces_none(self, harness: Harness, method: str) -> None:
        """Only a POST may have `content-length: 0` (RFC 9110, section 8.6)."""
        server = harness.serve(_OK)
        harness.fetch(evolve(get(server.url), method=method))
        (received,) = server.requests
        announced = {"content-length", "transfer-encoding", "content-type"} & set(received.headers)
        assert not announced or (method == "POST" and received.headers["content-length"] == "0"), (
            "a request without a body must announce none, except for content-length: 0 of a POST"
        )
        assert "transfer-encoding" not in received.headers, (
            "the request must have a content-length instead of a transfer-encoding"
        )

    def test_request_headers_are_sent_unchanged(self, harness: Harness) -> None:
        """The request's headers replace the library's defaults. Repeated fields keep all values."""
        server = harness.serve(_OK)
        given = {
            "accept": "text/event-stream",
            "user-agent": "contract/1",
            "content-type": "application/json",
            "cookie": "flux0_user_sub=me",
            "authorization": "Bearer secret",
        }
        repeated = (("x-tag", "a"), ("x-tag", "b"))
        harness.fetch(evolve(post(server.url), headers=Headers((*given.items(), *repeated))))
        (received,) = server.requests
        expected = {**given, "x-tag": "a, b", "host": f"{server.host}:{server.port}"}
        check(
            {name: received.headers.get(name) for name in expected},
            expected,
            "the received headers",
        )

    @pytest.mark.parametrize("value", ["", "caf\xe9", "caf\xc3\xa9", '"a, b"; c=%20'])
    def test_header_values_are_latin_1(self, harness: Harness, value: str) -> None:
        """Values may be empty, in requests and in responses (RFC 9110, section 5.5)."""
        server = harness.serve(http_response(b"ok", headers=[("X-Name", value)]))
        response = harness.send(evolve(get(server.url), headers=Headers((("x-name", value),))))
        check(response.head.headers.get("x-name"), value, "the header of the response")
        check(response.read(), b"ok", "the body")
        check(server.requests[0].headers.get("x-name"), value, "the received header")

    def test_cookies_are_not_stored(self, harness: Harness) -> None:
        """Otherwise, a cookie from an earlier response could change the user of a request."""
        server = harness.serve(
            http_response(b"", headers=[("Set-Cookie", "flux0_user_sub=other; Path=/")])
        )
        harness.fetch(get(server.url))
        harness.fetch(get(server.url))
        assert "cookie" not in server.requests[1].headers, "the transport stored a cookie"

    @pytest.mark.parametrize("status", [200, 201, 299, 307, 400, 404, 418, 422, 429, 500, 503, 599])
    def test_every_status_is_returned(self, harness: Harness, status: int) -> None:
        """No status is an error, not even an unknown one, and redirects are not followed."""
        location = [("Location", "/elsewhere")]
        server, response = harness.exchange(
            http_response(b"why", status=f"{status} Because", headers=location)
        )
        check(response.head.status_code, status, "the status")
        check(response.read(), b"why", "the body")
        check(response.head.headers.get("location"), "/elsewhere", "the location header")
        assert len(server.requests) == 1, "the redirect was followed"

    @pytest.mark.parametrize("status", [100, 102, 103])
    @pytest.mark.parametrize("at_once", [False, True], ids=["apart", "at-once"])
    def test_interim_responses_are_skipped(
        self, harness: Harness, status: int, *, at_once: bool
    ) -> None:
        """The final response is returned. The next request gets its own response."""
        steps = (
            *[head(f"{status} Wait", [("Link", "</style.css>")])] * 2,
            *http_response(b"first"),
        )
        server = harness.serve(
            (Write(to_bytes(steps)),) if at_once else steps, http_response(b"second")
        )
        for body in (b"first", b"second"):
            response = harness.send(get(server.url))
            check(response.head.status_code, 200, "the status of the final response")
            check(response.head.headers.get("link"), None, "a header of an interim response")
            check(response.read(), body, "the body")

    @pytest.mark.parametrize(
        ("method", "status", "fields"),
        [
            ("GET", "204 No Content", []),
            ("GET", "304 Not Modified", [("Content-Length", "5")]),
            ("HEAD", "200 OK", [("Content-Length", "5"), ("Content-Encoding", "gzip")]),
        ],
    )
    def test_responses_without_a_body_end_with_their_head(
        self, harness: Harness, method: str, status: str, fields: list[tuple[str, str]]
    ) -> None:
        """In these responses, a `content-length` announces no body (RFC 9112, section 6.3)."""
        server = harness.serve((head(status, fields),))
        for _ in range(2):
            response = harness.send(evolve(get(server.url), method=method))
            check(response.head.status_code, int(status[:3]), "the status")
            check(response.read(), b"", "the body")
        assert server.connections == 1, "the connection was not reused"

    def test_response_headers_are_returned_unchanged(self, harness: Harness) -> None:
        """Repeated fields stay separate. `raw_response` is the response of the library."""
        fields = [("X-Request-ID", "7"), ("Set-Cookie", "a=1, b"), ("set-cookie", "c=2")]
        _, response = harness.exchange(http_response(b"", headers=fields))
        headers = response.head.headers
        check(headers.get("x-request-id"), "7", "the header")
        check(headers.get("X-REQUEST-ID"), "7", "the header by a name in upper case")
        check(headers.get_all("SET-COOKIE"), ("a=1, b", "c=2"), "the values of the repeated header")
        assert response.head.raw_response is not None, "raw_response must be the library's response"
        check(response.read(), b"", "the body")

    @pytest.mark.parametrize(
        "start",
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
            b"HTTP/1.1 200 \r\ncontent-length:2\r\n\r\n",
            b"HTTP/1.0 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX-Name: caf\xe9\r\nContent-Length: 2\r\n\r\n",
        ],
        ids=["usual", "terse", "old", "latin-1"],
    )
    def test_unusual_response_heads_are_accepted(self, harness: Harness, start: bytes) -> None:
        """Some servers send such heads, and TCP may split them anywhere."""
        _, response = harness.exchange(
            (Write(start[:30]), Write(start[30:]), Write(b"ok"), Disconnect())
        )
        check(response.read(), b"ok", "the body")


class BodyContract(Contract):
    """Bodies are returned unchanged, whatever their framing is; damaged bodies are errors."""

    @_framings
    @_codings
    @streams
    @pytest.mark.parametrize("body", _BODIES)
    def test_body_is_returned_unchanged(
        self, harness: Harness, framing: Framing, body: str, *, gzip: bool, stream: bool
    ) -> None:
        """`close_delimited` is true only if the end of the connection ends the body."""
        steps = http_response(*_BODIES[body], framing=framing, gzip=gzip)
        steps = byte_by_byte(steps) if body == "byte-by-byte" else steps
        _, response = harness.exchange(steps, stream=stream)
        check(
            response.head.close_delimited, framing == "close-delimited", "Response.close_delimited"
        )
        # Compare outside of the assertion: pytest needs minutes for a diff of long bodies.
        same = response.read() == b"".join(_BODIES[body])
        assert same, "the received body differs from the sent body"

    @_framings
    @_codings
    @streams
    def test_pieces_are_yielded_when_they_arrive(
        self, harness: Harness, framing: Framing, *, gzip: bool, stream: bool
    ) -> None:
        """A piece does not wait for the next piece or for the end of the body."""
        steps = http_response(b"first", WaitForRelease(), b"second", framing=framing, gzip=gzip)
        server, response = harness.read_first(steps, stream=stream)
        server.release()
        check(response.read(), b"second", "the body")

    def test_chunk_extensions_and_trailers_are_ignored(self, harness: Harness) -> None:
        """Extensions and trailers are not part of the body (RFC 9112, section 7.1)."""
        server = harness.serve(
            (_START, Write(b'2;a=1;b="x"\r\nok\r\n0;end\r\nX-Trailer: yes\r\n\r\n'))
        )
        for _ in range(2):
            check(harness.fetch(get(server.url)), b"ok", "the body")

    @pytest.mark.parametrize("coding", ["gzip", "GZIP", "x-gzip", "identity"])
    def test_content_codings_are_decoded(self, harness: Harness, coding: str) -> None:
        """A gzip body may have several members (RFC 1952, section 2.2)."""
        pieces = _EVENTS if coding == "identity" else [compress(piece) for piece in _EVENTS]
        _, response = harness.exchange(
            http_response(b"".join(pieces), headers=[("Content-Encoding", coding)])
        )
        check(response.read(), b"".join(_EVENTS), "the body")

    # --- damaged bodies

    @pytest.mark.parametrize(("framing", "gzip"), _DETECTABLE)
    def test_truncated_body_is_an_interruption(
        self, harness: Harness, framing: Framing, *, gzip: bool
    ) -> None:
        """The body ends at every possible position, even within the last chunk or gzip trailer."""
        steps = http_response(b"event", b"chunk", framing=framing, gzip=gzip)
        start = size(steps[:1]) + (framing == "close-delimited")
        cuts = [truncated(steps, length) for length in range(start, size(steps))]
        server = harness.serve(*cuts)
        for _ in cuts:
            response = harness.send(get(server.url, stream=True))
            fails(response.read, errors.ConnectionInterrupted, caused=framing != "close-delimited")

    @pytest.mark.parametrize("framing", ["chunked", "content-length"])
    def test_truncated_gzip_data_is_an_interruption(
        self, harness: Harness, framing: Framing
    ) -> None:
        """The framing is complete, but the gzip data is not: a proxy lost its upstream server."""
        whole = compress(b"event" * 100)
        lengths = range(1, len(whole))
        server = harness.serve(
            *(http_response(whole[:n], framing=framing, headers=_GZIPPED) for n in lengths)
        )
        for _ in lengths:
            fails(harness.send(get(server.url)).read, errors.ConnectionInterrupted, caused=False)

    @pytest.mark.parametrize("damaged", [0, 12, -6, -2], ids=["head", "data", "crc", "length"])
    def test_corrupt_gzip_data_is_a_protocol_error(self, harness: Harness, damaged: int) -> None:
        """A wrong checksum or length is an error, too."""
        data = bytearray(compress(bytes(range(256))))
        data[damaged] ^= 0xFF
        _, response = harness.exchange(http_response(bytes(data), headers=_GZIPPED))
        fails(response.read, errors.ProtocolError)

    def test_unsupported_coding_is_a_protocol_error(self, harness: Harness) -> None:
        """Encoded bytes must not be returned as if they were decoded."""
        headers = [("Content-Encoding", "x-unheard-of")]
        server, response = harness.exchange(
            http_response(b"?", WaitForRelease(), b"?", headers=headers)
        )
        fails(response.read, errors.ProtocolError, caused=False)
        server.wait_until_closed()

    @pytest.mark.parametrize("fault", _LATE_FAULTS)
    @streams
    def test_bytes_before_an_error_are_yielded(
        self, harness: Harness, fault: str, *, stream: bool
    ) -> None:
        """The first piece is yielded before the error, even if both arrive together."""
        steps, error = _LATE_FAULTS[fault]
        server, response = harness.read_first(steps, stream=stream)
        server.release()
        cause = fails(response.read, error, caused=False).__cause__
        assert cause is not None, "the error must be raised from the exception of the library"
        server.wait_until_closed()

    # --- limits

    def test_size_of_the_head_is_limited(self, harness: Harness) -> None:
        """2 MB of header fields are a `ProtocolError`."""
        fails(
            lambda: harness.exchange((head("200 OK", _MEGABYTES), WaitForRelease())),
            errors.ProtocolError,
        )

    @pytest.mark.parametrize("fields", [[], _MEGABYTES[:20]], ids=["small", "large"])
    def test_size_of_interim_responses_is_limited(
        self, harness: Harness, fields: list[tuple[str, str]]
    ) -> None:
        """2 MB of small interim responses are a `ProtocolError`."""
        interim = head("100 Continue", fields).data
        many = Write(interim * (2_000_000 // len(interim)))
        fails(lambda: harness.exchange((many, *http_response(b"ok"))), errors.ProtocolError)

    @pytest.mark.parametrize(
        "ending",
        [
            b"2;" + b"x" * 2_000_000 + b"\r\nok\r\n0\r\n\r\n",
            b"0\r\n" + "".join(f"{n}: {v}\r\n" for n, v in _MEGABYTES).encode() + b"\r\n",
        ],
        ids=["extension", "trailers"],
    )
    def test_chunk_overhead_is_limited(self, harness: Harness, ending: bytes) -> None:
        """2 MB of a chunk extension or of trailers are a `ProtocolError`."""
        server, response = harness.exchange((_START, Write(ending)))
        fails(response.read, errors.ProtocolError)
        server.wait_until_closed()

    def test_decompression_bomb_is_decoded_in_pieces(self, harness: Harness) -> None:
        """200 kB of gzip data decode to 200 MB. Reading the first 4 MB needs less than 32 MB."""
        compressor = zlib.compressobj(9, wbits=31)
        first, another = (
            compressor.compress(bytes(1_000_000)) + compressor.flush(zlib.Z_FULL_FLUSH)
            for _ in range(2)
        )
        # After a full flush of zlib, a block needs no earlier blocks, so it can be repeated.
        _, response = harness.exchange(http_response(first + another * 199, headers=_GZIPPED))
        tracemalloc.start()
        try:
            read = len(response.read(4_000_000))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert read >= 4_000_000, "the body ended too early"  # noqa: PLR2004
        assert peak < 32_000_000, "too much was decompressed at once"  # noqa: PLR2004
        response.close()
