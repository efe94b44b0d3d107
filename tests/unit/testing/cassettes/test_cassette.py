"""Cassette files: their format, their content, and the errors for damaged files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from attrs import evolve
from hypothesis import given, settings, strategies as st

import flux0.testing
from flux0.domain.errors import TransportError
from flux0.domain.headers import Headers
from flux0.models import Flux0Error
from flux0.ports import Request
from flux0.testing import CassetteError, ClockStandsStill, NotRecorded
from flux0.testing.cassettes.cassette import (
    CLOSED,
    ERRORS,
    WHOLE,
    CassetteFile,
    RecordedExchange,
    RecordedRequest,
    RecordedResponse,
    read_cassette,
    to_content,
)
from flux0.testing.cassettes.recording import recorded_request
from flux0.testing.fake.validation import is_json
from support.cassettes import LIST_AGENTS, piece, posting, without_root, write_cassette

SSE = {"content-type": "text/event-stream; charset=utf-8"}

TURN = RecordedExchange(
    posting("/api/sessions/s/events/stream", b'{"content":"Hi"}', query="a=b").request,
    "ConnectionInterrupted",
    2.0,
    RecordedResponse(0.125, 200, SSE, (piece(0, b'data: "\xc3\xa9"\n\n'), piece(1.5, b"\xff"))),
)

REFUSED = RecordedExchange(RecordedRequest("GET", "/", {}), "ConnectError", 1)


def test_cassette_is_readable_json(tmp_path: Path) -> None:
    text = write_cassette(tmp_path / "c.json", LIST_AGENTS, TURN, REFUSED).read_text("utf-8")
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
      "end": "whole",
      "after": 0.5,
      "response": {
        "after": 0.25,
        "status_code": 200,
        "headers": {
          "content-type": "application/json",
          "set-cookie": "***"
        },
        "pieces": [
          {
            "json": {
              "data": []
            },
            "after": 0.5
          }
        ]
      }
    },
    {
      "request": {
        "method": "POST",
        "path": "/api/sessions/s/events/stream",
        "headers": {},
        "query": "a=b",
        "body": {
          "json": {
            "content": "Hi"
          }
        }
      },
      "end": "ConnectionInterrupted",
      "after": 2.0,
      "response": {
        "after": 0.125,
        "status_code": 200,
        "headers": {
          "content-type": "text/event-stream; charset=utf-8"
        },
        "pieces": [
          {
            "text": "data: \\"é\\"\\n\\n"
          },
          {
            "base64": "/w==",
            "after": 1.5
          }
        ]
      }
    },
    {
      "request": {
        "method": "GET",
        "path": "/",
        "headers": {}
      },
      "end": "ConnectError",
      "after": 1
    }
  ]
}
"""
    )
    assert read_cassette(tmp_path / "c.json") == (LIST_AGENTS, TURN, REFUSED)
    assert list(tmp_path.iterdir()) == [tmp_path / "c.json"]


def test_exchanges_are_read_in_the_order_of_sending(tmp_path: Path) -> None:
    first, second = evolve(TURN, number=1), evolve(LIST_AGENTS, number=2)
    assert read_cassette(write_cassette(tmp_path / "c.json", second, first)) == (first, second)


def test_recorded_request_has_no_credentials() -> None:
    headers = Headers((("Authorization", "Bearer secret"), ("Accept", "*/*"), ("X-Key", "secret")))
    url = "https://user:secret@host.example:8080/base/api/agents?a=b%20c"
    assert recorded_request(Request("GET", url, headers, b""), None) == RecordedRequest(
        "GET",
        "/base/api/agents",
        {"authorization": "***", "accept": "*/*", "x-key": "***"},
        "a=b%20c",
    )


def test_each_transport_error_can_be_recorded_by_name() -> None:
    def kinds(kind: type[TransportError]) -> Iterator[type[TransportError]]:
        yield kind
        for below in kind.__subclasses__():
            yield from kinds(below)

    own = {kind for kind in kinds(TransportError) if kind.__module__ == "flux0"}
    assert set(ERRORS.values()) == own
    assert all(kind.__name__ == name for name, kind in ERRORS.items())


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON ; charset=utf-8", "application/problem+json"],
)
def test_json_media_types_are_json(content_type: str) -> None:
    assert is_json(content_type)


