"""Showing a conversation: text, reasoning, tool calls, statuses; whole, or while it streams in."""

from __future__ import annotations

import re

from rich.style import Style

from flux0 import ChunkEvent, EventStream, MessageAccumulator, SessionStatus, StatusEvent, models
from flux0.cli import wording
from flux0.cli.output import BOLD, DIM, PLAIN, RED, Output
from flux0.models import ContentPart, ReasoningPart, ToolCall, ToolCallPart

_REASONING = Style(dim=True, italic=True)
_CALL = Style(color="cyan")
_INDENT = "  "

# The paths of text that is appended or replaced, and of tools' calls and results.
_TEXT = re.compile(r"(/(-|\d+))?")
_TOOLS = "/tool_call"


class TurnView:
    """Writes what is said, block by block, with a blank line where something else begins.

    While a turn streams in, text is appended as it comes. A tool's call is written once its
    arguments are there, or enough of them to fill a line or two; a result once there is one. What
    cannot be appended, such as structured content, is written when the message is over: another
    one begins, a status comes, or the turn ends. All but the text of answers is written aside.
    """

    def __init__(self, answer: Output, aside: Output) -> None:
        self._answer = answer
        self._aside = aside
        self._last_call = ""
        self._current = ""  # The message that the last chunk was of.
        self._shown: dict[tuple[str, int], str] = {}  # The text that is shown, by message and part.
        self._is_waiting = False  # Whether a tool's call or result has come that is not shown yet.

    def user(self, text: str) -> None:
        """Write what the user said."""
        self._aside.begin("user")
        self._aside.write(text, BOLD, mark="> ")

    def message(self, data: models.EventData, message_id: str) -> None:
        """Write all of a message, or of the results of tools."""
        for place, item in enumerate(wording.items_of(data)):
            self._item(item, f"{message_id}/{place}")

    def show(self, event: models.StreamEvent, turn: EventStream | MessageAccumulator) -> None:
        """Write what an event adds to its turn, which has taken it in."""
        if isinstance(event, ChunkEvent):
            if event.event_id != self._current:
                self._show_new(turn, is_over=True)
                self._current = event.event_id
            if any(map(self._may_show, event.patches)):
                self._show_new(turn, is_over=False)
            return
        self._show_new(turn, is_over=True)
        status, data = event.event, event.data
        if isinstance(event, StatusEvent):
            status, data = event.status, event.data.data
        style = RED if status == SessionStatus.ERROR else DIM
        self._aside.begin("status")
        self._aside.write(wording.status_in_words(status, data), style, mark="· ")

    def end(self, turn: EventStream | MessageAccumulator | None = None) -> None:
        """Write what is left of a turn, end the line, and begin anew with whatever comes next."""
        if turn is not None:
            self._show_new(turn, is_over=True)
        self._shown.clear()
        self._answer.end()
        self._aside.end()

    def _item(self, item: wording.Item, message_id: str) -> None:
        match item:
            case ToolCallPart():
                self._aside.begin("tool")
                self._last_call = item.tool_call_id
                self._aside.write(wording.call_in_words(item), _CALL, mark="• ")
            case ToolCall():
                self._aside.begin("tool")
                name = "" if item.tool_call_id == self._last_call else f"{item.tool_name}: "
                style = PLAIN if item.error is None else RED
                self._aside.write(name + wording.result_in_words(item), style, mark=_INDENT)
            case ReasoningPart(reasoning):
                self._aside.begin("reasoning", message_id)
                self._aside.write(wording.in_words(reasoning, indent=2), _REASONING)
            case _:
                content = item.content if isinstance(item, ContentPart) else item
                self._answer.begin("text", message_id)
                self._answer.write(wording.in_words(content, indent=2))

    def _may_show(self, patch: models.JSONPatchOperation) -> bool:
        """Whether a patch may bring what can be shown although its message is not over.

        Pieces of structured content and of long arguments do not, and rebuilding the message for
        each of them costs more the longer it is.
        """
        if patch.path.startswith(_TOOLS):
            return self._is_waiting or not isinstance(patch.value, str)
        return _TEXT.fullmatch(patch.path) is not None

    def _show_new(self, turn: EventStream | MessageAccumulator, *, is_over: bool) -> None:
        self._is_waiting = False
        data = (message.data for message in turn.messages if message.event_id == self._current)
        for place, item in enumerate(wording.items_of(next(data, None))):
            key = (self._current, place)
            if isinstance(item, (ContentPart, ReasoningPart)):
                self._show_content(item, key, is_over=is_over)
            elif key not in self._shown:
                if is_over or _says_enough(item):
                    self._shown[key] = ""
                    self._item(item, self._current)
                else:
                    self._is_waiting = True

    def _show_content(
        self, part: ContentPart | ReasoningPart, key: tuple[str, int], *, is_over: bool
    ) -> None:
        content = part.content if isinstance(part, ContentPart) else part.reasoning
        if not is_over and not isinstance(content, str):
            return
        message_id = key[0]
        text, shown = wording.in_words(content, indent=2), self._shown.get(key, "")
        if not text.startswith(shown):
            if not is_over:
                return
            # It was rewritten. What is on the terminal stays there, so it is said again.
            shown, message_id = "", f"{message_id}/rewritten"
        self._shown[key] = text  # Before it is written: Ctrl-C may come right after that.
        if text != shown:
            self._item(type(part)(text[len(shown) :]), message_id)


def _says_enough(item: wording.Item) -> bool:
    """Whether a tool's call or result can be shown although more may come."""
    if isinstance(item, ToolCall):
        return item.result is not None and item.result.data is not None
    if isinstance(item, ToolCallPart):
        return not isinstance(item.args, str) or len(item.args) > wording.LONGEST_ARGS
    return False
