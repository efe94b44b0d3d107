"""The blocks that a conversation is shown in: text, reasoning, tool calls, statuses."""

from __future__ import annotations

from typing import Any

from rich.style import Style

from flux0.cli.output import BOLD, DIM, PLAIN, RED, Output
from flux0.cli.wording import (
    Item,
    call_in_words,
    content_in_words,
    items_of,
    result_in_words,
    status_in_words,
)
from flux0.models import ContentPart, EventData, ReasoningPart, ToolCall, ToolCallPart

_REASONING = Style(dim=True, italic=True)
_CALL = Style(color="cyan")
_INDENT = "  "


class Blocks:
    """Writes blocks one below the other, with a blank line where something else begins."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._last_kind = ""
        self._last_message = ""
        self._last_call = ""

    def text(self, text: str, message_id: str) -> None:
        """Write text of the agent's; more of the same message goes on where it was left."""
        self._begin("text", message_id)
        self._output.write(text)

    def reasoning(self, text: str, message_id: str) -> None:
        """Write what the agent thinks, likewise."""
        self._begin("reasoning", message_id)
        self._output.write(text, _REASONING)

    def user(self, text: str) -> None:
        """Write what the user said."""
        self._begin("user")
        self._write_line("> ", text, BOLD)

    def status(self, status: str, data: Any) -> None:
        """Write what the agent is doing, with what it says about that."""
        self._begin("status")
        self._write_line("· ", status_in_words(status, data), DIM)

    def error(self, status: str, data: Any) -> None:
        """Write a status that says that something went wrong."""
        self._begin("status")
        self._write_line("· ", status_in_words(status, data), RED)

    def call(self, call: ToolCallPart) -> None:
        """Write that the agent asks for a tool."""
        self._begin("tool")
        self._last_call = call.tool_call_id
        self._write_line("• ", call_in_words(call), _CALL)

    def result(self, call: ToolCall) -> None:
        """Write what a tool gave back: below its call, or else with its name."""
        self._begin("tool")
        name = "" if call.tool_call_id == self._last_call else f"{call.tool_name}: "
        style = PLAIN if call.error is None else RED
        self._write_line(_INDENT, name + result_in_words(call), style)

    def message(self, data: EventData, message_id: str) -> None:
        """Write all of a message, or of the results of tools."""
        for place, item in enumerate(items_of(data)):
            self.item(item, f"{message_id}/{place}")

    def item(self, item: Item, message_id: str) -> None:
        """Write a part of a message, or the result of a tool."""
        match item:
            case ToolCall():
                self.result(item)
            case ToolCallPart():
                self.call(item)
            case ReasoningPart(reasoning):
                self.reasoning(content_in_words(reasoning), message_id)
            case ContentPart(content):
                self.text(content_in_words(content), message_id)
            case _:
                self.text(content_in_words(item), message_id)

    def end(self) -> None:
        """End the line, and begin anew with whatever comes next."""
        self._output.end_line()
        self._last_kind = ""

    def _begin(self, kind: str, message_id: str = "") -> None:
        last = self._last_kind
        if message_id and (kind, message_id) == (last, self._last_message):
            return
        self._output.end_line()
        if last in {"text", "reasoning"} or (last == "tool" != kind):
            self._output.write("\n")
        self._last_kind, self._last_message = kind, message_id

    def _write_line(self, mark: str, text: str, style: Style) -> None:
        self._output.write(mark + text.replace("\n", f"\n{_INDENT}"), style, indent=_INDENT)