@pytest.mark.parametrize("content_type", ["text/html", "application/jsonlines", "text/xjson", ""])
def test_other_media_types_are_not_json(content_type: str) -> None:
    assert not is_json(content_type)


# --- bodies


AS_JSON = ['{"é":[1.5,null,true]}', '"\u2028"', "null", '""', "[" * 99 + "]" * 99]
AS_TEXT = [  # Most bodies are JSON, but encoding the parsed value would not return the same bytes.
    *('{"a": 1}', '{"a":1,"a":2}', '"\\u00e9"', "1.50", "1e999", "NaN", '"\\ud800"', "[" * 100_000),
    *("1" * 5000, "\ufeff[]", "<html>é</html>\r\n\x00\x85\u2028", ""),
]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        *((body.encode(), {"json": json.loads(body)}) for body in AS_JSON),
        *((body.encode(), {"text": body}) for body in AS_TEXT),
        (b"\xff\x00", {"base64": "/wA="}),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_body_is_stored_in_the_first_form_that_keeps_its_bytes(
    tmp_path: Path, body: bytes, expected: object
) -> None:
    assert LIST_AGENTS.response is not None
    response = evolve(LIST_AGENTS.response, pieces=(piece(0, body, as_json=True),))
    path = write_cassette(tmp_path / "c", evolve(LIST_AGENTS, response=response))
    (exchange,) = read_cassette(path)
    assert exchange.response is not None
    assert exchange.response == response
    assert exchange.response.pieces[0].data == body
    (kept,) = json.loads(path.read_bytes())["exchanges"][0]["response"]["pieces"]
    assert kept == expected


def test_body_of_any_depth_can_be_stored(tmp_path: Path) -> None:
    for depth in (199, 200, 201, 900):
        body = b"[" * depth + b"]" * depth
        path = write_cassette(tmp_path / str(depth), posting("/", body))
        (exchange,) = read_cassette(path)
        assert exchange.request.body is not None
        assert (exchange.request.body.text is None) is (depth <= 200)
        assert exchange.request.body.data == body


@pytest.mark.parametrize("body", [b'{ "a" : "\\u00e9" }', b'{"a":"\xc3\xa9"}'])
def test_request_body_is_stored_as_json_in_any_formatting(tmp_path: Path, body: bytes) -> None:
    request = recorded_request(Request("POST", "http://h/", Headers(()), body), None)
    path = write_cassette(tmp_path / "c", evolve(LIST_AGENTS, request=request))
    assert '"a": "é"' in path.read_text("utf-8")
    (exchange,) = read_cassette(path)
    assert exchange.request.body is not None
    assert exchange.request.body.data == '{"a":"é"}'.encode()


texts = st.text(st.characters(exclude_categories=["Cs"]))
seconds = st.floats(min_value=0, allow_infinity=False) | st.integers(min_value=0)
bodies = st.binary() | texts.map(str.encode) | st.sampled_from([b"[1]", b'{"a":"\n"}', b'{"a":""}'])
headers = st.dictionaries(
    st.sampled_from(["content-type", "x"]), st.just("application/json") | texts
)


pieces = st.builds(piece, seconds, bodies, as_json=st.booleans())
contents = st.builds(to_content, bodies, as_json=st.sampled_from([True]), exact=st.booleans())
responses = st.builds(
    RecordedResponse, seconds, st.integers(100, 599), headers, st.lists(pieces).map(tuple)
)
requests = st.builds(RecordedRequest, texts, texts, headers, texts, st.none() | contents)
exchanges = st.builds(
    RecordedExchange, requests, st.sampled_from([WHOLE, CLOSED, *ERRORS]), seconds, responses
) | st.builds(RecordedExchange, requests, st.sampled_from([CLOSED, *ERRORS]), seconds)


@settings(deadline=None)
@given(st.lists(exchanges, max_size=3))
def test_written_exchanges_are_read_unchanged(exchanges: list[RecordedExchange]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "c.json")
        assert read_cassette(write_cassette(path, *exchanges)) == tuple(exchanges)


