"""The contract for requests and response heads: the transport does not change them."""

# ruff: noqa: S101 - the tests in this module use assert statements

from __future__ import annotations

import pytest
from attrs import evolve

from flux0.domain import errors
from flux0.domain.headers import Headers
from flux0.testing.contract.base import Contract, check, fails
from flux0.testing.contract.harness import Harness, get, post
from flux0.testing.contract.responses import (
    Disconnect,
    WaitForRelease,
    Write,
    head,
    http_response,
    to_bytes,
)

_TARGETS = (
    "/api/agents/..%2Fagents%3Fx",
    "/api/a%20b/%25/%C3%A9?types=%5B%22a%22%5D&q=1+2%26%20x&empty=",
)
_OK = http_response(b"ok")
_MEGABYTES = [(f"X-{number}", "x" * 1000) for number in range(2000)]


class HeadContract(Contract):
    """Requests are sent unchanged, and response heads are returned unchanged."""

    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
    @pytest.mark.parametrize("target", _TARGETS)
    def test_target_and_body_are_sent_unchanged(
        self, harness: Harness, method: str, target: str
    ) -> None:
        """Percent-encodings are unchanged. For each method, a body has a `content-length`."""
        server = harness.serve(_OK)
        body = bytes(range(256)) * 300
        harness.fetch(evolve(post(f"{server.url}{target}", body), method=method))
        (received,) = server.requests
        check(received.method, method, "the method")
        check(received.target, target, "the received target")
        check(received.body, body, "the received body")
        lengths = received.headers.get_all("content-length")
        check(lengths, (str(len(body)),), "the request's content-length headers")
        check(received.headers.get("transfer-encoding"), None, "the request's transfer-encoding")

    def test_large_body_is_sent_completely(self, harness: Harness) -> None:
        """The operating system may accept only a part of a body at a time."""
        server = harness.serve(_OK)
        body = bytes(range(256)) * 32_000
        harness.fetch(post(server.url, body))
        is_complete = server.requests[0].body == body
        assert is_complete, "the received body differs from the sent body"

    def test_empty_body_has_a_content_length(self, harness: Harness) -> None:
        """Some servers reject a POST request without `content-length` (RFC 9110, section 8.6)."""
        server = harness.serve(_OK)
        harness.fetch(post(server.url, b""))
        lengths = server.requests[0].headers.get_all("content-length")
        check(lengths, ("0",), "the request's content-length headers")

    def test_default_headers_are_sent_once(self, harness: Harness) -> None:
        """A request's header field replaces the HTTP library's default for this field."""
        server = harness.serve(_OK)
        harness.fetch(get(server.url))
        own = Headers((("accept-encoding", "gzip"),))
        harness.fetch(evolve(get(server.url), headers=own))
        for received in server.requests:
            names = [name.lower() for name, _ in received.headers.pairs]
            assert len(names) == len(set(names)), f"a field was sent twice: {sorted(names)}"
        sent = server.requests[1].headers.get_all("accept-encoding")
        assert sent == ("gzip",), "accept-encoding must have the request's value"

    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_request_without_a_body_announces_none(self, harness: Harness, method: str) -> None:
        """Only a POST request may have `content-length: 0` (RFC 9110, section 8.6)."""
        server = harness.serve(_OK)
        harness.fetch(evolve(get(server.url), method=method))
        (received,) = server.requests
        has_length = method == "POST" and received.headers.get("content-length") == "0"
        unexpected = {"transfer-encoding", "content-type", *["content-length"] * (not has_length)}
        check(unexpected & set(received.headers), set[str](), "the unexpected header fields")

    def test_request_headers_are_sent_unchanged(self, harness: Harness) -> None:
        """The request's headers replace default headers. Repeated fields keep all values."""
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
        headers = {name: received.headers.get(name) for name in expected}
        check(headers, expected, "the received headers")

    @pytest.mark.parametrize("value", ["", "caf\xe9", "caf\xc3\xa9", '"a, b"; c=%20'])
    def test_header_values_are_latin_1(self, harness: Harness, value: str) -> None:
        """Header values are encoded in Latin-1, and may be empty (RFC 9110, section 5.5)."""
        server = harness.serve(http_response(b"ok", headers=[("X-Name", value)]))
        response = harness.send(evolve(get(server.url), headers=Headers((("x-name", value),))))
        check(response.head.headers.get("x-name"), value, "the response header")
        check(response.read(), b"ok", "the body")
        check(server.requests[0].headers.get("x-name"), value, "the received header")

    def test_cookies_are_not_stored(self, harness: Harness) -> None:
        """If a cookie of a response is stored, it changes the user of later requests."""
        fields = [("Set-Cookie", "flux0_user_sub=other; Path=/")]
        server = harness.serve(http_response(b"", headers=fields))
        harness.fetch(get(server.url))
        harness.fetch(get(server.url))
        assert "cookie" not in server.requests[1].headers, "the transport stored a cookie"

    @pytest.mark.parametrize("status", [200, 201, 299, 307, 400, 404, 418, 422, 429, 500, 503, 599])
    def test_every_status_is_returned(self, harness: Harness, status: int) -> None:
        """No status raises an error, not even an unknown status. Redirects are not followed."""
        location = [("Location", "/elsewhere")]
        steps = http_response(b"why", status=f"{status} Because", headers=location)
        server, response = harness.exchange(steps)
        check(response.head.status_code, status, "the status")
        check(response.read(), b"why", "the body")
        check(response.head.headers.get("location"), "/elsewhere", "the location header")
        assert len(server.requests) == 1, "the redirect was followed"

    @pytest.mark.parametrize("status", [100, 102, 103])
    @pytest.mark.parametrize("at_once", [False, True], ids=["apart", "at-once"])
    def test_interim_responses_are_skipped(
        self, harness: Harness, status: int, *, at_once: bool
    ) -> None:
        interim = head(f"{status} Wait", [("Link", "</style.css>")])
        steps = (interim, interim, *http_response(b"first"))
        first = (Write(to_bytes(steps)),) if at_once else steps
        server = harness.serve(first, http_response(b"second"))
        for body in (b"first", b"second"):
            response = harness.send(get(server.url))
            check(response.head.status_code, 200, "the status of the final response")
            check(response.head.headers.get("link"), None, "the link header of the final response")
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
        """A response to HEAD, and a response with status 204 or 304, has no body.

        A `content-length` in the head of such a response is ignored (RFC 9112, section 6.3).
        """
        server = harness.serve((head(status, fields),))
        for _ in range(2):
            response = harness.send(evolve(get(server.url), method=method))
            check(response.head.status_code, int(status[:3]), "the status")
            check(response.read(), b"", "the body")
        assert server.connections == 1, "the connection was not reused"

    def test_response_headers_are_returned_unchanged(self, harness: Harness) -> None:
        """Repeated fields stay separate. `raw_response` is the HTTP library's response."""
        fields = [("X-Request-ID", "7"), ("Set-Cookie", "a=1, b"), ("set-cookie", "c=2")]
        _, response = harness.exchange(http_response(b"", headers=fields))
        headers = response.head.headers
        check(headers.get("x-request-id"), "7", "the header")
        check(headers.get_all("SET-COOKIE"), ("a=1, b", "c=2"), "the values of a repeated header")
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
        steps = Write(start[:30]), Write(start[30:]), Write(b"ok"), Disconnect()
        _, response = harness.exchange(steps)
        check(response.read(), b"ok", "the body")

    def test_size_of_the_head_is_limited(self, harness: Harness) -> None:
        steps = head("200 OK", _MEGABYTES), WaitForRelease()
        fails(lambda: harness.exchange(steps), errors.ProtocolError)

    @pytest.mark.parametrize("fields", [[], _MEGABYTES[:20]], ids=["small", "large"])
    def test_size_of_interim_responses_is_limited(
        self, harness: Harness, fields: list[tuple[str, str]]
    ) -> None:
        interim = head("100 Continue", fields).data
        many = Write(interim * (2_000_000 // len(interim)))
        fails(lambda: harness.exchange((many, *http_response(b"ok"))), errors.ProtocolError)
