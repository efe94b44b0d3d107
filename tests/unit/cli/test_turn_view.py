"""The output of a turn while it streams, if standard output is not a terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, ClassVar, cast

import pytest
from attrs import frozen

from flux0 import ChunkEvent, MessageAccumulator, StatusEvent, UnknownEvent, models
from flux0.cli.output import Output
from flux0.cli.turn_view import TurnView

_AGENT = {"agent_id": "a", "agent_name": "Drizzle"}
MAGIC: dict[str, Any] = {"type": "magic", "tool_call_id": "1", "tool_name": "spell", "args": {}}

View = Callable[..., str]


@frozen
class Bell:
    """A class of events without data, as a later version of flux0 may have."""

    event: ClassVar[str] = "bell"
    type: ClassVar[str] = "bell"


def new_view() -> TurnView:
    output = Output()
    return TurnView(output, output)


@pytest.fixture(autouse=True)
def _no_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the output plain text, in any environment."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture
def view(capsys: pytest.CaptureFixture[str]) -> View:
    """Shows events, and returns the output. If `end` is True, then ends the turn."""
    accumulator = MessageAccumulator()
    turn = new_view()

    def show(*events: models.StreamEvent, end: bool = False) -> str:
        for event in events:
            accumulator.feed(event)
            turn.show(event, accumulator)
        if end:
            turn.finish(accumulator)
        return capsys.readouterr().out

    return show


def chunk(
    path: str,
    value: Any,
    event_id: str = "m",
    *more: tuple[str, Any],
    op: str = "add",
    **metadata: str,
) -> ChunkEvent:
    patches = ((path, value), *more)
    return ChunkEvent(
        correlation_id="t",
        event_id=event_id,
        seq=0,
        patches=tuple(models.JSONPatchOperation(op, path, value) for path, value in patches),
        metadata={**_AGENT, **metadata},
    )


def text(value: str, event_id: str = "m", **metadata: str) -> ChunkEvent:
    return chunk("/-", value, event_id, **metadata)


def status(name: str, data: Any = None) -> StatusEvent:
    return StatusEvent("", "t", "ai_agent", models.StatusData(name, data=data))


def call(args: Any, event_id: str = "c", number: int = 0) -> ChunkEvent:
    named = {"tool_call_id": f"call-{number}", "tool_name": "get_weather"}
    return chunk(f"/tool_calls/{number}", {"type": "tool_call", **named, "args": args}, event_id)


def piece(args: str, number: int = 0) -> ChunkEvent:
    return chunk(f"/tool_calls/{number}/args/-", args, "c")


def result(value: Any, event_id: str = "r", number: int = 0) -> ChunkEvent:
    named = {"tool_call_id": f"call-{number}", "tool_name": "get_weather", "args": {"a": 1}}
    return chunk("/tool_call_results", [{**named, "data": {"result": value}}], event_id)


# --- text


def test_text_and_reasoning_are_written_when_they_arrive(view: View) -> None:
    assert view(text("Let me ", kind="reasoning"), text("see", kind="reasoning")) == "Let me see"
    assert view(text("It ", "n")) == "\n\nIt "
    assert view(text("rains", "n")) == "rains"
    assert view(end=True) == "\n"


@pytest.mark.parametrize(
    ("events", "shown"),
    [
        ([text("One"), text("Two", "n"), text("!", "n")], "One\n\nTwo!\n"),
        ([text("a1 "), text("b1 ", "n"), text("a2"), text("b2", "n")], "a1 \n\nb1 \n\na2\n\nb2\n"),
        ([chunk("/-", "a", "m", ("/-", "b")), text("c")], "abc\n"),
        ([chunk("/-", "")], ""),
        ([UnknownEvent("progress", "half")], "· progress: half\n"),
        ([cast("models.StreamEvent", Bell())], "· bell\n"),
    ],
)
def test_messages_are_separated_by_blank_lines(
    view: View, events: list[models.StreamEvent], shown: str
) -> None:
    assert view(*events, end=True) == shown


@pytest.mark.parametrize(
    ("events", "shown"),
    [
        (
            [chunk("/sky", "foggy"), chunk("/celsius", 16)],
            '{\n  "sky": "foggy",\n  "celsius": 16\n}\n',
        ),
        ([chunk("/a", math.nan)], '{\n  "a": null\n}\n'),
        ([chunk("/tool_callers", 2)], '{\n  "tool_callers": 2\n}\n'),
        ([chunk("/tool_calls/0", MAGIC)], json.dumps(MAGIC, indent=2) + "\n"),
    ],
)
def test_structured_content_is_written_as_json_when_the_message_is_complete(
    view: View, events: list[models.StreamEvent], shown: str
) -> None:
    assert view(*events) == ""
    assert view(end=True) == shown


def test_control_characters_are_escaped(view: View) -> None:
    shown = "a\\x1b[31m\\x9b\\x07b\nc\td\\u202ee\\u2066f\u2028g\n"
    assert view(text("a\x1b[31m\x9b\x07b\r\nc\td\u202ee\u2066f\u2028g"), end=True) == shown


@pytest.mark.parametrize("kind", ["", "reasoning"])
def test_replaced_text_is_written_again_when_the_message_is_complete(view: View, kind: str) -> None:
    assert view(text("It rain", kind=kind)) == "It rain"
    assert view(chunk("/0", "It snows", op="replace", kind=kind)) == ""
    assert view(text(".", "n")) == "\n\nIt snows\n\n."
    assert view(text("!", kind=kind), end=True) == "\n\n!\n"


@pytest.mark.parametrize("kind", ["", "reasoning"])
def test_replacement_that_extends_the_text_is_written_when_it_arrives(
    view: View, kind: str
) -> None:
    assert view(text("It rain", kind=kind)) == "It rain"
    assert view(chunk("", ["It rains"], kind=kind, op="replace")) == "s"
    assert view(end=True) == "\n"


def test_message_of_the_next_turn_may_have_the_same_id(capsys: pytest.CaptureFixture[str]) -> None:
    turn = new_view()
    for word in ("Rain", "Sun"):
        accumulator, event = MessageAccumulator(), text(word)
        accumulator.feed(event)
        turn.show(event, accumulator)
        assert capsys.readouterr().out == word
        turn.finish(accumulator)
        assert capsys.readouterr().out == "\n"


# --- tools


def test_tool_call_is_written_when_its_arguments_are_complete(view: View) -> None:
    assert view(call([]), piece('{"location": "San '), piece("Fran")) == ""
    assert view(piece('cisco"}')) == '• get_weather(location="San Francisco")'
    assert view(end=True) == "\n"


def test_long_arguments_are_shortened_before_they_are_complete(view: View) -> None:
    assert view(call([]), piece('{"code": "')) == ""
    assert view(piece("x" * 391)) == f'• get_weather({{"code": "{"x" * 390}… (1 more characters))'
    assert view(piece("y" * 1000), piece('"}'), end=True) == "\n"


def test_incomplete_arguments_are_written_when_the_message_is_complete(view: View) -> None:
    assert view(call([]), piece('{"a": ')) == ""
    assert view(status("typing")) == '• get_weather({"a": )\n\n· typing'


def test_text_is_not_repeated_after_ctrl_c_while_it_is_written(
    view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Output.write

    def write_and_interrupt(output: Output, *args: Any, **options: Any) -> None:
        write(output, *args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Output, "write", write_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            view(text("Foggy"))
    assert view(end=True) == "Foggy\n"


def test_tool_calls_of_a_message_are_written_separately(view: View) -> None:
    assert view(call({})) == "• get_weather()"
    assert view(call([], number=1), piece("{", 1)) == ""
    assert view(piece("}", 1)) == "\n• get_weather()"


def test_result_is_written_below_its_call(view: View) -> None:
    shown = view(call({"days": [1], "where": None, "odd": math.inf, "city": "Zürich"}))
    assert shown == '• get_weather(days=[1], where=null, odd=null, city="Zürich")'
    assert view(result({"sky": "trüb"})) == '\n  {"sky": "trüb"}'
    assert view(text("Foggy")) == "\n\nFoggy"
    assert view(call({}, "c2"), result("x" * 2000, "r2")).endswith("x… (800 more characters)")


def test_result_that_does_not_follow_its_call_is_written_with_the_name_of_the_tool(
    view: View,
) -> None:
    calls = view(call({}), call({}, number=1), result("a\nb"))
    assert calls == "• get_weather()\n• get_weather()\n  get_weather: a\n  b"


def test_null_result_is_written_when_the_message_is_complete(view: View) -> None:
    assert view(call({}), result(None)) == "• get_weather()"
    assert view(end=True) == "\n  null\n"


def test_error_of_a_tool_is_written_in_red_as_its_result(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    failed = models.ToolCall("call-0", "get_weather", {}, error="no such place")
    new_view().message(models.ToolData((failed,)), "r")
    assert capsys.readouterr().out == "\x1b[1;31m  get_weather: no such place\x1b[0m"


# --- statuses and stored messages


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, ""),
        ("", ""),
        ({}, ""),
        ({"detail": ""}, ""),
        ("thinking", ": thinking"),
        ({"detail": "thinking"}, ": thinking"),
        ({"detail": 1}, ': {"detail": 1}'),
        ({"detail": "thinking", "step": 1}, ': {"detail": "thinking", "step": 1}'),
        ({"step": 1, "of": 2}, ': {"step": 1, "of": 2}'),
    ],
)
def test_status_is_written_with_its_data(view: View, data: Any, words: str) -> None:
    assert view(status("processing", data), end=True) == f"· processing{words}\n"


def test_status_begins_on_a_new_line(view: View) -> None:
    events = status("processing"), text("Hi"), status("typing"), status("error", "boom")
    assert view(*events, end=True) == "· processing\nHi\n\n· typing\n· error: boom\n"


def test_stored_message_is_written_part_by_part(capsys: pytest.CaptureFixture[str]) -> None:
    view = new_view()
    parts = (
        models.ContentPart("a"),
        models.ContentPart(""),
        models.ContentPart("b"),
        models.ToolCallPart("1", "look", {}),
        {"type": "new"},
    )
    view.message(models.MessageData(parts), "m")
    view.message(models.StatusData("typing"), "s")
    expected = 'a\n\n\nb\n\n• look()\n\n{\n  "type": "new"\n}'
    assert capsys.readouterr().out == expected