# --- writing


def test_cost_of_append_does_not_depend_on_the_file_size(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    file = CassetteFile(path)
    sizes: list[int] = []
    for _ in range(50):
        file.append(TURN)
        sizes.append(path.stat().st_size)
    assert len({after - before for before, after in pairwise(sizes)}) == 1
    assert len(read_cassette(path)) == 50


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_deferred_recording_has_its_own_file_until_it_is_kept(
    tmp_path: Path, exists: bool, keep: bool
) -> None:
    path = tmp_path / "c.json"
    if exists:
        write_cassette(path, REFUSED)
    file = CassetteFile(path)
    settle = file.defer()
    file.append(TURN)
    assert file.finish() is None
    assert len({*tmp_path.iterdir()} - {path}) == 1
    assert path.exists() is exists
    settle(keep)
    assert [*tmp_path.iterdir()] == [path] * (exists or keep)
    assert not path.exists() or read_cassette(path) == ((TURN,) if keep else (REFUSED,))
    file.append(REFUSED)
    if exists:  # A call that ends later does not change the old cassette.
        assert read_cassette(path) == ((TURN, REFUSED) if keep else (REFUSED,))


def test_warning_names_only_failures_that_the_old_cassette_does_not_have(tmp_path: Path) -> None:
    path = write_cassette(tmp_path / "c.json", REFUSED)
    assert TURN.response is not None
    busy = evolve(TURN, end=WHOLE, response=evolve(TURN.response, status_code=400))
    known = CassetteFile(path)
    known.append(REFUSED)
    assert known.finish() is None
    file = CassetteFile(path)
    for each in (REFUSED, TURN, busy, busy):
        file.append(each)
    assert "failed (ConnectionInterrupted, status 400): see " in str(file.finish())
    assert read_cassette(path) == (REFUSED,)
    assert len(read_cassette(tmp_path / "c.json.new")) == 4
    path.write_bytes(b"{")
    damaged = CassetteFile(path)
    damaged.append(REFUSED)
    assert "was not replaced, because the new recording failed (Con" in str(damaged.finish())


def test_file_is_recorded_once_at_a_time_also_under_another_path(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    first = CassetteFile(tmp_path / "c.json")
    with pytest.raises(CassetteError, match="is being recorded already"):
        CassetteFile(tmp_path / "link" / "c.json")
    first.finish()
    CassetteFile(tmp_path / "link" / "c.json")


# --- damaged files


def test_cassette_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    path = write_cassette(tmp_path / "folder" / "c.json", REFUSED)
    (tmp_path / "loop.json").symlink_to("loop.json")
    unreadable = {
        path / "c.json": "Not a directory",
        path.parent: "Is a directory",
        tmp_path / "loop.json": "Too many levels of symbolic links",
        tmp_path / f"{'a' * 300}.json": "File name too long",
    }
    for each, problem in unreadable.items():
        with pytest.raises(CassetteError, match=f" cannot be read: {problem}"):
            read_cassette(each)
    read_cassette(path)
    for locked in (path, path.parent):
        locked.chmod(0)
        with without_root(), pytest.raises(CassetteError, match="cannot be read: Permission den"):
            read_cassette(path)
        locked.chmod(0o700)


def test_error_for_a_missing_cassette_says_how_to_record_it(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    with pytest.raises(CassetteError) as caught:
        read_cassette(path)
    assert isinstance(caught.value, Flux0Error)
    assert str(caught.value) == (
        f"cassette {path} does not exist: to record it, run this code with "
        f"RecordingTransport(transport, {str(path)!r})"
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            b"interactions:\n- request:\n",
            "is not a cassette, or it is damaged: not JSON (Expecting",
        ),
        (b'{"flux0_cassette": 1, "exch', "or it is damaged: not JSON (Unterminated string"),
        (b"\xff\xfe", "is not a cassette, or it is damaged"),
        (b"[" * 100_000, "is not a cassette, or it is damaged"),
        (b"[]", "is not a cassette, or it is damaged"),
        (b'{"log": {"version": "1.2"}}', "is not a cassette, or it is damaged: flux0_cassette: is"),
        (
            b'{"flux0_cassette": 2}',
            "has version 2 of the cassette format, but this version of flux0 reads only version 1",
        ),
        (b'{"flux0_cassette": 1}', "damaged: exchanges: is missing"),
        (b'{"flux0_cassette": 1, "exchanges": {}}', "exchanges: expected "),
    ],
)
def test_file_that_is_not_a_cassette_is_an_error(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(CassetteError) as caught:
        read_cassette(path)
    assert str(caught.value).startswith(str(path))
    assert problem in str(caught.value)
    advice = f"ecord it again, run this code with RecordingTransport(transport, {str(path)!r})"
    assert advice in str(caught.value)


def replace(path: Path, place: str, value: object) -> None:
    """Replace the value at `place` in a cassette, or delete it if `value` is None."""
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
        ("exchanges.0", "x", "exchanges[0]: expected "),
        ("exchanges.0.request", None, "exchanges[0].request: is missing"),
        ("exchanges.0.request.method", 1, "exchanges[0].request.method: expected "),
        ("exchanges.0.request.headers", 1, "exchanges[0].request.headers: "),
        ("exchanges.0.request.headers", {"a": 1}, "exchanges[0].request.headers: expected a str"),
        ("exchanges.0.response.headers", {"a": "b", "server": ["x"]}, "headers: expected a str"),
        ("exchanges.0.response.after", True, "exchanges[0].response.after: expected a number"),
        ("exchanges.0.response.status_code", 200.5, "exchanges[0].response.status_code: expected "),
        (
            "exchanges.0.response.pieces.0.json",
            None,
            "pieces[0]: must have one of the keys json, text and base64",
        ),
        ("exchanges.0.response.pieces.0.json", [float("nan")], "exchanges[0].response.pieces[0]: "),
        ("exchanges.0.response.pieces.0.json", "\ud800", "exchanges[0].response.pieces[0]: "),
        ("exchanges.1.response.pieces.0.text", "\ud800", "exchanges[1].response.pieces[0]: "),
        ("exchanges.1.response.pieces.1.base64", "/w=", "exchanges[1].response.pieces[1]: "),
        ("exchanges.1.response.pieces.1.base64", "/w=\u00e9=", "exchanges[1].response.pieces[1]: "),
        ("exchanges.1.response.pieces.1.base64", "/w-==", "exchanges[1].response.pieces[1]: "),
        ("exchanges.1.end", "ValueError", "exchanges[1]: end must be one of whole, closed"),
        (
            "exchanges.2.end",
            "whole",
            "exchanges[2]: end must not be 'whole' if there is no response",
        ),
    ],
)
def test_error_names_the_damaged_place(
    tmp_path: Path, place: str, value: object, problem: str
) -> None:
    path = write_cassette(tmp_path / "c.json", LIST_AGENTS, TURN, REFUSED)
    replace(path, place, value)
    with pytest.raises(CassetteError) as caught:
        read_cassette(path)
    assert str(caught.value).startswith(f"{path} is not a cassette, or it is damaged: ")
    assert problem in str(caught.value)


def test_cassette_without_bodies_is_checked(tmp_path: Path) -> None:
    path = write_cassette(tmp_path / "c.json", REFUSED)
    for end, problem in (("ValueError", "end must be one of"), (WHOLE, "there is no response")):
        replace(path, "exchanges.0.end", end)
        with pytest.raises(CassetteError, match=f"damaged: exchanges.0.: .*{problem}"):
            read_cassette(path)


def test_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    path = write_cassette(tmp_path / "c.json", LIST_AGENTS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_cassette(path) == (LIST_AGENTS,)


def test_errors_are_printed_with_their_public_module() -> None:
    for error in (CassetteError, NotRecorded, ClockStandsStill):
        assert getattr(flux0.testing, error.__name__) is error
        assert error.__module__ == "flux0.testing"


def test_unknown_members_are_ignored(tmp_path: Path) -> None:
    path = write_cassette(tmp_path / "c.json", LIST_AGENTS)
    replace(path, "exchanges.0.request.note", "Some comment")
    assert read_cassette(path) == (LIST_AGENTS,)
