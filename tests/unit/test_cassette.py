"""Cassettes as files: what they look like, what they keep, and what is said of a broken one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from flux0.domain.errors import TransportError
from flux0.domain.headers import Headers
from flux0.models import Flux0Error
from flux0.ports import Request
from flux0.testing import CassetteError
from flux0.testing.cassettes.cassette import (
    CLOSED,
    ERRORS,
    WHOLE,
    End,
    Exchange,
    Piece,
    RecordedRequest,
    RecordedResponse,
    formatted,
    is_json,
    read_cassette,
    write_cassette,
)
from support.cassettes import LIST_AGENTS, asking, written

SSE = Headers((("content-type", "text/event-stream; charset=utf-8"),))

TURN = Exchange(
    RecordedRequest("POST", "/api/sessions/s/events/stream", "a=b", Headers(), b'{"content":"Hi"}'),
    RecordedResponse(0.125, 200, SSE, (Piece(0, b'data: "\xc3\xa9"\n\n'), Piece(1.5, b"\xff"))),
    End("ConnectionInterrupted", 2.0),
)

REFUSED = Exchange(RecordedRequest("GET", "/", "", Headers(), None), None, End("ConnectError", 1))


def test_a_cassette_is_json_that_people_can_read(tmp_path: Path) -> None:
    text = written(tmp_path / "c.json", LIST_AGENTS, TURN, REFUSED).read_text("utf-8")
    assert text == (
        """\
{
  "flux0_cassette": 1,
  "exchanges": [
    {
      "request": {
        "method": "GET",
        "path": "/api/agents",
        "headers": {
          "accept": "application/json"
        }
      },
      "response": {
        "after": 0.25,
        "status_code": 200,
        "headers": {
          "content-type": "application/json",
          "set-cookie": "***"
        },
        "pieces": [
          {
            "after": 0.5,
            "json": {
              "data": []
            }
          }
        ]
      },
      "end": {"how": "whole", "after": 0.5}
    },
    {
      "request": {
        "method": "POST",
        "path": "/api/sessions/s/events/stream",
        "query": "a=b",
        "headers": {},
        "body": {
          "json": {
            "content": "Hi"
          }
        }
      },
      "response": {
        "after": 0.125,
        "status_code": 200,
        "headers": {
          "content-type": "text/event-stream; charset=utf-8"
        },
        "pieces": [
          {"after": 0, "text": "data: \\"é\\"\\n\\n"},
          {"after": 1.5, "base64": "/w=="}
        ]
      },
      "end": {"how": "ConnectionInterrupted", "after": 2.0}
    },
    {
      "request": {
        "method": "GET",
        "path": "/",
        "headers": {}
      },
      "end": {"how": "ConnectError", "after": 1}
    }
  ]
}
"""
    )
    assert read_cassette(tmp_path / "c.json") == (LIST_AGENTS, TURN, REFUSED)
    assert list(tmp_path.iterdir()) == [tmp_path / "c.json"]


def test_a_cassette_may_be_empty(tmp_path: Path) -> None:
    path = written(tmp_path / "c.json")
    assert path.read_text("utf-8") == '{\n  "flux0_cassette": 1,\n  "exchanges": []\n}\n'
    assert read_cassette(path) == ()


def test_what_is_kept_of_a_request_is_no_secret() -> None:
    headers = Headers((("Authorization", "Bearer secret"), ("Accept", "*/*"), ("X-Key", "secret")))
    url = "https://user:secret@host.example:8080/base/api/agents?a=b%20c"
    assert RecordedRequest.of(Request("GET", url, headers, b"")) == RecordedRequest(
        "GET",
        "/base/api/agents",
        "a=b%20c",
        Headers((("authorization", "***"), ("accept", "*/*"), ("x-key", "***"))),
        None,
    )


def test_every_error_of_a_transport_has_its_name() -> None:
    def kinds(kind: type[TransportError]) -> Iterator[type[TransportError]]:
        yield kind
        for below in kind.__subclasses__():
            yield from kinds(below)

    own = {kind for kind in kinds(TransportError) if kind.__module__ == "flux0.domain.errors"}
    assert set(ERRORS.values()) == own
    assert all(kind.__name__ == name for name, kind in ERRORS.items())


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/json", True),
        ("Application/JSON ; charset=utf-8", True),
        ("application/problem+json", True),
        ("text/html", False),
        ("application/jsonlines", False),
        ("", False),
    ],
)
def test_json_is_told_by_its_media_type(content_type: str, expected: object) -> None:
    assert is_json(Headers((("content-type", content_type),))) is expected


# --- bodies


def body_in_file(path: Path, body: bytes) -> Any:
    """Return how a body of JSON stands in a cassette, after checking that it is read the same."""
    assert LIST_AGENTS.response is not None
    response = evolve(LIST_AGENTS.response, pieces=(Piece(0, body),))
    written(path, evolve(LIST_AGENTS, response=response))
    (exchange,) = read_cassette(path)
    assert exchange.response == response
    (piece,) = json.loads(path.read_bytes())["exchanges"][0]["response"]["pieces"]
    assert piece.pop("after") == 0
    return piece


@pytest.mark.parametrize(
    "body", ['{"é":[1.5,null,true]}', '"\u2028"', "null", '""', "[" * 99 + "]" * 99]
)
def test_json_is_kept_as_json(tmp_path: Path, body: str) -> None:
    assert body_in_file(tmp_path / "c", body.encode()) == {"json": json.loads(body)}


@pytest.mark.parametrize(
    "body",
    [
        '{"a": 1}',  # Its spelling would be lost.
        '{"a":1,"a":2}',
        '"\\u00e9"',
        "1.50",
        "1e999",
        "NaN",
        '"\\ud800"',
        "[" * 100_000,
        "1" * 5000,
        "\ufeff[]",
        "<html>é</html>\r\n\x00\x85\u2028",
        "",
    ],
    ids=lambda body: body[:10],
)
def test_json_that_would_not_come_out_the_same_is_kept_as_text(tmp_path: Path, body: str) -> None:
    assert body_in_file(tmp_path / "c", body.encode()) == {"text": body}


def test_what_is_no_text_is_kept_in_base64(tmp_path: Path) -> None:
    assert body_in_file(tmp_path / "c", b"\xff\x00") == {"base64": "/wA="}


@pytest.mark.parametrize("body", [b'{ "a" : "\\u00e9" }', b'{"a":"\xc3\xa9"}'])
def test_a_request_is_kept_as_json_however_it_is_spelled(tmp_path: Path, body: bytes) -> None:
    path = written(tmp_path / "c", asking("/api/agents", body))
    assert '"a": "é"' in path.read_text("utf-8")
    (exchange,) = read_cassette(path)
    assert exchange.request.body == '{"a":"é"}'.encode()


texts = st.text(st.characters(exclude_categories=["Cs"]))
seconds = st.floats(min_value=0, allow_infinity=False) | st.integers(min_value=0)
bodies = st.binary() | texts.map(str.encode) | st.sampled_from([b"[1]", b'{"a":"\n"}', b'{"a":""}'])
headers = st.builds(
    Headers,
    st.lists(
        st.tuples(st.sampled_from(["content-type", "x"]), st.just("application/json") | texts),
        unique_by=lambda pair: pair[0],
    ).map(tuple),
)
responses = st.builds(
    RecordedResponse,
    seconds,
    st.integers(100, 599),
    headers,
    st.lists(st.builds(Piece, seconds, bodies)).map(tuple),
)
requests = st.builds(RecordedRequest, texts, texts, texts, headers, st.none() | bodies)
exchanges = st.builds(
    Exchange,
    requests,
    responses,
    st.builds(End, st.sampled_from([WHOLE, CLOSED, *ERRORS]), seconds),
) | st.builds(
    Exchange, requests, st.none(), st.builds(End, st.sampled_from([CLOSED, *ERRORS]), seconds)
)


@given(st.lists(exchanges, max_size=3))
def test_what_is_written_is_read_again(exchanges: list[Exchange]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "c.json")
        read = read_cassette(written(path, *exchanges))
        assert read_cassette(written(path, *read)) == read
    for before, after in zip(exchanges, read, strict=True):
        assert after == evolve(before, request=evolve(before.request, body=after.request.body))
        if before.request.body != after.request.body:
            assert before.request.body is not None
            assert after.request.body is not None
            assert json.loads(before.request.body) == json.loads(after.request.body)


# --- writing


def test_a_cassette_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = written(tmp_path / "c.json", LIST_AGENTS)

    def failing() -> Iterator[bytes]:
        yield formatted(TURN)
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011 - it is the one above
        write_cassette(path, failing())
    assert read_cassette(path) == (LIST_AGENTS,)
    assert read_cassette(written(path, TURN)) == (TURN,)


# --- what is no cassette


def test_a_cassette_that_is_not_there_is_told_with_how_to_record_it(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    with pytest.raises(CassetteError) as caught:
        read_cassette(path)
    assert isinstance(caught.value, Flux0Error)
    assert str(caught.value) == (
        f"there is no cassette {path}: record it by running this code over "
        f"RecordingTransport(transport, {str(path)!r})"
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"interactions:\n- request:\n", "is no cassette, or a broken one: Expecting value"),
        (b'{"flux0_cassette": 1, "exch', "is no cassette, or a broken one: Unterminated string"),
        (b"\xff\xfe", "is no cassette, or a broken one"),
        (b"[" * 100_000, "is no cassette, or a broken one"),
        (b"[]", "is JSON, but no cassette of flux0: it has no 'flux0_cassette'"),
        (b'{"log": {"version": "1.2"}}', "is JSON, but no cassette of flux0"),
        (
            b'{"flux0_cassette": 2}',
            "is a cassette of version 2, and this flux0 reads version 1: re",
        ),
        (b'{"flux0_cassette": 1}', ": exchanges is missing"),
        (b'{"flux0_cassette": 1, "exchanges": {}}', ": exchanges must be a list, and is {}"),
    ],
)
def test_what_is_no_cassette_is_told(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(CassetteError) as caught:
        read_cassette(path)
    assert str(caught.value).startswith(str(path))
    assert problem in str(caught.value)


def replaced(path: Path, place: str, value: object) -> None:
    """Put `value` at a place of a cassette; None takes away what is there."""
    root = json.loads(path.read_bytes())
    *steps, last = (int(step) if step.isdigit() else step for step in place.split("."))
    node = root
    for step in steps:
        node = node[step]
    if value is None:
        del node[last]
    else:
        node[last] = value
    path.write_text(json.dumps(root), "utf-8")


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        ("exchanges.0", "x", 'exchanges[0] must be an object, and is "x"'),
        ("exchanges.0.request", None, "exchanges[0].request is missing"),
        ("exchanges.0.request.method", 1, "exchanges[0].request.method must be a text, and is 1"),
        ("exchanges.0.request.headers.x", 1, "exchanges[0].request.headers.x must be a text"),
        ("exchanges.0.response.after", True, "response.after must be a number of seconds"),
        ("exchanges.0.response.after", "1", 'must be a number of seconds, and is "1"'),
        ("exchanges.0.response.status_code", True, "response.status_code must be a status"),
        ("exchanges.0.response.status_code", 200.5, "response.status_code must be a status"),
        ("exchanges.0.response.pieces.0.json", None, "pieces[0].text is missing"),
        ("exchanges.0.response.pieces.0.json", [float("nan")], "pieces[0] must be what can be"),
        ("exchanges.0.response.pieces.0.json", "\ud800", "pieces[0] must be what can be sent"),
        ("exchanges.1.response.pieces.0.text", "\ud800", "pieces[0] must be what can be sent"),
        ("exchanges.1.response.pieces.1.base64", "/w=", "pieces[1] must be what can be sent"),
        ("exchanges.1.response.pieces.1.base64", 1, "pieces[1].base64 must be a text"),
        ("exchanges.1.end.how", "ValueError", "must be one of whole, closed, ConnectError, "),
        ("exchanges.2.end.how", "whole", "exchanges[2].end.how must be one of closed, Conn"),
    ],
)
def test_what_is_wrong_with_a_cassette_is_told(
    tmp_path: Path, place: str, value: object, problem: str
) -> None:
    path = written(tmp_path / "c.json", LIST_AGENTS, TURN, REFUSED)
    replaced(path, place, value)
    with pytest.raises(CassetteError) as caught:
        read_cassette(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value)


def test_what_a_cassette_has_besides_is_ignored(tmp_path: Path) -> None:
    path = written(tmp_path / "c.json", LIST_AGENTS)
    replaced(path, "exchanges.0.request.note", "Some comment")
    assert read_cassette(path) == (LIST_AGENTS,)
