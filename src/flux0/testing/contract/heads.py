"""The contract's part on requests and on the heads of answers."""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

import pytest
from attrs import evolve

from flux0.domain.headers import Headers
from flux0.testing.contract.answers import Disconnect, Write, answer, head, written
from flux0.testing.contract.base import Contract
from flux0.testing.contract.probe import Probe, get, post

_OK = answer(b"ok")


class HeadContract(Contract):
    """A request goes out as told, and an answer comes back as it is."""

    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
    @pytest.mark.parametrize(
        "target",
        [
            "/api/agents/..%2Fagents%3Fx",
            "/api/a%20b/%25/%C3%A9?types=%5B%22a%22%5D&q=1+2%26&empty=",
        ],
    )
    def test_a_request_is_sent_as_given(self, probe: Probe, method: str, target: str) -> None:
        """Percent-encodings are left alone; any method may have a body, sent with its length."""
        server = probe.serve(_OK)
        body = bytes(range(256)) * 300
        assert probe.fetch(evolve(post(f"{server.url}{target}", body), method=method)) == b"ok"
        (received,) = server.requests
        assert (received.method, received.target, received.body) == (method, target, body)
        assert received.headers.get_all("content-length") == (str(len(body)),)
        assert "transfer-encoding" not in received.headers

    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_a_request_without_a_body(self, probe: Probe, method: str) -> None:
        """None is announced; but a POST may say that its length is zero (RFC 9110, section 8.6)."""
        server = probe.serve(_OK)
        probe.fetch(evolve(get(server.url), method=method))
        (received,) = server.requests
        announced = {"content-length", "transfer-encoding", "content-type"} & set(received.headers)
        assert not announced or (method == "POST" and received.headers["content-length"] == "0")
        assert "transfer-encoding" not in received.headers

    def test_headers_are_sent_as_given(self, probe: Probe) -> None:
        """Given fields replace the library's own; a repeated one keeps all its values."""
        server = probe.serve(_OK)
        given = {
            "accept": "text/event-stream",
            "user-agent": "contract/1",
            "content-type": "application/json",
            "cookie": "flux0_user_sub=me",
            "authorization": "Bearer secret",
        }
        repeated = (("x-tag", "a"), ("x-tag", "b"))
        probe.fetch(evolve(post(server.url), headers=Headers((*given.items(), *repeated))))
        (received,) = server.requests
        expected = {**given, "x-tag": "a, b", "host": f"{server.host}:{server.port}"}
        assert {name: received.headers[name] for name in expected} == expected

    @pytest.mark.parametrize("value", ["", "caf\xe9", "caf\xc3\xa9", '"a, b"; c=%20'])
    def test_a_header_value_is_latin_1(self, probe: Probe, value: str) -> None:
        """And may be empty, in requests and in answers (RFC 9110, section 5.5)."""
        server = probe.serve(answer(b"ok", headers=[("X-Name", value)]))
        reply = probe.send(evolve(get(server.url), headers=Headers((("x-name", value),))))
        assert (reply.head.headers.get("x-name"), reply.read()) == (value, b"ok")
        assert server.requests[0].headers.get("x-name") == value

    def test_cookies_are_not_kept(self, probe: Probe) -> None:
        """Who the user is must not depend on what was answered before."""
        server = probe.serve(answer(b"", headers=[("Set-Cookie", "flux0_user_sub=other; Path=/")]))
        probe.fetch(get(server.url))
        probe.fetch(get(server.url))
        assert "cookie" not in server.requests[1].headers

    @pytest.mark.parametrize("status", [200, 201, 299, 307, 400, 404, 418, 422, 429, 500, 503, 599])
    def test_every_status_is_returned(self, probe: Probe, status: int) -> None:
        """Nothing is raised for a status, known or not, and no redirect is followed."""
        location = [("Location", "/elsewhere")]
        server, reply = probe.ask(answer(b"why", status=f"{status} Because", headers=location))
        assert (reply.head.status_code, reply.read()) == (status, b"why")
        assert reply.head.headers["location"] == "/elsewhere"
        assert len(server.requests) == 1

    @pytest.mark.parametrize("status", [100, 102, 103])
    @pytest.mark.parametrize("at_once", [False, True], ids=["apart", "at-once"])
    def test_interim_answers_are_skipped(self, probe: Probe, status: int, *, at_once: bool) -> None:
        """They come before the answer and are none, and the next request has its own."""
        steps = (*[head(f"{status} Wait", [("Link", "</style.css>")])] * 2, *answer(b"first"))
        server = probe.serve((Write(written(steps)),) if at_once else steps, answer(b"second"))
        for body in (b"first", b"second"):
            reply = probe.send(get(server.url))
            assert (reply.head.status_code, "link" in reply.head.headers) == (200, False)
            assert reply.read() == body

    @pytest.mark.parametrize(
        ("method", "status", "fields"),
        [
            ("GET", "204 No Content", []),
            ("GET", "304 Not Modified", [("Content-Length", "5")]),
            ("HEAD", "200 OK", [("Content-Length", "5"), ("Content-Encoding", "gzip")]),
        ],
    )
    def test_an_answer_may_have_no_body(
        self, probe: Probe, method: str, status: str, fields: list[tuple[str, str]]
    ) -> None:
        """These end with their head, whatever it says (RFC 9112, section 6.3)."""
        server = probe.serve((head(status, fields),))
        for _ in range(2):
            reply = probe.send(evolve(get(server.url), method=method))
            assert (reply.head.status_code, reply.read()) == (int(status[:3]), b"")
        assert server.connections == 1

    def test_a_head_comes_back_whole(self, probe: Probe) -> None:
        """Repeated fields are kept apart, and the library's own response shows the rest."""
        fields = [("X-Request-ID", "7"), ("Set-Cookie", "a=1, b"), ("set-cookie", "c=2")]
        _, reply = probe.ask(answer(b"", headers=fields))
        headers = reply.head.headers
        assert headers["x-request-id"] == headers["X-REQUEST-ID"] == "7"
        assert headers.get_all("SET-COOKIE") == ("a=1, b", "c=2")
        assert reply.head.raw_response is not None
        assert reply.read() == b""

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
    def test_heads_differ(self, probe: Probe, start: bytes) -> None:
        """All of these are in use, and arrive in any pieces."""
        _, reply = probe.ask((Write(start[:30]), Write(start[30:]), Write(b"ok"), Disconnect()))
        assert reply.read() == b"ok"
