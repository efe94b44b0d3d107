"""What a turn has said so far, event by event."""

from __future__ import annotations

from typing import Any

from flux0.domain.enums import EventSource, SessionStatus
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.messages.transcript import Transcript
from flux0.domain.models import ContentPart, MessageData, StatusData, ToolCallPart
from flux0.domain.stream_events import ChunkEvent, JSONPatchOperation, StatusEvent, UnknownEvent


def chunk(value: Any, *, path: str = "/-", event_id: str = "m", **metadata: Any) -> ChunkEvent:
    named = {"agent_id": "a", "agent_name": "Drizzle", **metadata}
    return ChunkEvent("t", event_id, 0, (JSONPatchOperation("add", path, value),), named)


def status(name: SessionStatus | str, data: Any = None) -> StatusEvent:
    return StatusEvent("", "t", EventSource.AI_AGENT, StatusData(name, data=data))


def parts(messages: tuple[TurnMessage, ...]) -> list[Any]:
    return [
        part for one in messages if isinstance(one.data, MessageData) for part in one.data.parts
    ]


def test_nothing_was_said_before_the_first_event() -> None:
    transcript = Transcript()

    assert (transcript.text, transcript.status, transcript.error) == ("", None, None)
    assert transcript.messages == transcript.finish() == ()


def test_each_event_leaves_its_text_alone() -> None:
    transcript = Transcript()
    texts: list[str] = []

    for event in (
        status(SessionStatus.PROCESSING),
        chunk("Let me see", event_id="r", kind="reasoning"),
        chunk("It "),
        status(SessionStatus.TYPING),
        chunk("is"),
        UnknownEvent("newer", "{}"),
        chunk({"no": "text"}),
    ):
        transcript.take(event)
        texts.append(transcript.text)

    assert texts == ["", "", "It ", "", "is", "", ""]


def test_the_status_is_the_last_one_known_or_not() -> None:
    transcript = Transcript()

    seen: list[SessionStatus | str | None] = []
    for event in (status(SessionStatus.PROCESSING), chunk("a"), status("dreaming")):
        transcript.take(event)
        seen.append(transcript.status)

    assert seen == [SessionStatus.PROCESSING, SessionStatus.PROCESSING, "dreaming"]
    assert transcript.error is None


def test_an_error_stays_whatever_follows_and_the_last_one_counts() -> None:
    transcript = Transcript()
    first, second = (status(SessionStatus.ERROR, {"detail": n}) for n in (1, 2))

    transcript.take(first)
    transcript.take(status(SessionStatus.PROCESSING))
    transcript.take(chunk("a"))
    assert transcript.error is first
    assert transcript.status is SessionStatus.PROCESSING
    transcript.take(second)
    assert transcript.error is second


def test_messages_are_as_of_the_last_event() -> None:
    transcript = Transcript()

    transcript.take(chunk("a"))
    before = transcript.messages
    transcript.take(chunk("b"))

    assert parts(before) == [ContentPart("a")]
    assert parts(transcript.messages) == parts(transcript.finish()) == [ContentPart("ab")]


def test_arguments_that_never_became_json_are_shown_and_not_stored() -> None:
    transcript = Transcript()
    call = {"type": "tool_call", "tool_call_id": "1", "tool_name": "weather", "args": ['{"ci']}

    transcript.take(chunk(call, path="/tool_calls/0"))

    assert parts(transcript.messages) == [ToolCallPart("1", "weather", '{"ci')]
    assert transcript.finish() == ()
