"""What a fake server answers, before it becomes a response."""

from __future__ import annotations

from attrs import frozen

from flux0.domain.headers import Headers
from flux0.testing.fake.turn import FakeTurn


@frozen
class FakeAnswer:
    """An answer whose body is there, or is the stream of a turn."""

    status_code: int
    headers: Headers
    body: bytes | FakeTurn = b""


def whole_answer(status_code: int, content_type: str, body: bytes) -> FakeAnswer:
    """Return an answer whose body is there."""
    fields = (("content-length", str(len(body))), ("content-type", content_type))
    return FakeAnswer(status_code, Headers(fields), body)
