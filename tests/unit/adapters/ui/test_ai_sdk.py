"""`AiSdkFormat`: the chunks of each kind of message, errors, and the stream's end."""

from __future__ import annotations

from typing import Any

import pytest

from flux0 import Flux0
from flux0.adapters.ui import AgUiFormat, AiSdkFormat
from flux0.domain.background_errors import RelayEnded, TurnStopped
from flux0.domain.errors import StreamInterrupted
from flux0.domain.stream_events import StreamEvent, UnknownEvent
from flux0.relay_format import RelayFormat, general_text
from support import in_memory
from support.in_memory import CORRELATION_ID, close_delimited, script
from support.ui import args, call, chunk, objects_of, pieces_of, result, status_event, text

START = {"type": "start", "messageId": CORRELATION_ID}
END = [{"type": "finish", "finishReason": "stop"}, "[DONE]"]
CALL = {"toolCallId": "c", "dynamic": True, "providerExecuted": True}
TOOL = {**CALL, "toolName": "weather"}


def chunks_of(*events: StreamEvent) -> list[Any]:
    """Return the chunks of a turn, without the start and the end."""
    first, *chunks, finish, done = objects_of(AiSdkFormat(), *events)
    assert (first, [finish, done]) == (START, END)
    return chunks


def test_headers_announce_the_stream() -> None:
    assert AiSdkFormat.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert AiSdkFormat.headers["content-type"] == "text/event-stream"


def test_text_is_streamed_piece_by_piece() -> None:
    assert chunks_of(text("Hé"), text("llo")) == [
        {"type": "text-start", "id": "m-1"},
        {"type": "text-delta", "id": "m-1", "delta": "Hé"},
        {"type": "text-delta", "id": "m-1", "delta": "llo"},
        {"type": "text-end", "id": "m-1"},
    ]


def test_reasoning_ends_when_the_next_message_begins() -> None:
    assert chunks_of(text("Hm", "r", kind="reasoning"), text("m", "r"), text("Hi")) == [
        {"type": "reasoning-start", "id": "r-1"},
        {"type": "reasoning-delta", "id": "r-1", "delta": "Hm"},
        {"type": "reasoning-delta", "id": "r-1", "delta": "m"},
        {"type": "reasoning-end", "id": "r-1"},
        {"type": "text-start", "id": "m-2"},
        {"type": "text-delta", "id": "m-2", "delta": "Hi"},
        {"type": "text-end", "id": "m-2"},
    ]


def test_tool_call_is_streamed_and_gets_its_result() -> None:
    assert chunks_of(call([]), args('{"city"'), args(': "SF"}'), result({"sky": "é"})) == [
        {"type": "tool-input-start", **TOOL},
        {"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": '{"city"'},
        {"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": ': "SF"}'},
        {"type": "tool-input-available", **TOOL, "input": {"city": "SF"}},
        {"type": "tool-output-available", **CALL, "output": {"sky": "é"}},
    ]


def test_tool_call_with_invalid_arguments_is_an_error() -> None:
    assert chunks_of(call([]), args('{"city"'))[-1] == {
        "type": "tool-input-error",
        **TOOL,
        "input": None,
        "errorText": "the arguments are not valid JSON",
    }


def test_json_content_and_statuses_are_data() -> None:
    status = {"status": "typing", "data": {"detail": 1}}
    event = status_event("typing", {"detail": 1})
    assert objects_of(AiSdkFormat(), event, chunk("/rows", [1, float("nan")])) == [
        {"type": "data-status", "data": status, "transient": True},
        START,
        {"type": "data-content", "id": "m", "data": {"rows": [1, None]}},
        *END,
    ]


def test_turn_with_statuses_only_starts_no_message() -> None:
    chunks = objects_of(AiSdkFormat(), status_event("typing"), status_event("ready"))
    assert [each["type"] for each in chunks[:-1]] == ["data-status", "data-status", "finish"]


