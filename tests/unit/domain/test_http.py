"""Rules of HTTP: statuses, event streams, and the framing of bodies."""

from __future__ import annotations

import pytest

from flux0.domain.headers import Headers
from flux0.domain.http import (
    framing_problem,
    is_event_stream,
    is_framed,
    is_rejected,
    is_success,
    version_problem,
)


@pytest.mark.parametrize(
    ("start", "problem"),
    [
        *((b"", None), (b"HT", None), (b"HTTP/1.1 200 OK\r\n", None), (b"HTTP/1.0 ", None)),
        *((b"HTTP/2 200", "it starts with 'HTTP/2 200'"), (b"X", "it starts with 'X'")),
        (b"\xff" * 100, f"it starts with {chr(255) * 40!r}"),
    ],
)
def test_start_of_a_response_with_another_version_is_a_problem(
    start: bytes, problem: str | None
) -> None:
    assert version_problem(start) == problem


def test_statuses_prove_success_or_rejection() -> None:
    statuses = range(100, 600)
    assert [status for status in statuses if is_success(status)] == [*range(200, 300)]
    rejected = [status for status in statuses if is_rejected(status)]
    assert rejected == [*range(400, 408), *range(409, 500)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream ; charset=utf-8", True),
        ("text/event-stream2", False),
        ("application/json; a=text/event-stream", False),
        (None, False),
    ],
)
def test_event_stream_is_recognized_by_its_media_type(value: str | None, *, expected: bool) -> None:
    headers = Headers(() if value is None else (("Content-Type", value),))
    assert is_event_stream(headers) is expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, False),
        ({"content-length": "0"}, True),
        ({"transfer-encoding": "Chunked "}, True),
        ({"transfer-encoding": "gzip, chunked"}, True),
        ({"transfer-encoding": "chunked, gzip"}, False),
        ({"transfer-encoding": "gzip", "content-length": "5"}, False),
        ({"content-encoding": "gzip"}, False),
    ],
    ids=str,
)
def test_end_of_a_body_is_proven_by_its_framing(fields: dict[str, str], *, expected: bool) -> None:
    assert is_framed(fields) is expected


@pytest.mark.parametrize(
    ("length", "coding", "problem"),
    [
        (None, None, None),
        ("0", None, None),
        ("5, 5,5", None, None),
        (None, "Chunked\t", None),
        ("5, 6", None, "one number of bytes, not '5, 6'"),
        ("٣", None, "one number of bytes"),
        ("", None, "one number of bytes, not ''"),
        ("5", "chunked", "both"),
        (None, "chunked, chunked", "must be chunked, not 'chunked, chunked'"),
    ],
)
def test_ambiguous_framing_is_a_problem(
    length: str | None, coding: str | None, problem: str | None
) -> None:
    found = framing_problem(length, coding)
    assert found is None if problem is None else problem in (found or "")