def test_failed_turn_ends_with_an_error_after_its_messages() -> None:
    assert objects_of(AiSdkFormat(), text("Half"), error=StreamInterrupted("gone"))[-3:] == [
        {"type": "text-end", "id": "m-1"},
        {"type": "error", "errorText": general_text(StreamInterrupted("gone"))},
        "[DONE]",
    ]


def test_stopped_turn_is_aborted_without_an_error() -> None:
    stopped = TurnStopped("the turn was stopped")
    assert objects_of(AiSdkFormat(), text("Half"), error=stopped)[-3:] == [
        {"type": "text-end", "id": "m-1"},
        {"type": "abort", "reason": "the turn was stopped"},
        "[DONE]",
    ]


def test_relay_that_the_application_ends_asks_the_page_to_connect_again() -> None:
    assert objects_of(AiSdkFormat(), text("Half"), error=RelayEnded("restart"))[-3:] == [
        {"type": "data-reconnect", "data": {}, "transient": True},
        {"type": "error", "errorText": "restart"},
        "[DONE]",
    ]


def test_error_of_the_agent_ends_the_turn() -> None:
    events: list[StreamEvent] = [
        text("Half"),
        status_event("error", "no model"),
        text(" lost"),
        status_event("ok"),
    ]
    *_, end, error, done = objects_of(AiSdkFormat(), *events)
    assert end == {"type": "text-end", "id": "m-1"}
    assert error == {"type": "error", "errorText": "The agent reported an error"}
    assert done == "[DONE]"


def test_function_chooses_the_text_of_an_error() -> None:
    shown = AiSdkFormat(error_text=lambda error: f"Sorry: {error.problem}")
    (*_, error, _) = objects_of(shown, status_event("error", "no model"))
    assert error["errorText"] == "Sorry: the agent reported an error: no model"


def test_unknown_events_are_left_out() -> None:
    assert pieces_of(AiSdkFormat(), [UnknownEvent("note", "{}")])[:-1] == [b"", b""]
    assert objects_of(AiSdkFormat(), UnknownEvent("note", "{}")) == END


def test_turn_without_events_that_fails_has_only_the_error() -> None:
    error = StreamInterrupted("gone")
    assert objects_of(AiSdkFormat(), error=error) == [
        {"type": "error", "errorText": general_text(StreamInterrupted("gone"))},
        "[DONE]",
    ]


def test_members_that_the_ai_sdk_rejects_are_left_out() -> None:
    value: Any = {
        "a": 1,
        "__proto__": {},
        "constructor": {"prototype": {}},
        "b": [{"__proto__": 1}],
    }
    safe = {"a": 1, "b": [dict[str, Any]()]}
    status, _, _, _, available, output, content, *_ = objects_of(
        AiSdkFormat(),
        status_event("typing", value),
        call(value),
        result(value),
        chunk("/rows", value),
    )
    assert status["data"]["data"] == safe
    assert (available["input"], output["output"], content["data"]) == (safe, safe, {"rows": safe})
    kept: list[Any] = [{"constructor": 1}, {"constructor": {}, "prototype": 1}]
    (_, data, *_) = objects_of(AiSdkFormat(), chunk("/rows", kept))
    assert data["data"] == {"rows": kept}


@pytest.mark.parametrize(
    ("format", "end"),
    [(AiSdkFormat(), b"data: [DONE]"), (AgUiFormat("t", "r"), b'"code":"DecodeError"}')],
)
@pytest.mark.parametrize("levels", [201, 5_000, 100_000])
def test_turn_with_an_event_that_is_nested_too_deeply_ends_with_an_error(
    format: RelayFormat, end: bytes, levels: int
) -> None:
    nested = in_memory.status("typing").replace(b"null", b"[" * levels + b"]" * levels, 1)
    server = script(close_delimited(in_memory.chunk("Half"), nested))
    with Flux0(transport=server) as flux0:
        stream = flux0.sessions.create_event(session_id="s", content="Hi")
        relayed = b"".join(stream.relay(format=format))
    assert b"Half" in relayed
    assert general_text(StreamInterrupted("gone")).encode() in relayed
    assert relayed.strip().endswith(end)
