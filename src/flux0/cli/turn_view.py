"""Showing a conversation: text, reasoning, tool calls, statuses; whole, or while it streams in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from rich.style import Style

from flux0 import ChunkEvent, SessionStatus, StatusEvent
from flux0.cli.output import BOLD, DIM, PLAIN, RED, Output
from flux0.cli.wording import (
    LONGEST_ARGS,
    Item,
    call_in_words,
    content_in_words,
    items_of,
    result_in_words,
    status_in_words,
)
from flux0.models import (
    ContentPart,
    EventData,
    ReasoningPart,
    StreamEvent,
    ToolCall,
    ToolCallPart,
    TurnMessage,
)

_REASONING = Style(dim=True, italic=True)
_CALL = Style(color="cyan")
_INDENT = "  "

# The paths of text that is appended or replaced, and of tools' calls and results.
_TEXT = re.compile(r"(/(-|\d+))?")
_TOOLS = "/tool_call"


class Blocks:
    """Writes blocks one below the other, with a blank line where something else begins.

    Args:
        answer: where what the agent answers goes.
        aside: where all else goes.
    """

    def __init__(self, answer: Output, aside: Output) -> None:
        self._answer = answer
        self._aside = aside
        self._last_call = ""

    def user(self, text: str) -> None:
        """Write what the user said."""
        self._aside.begin("user")
        self._aside.write(text, BOLD, mark="> ")

    def status(self, status: str, data: Any) -> None:
        """Write what the agent is doing, with what it says about that."""
        self._aside.begin("status")
        style = RED if status == SessionStatus.ERROR else DIM
        self._aside.write(status_in_words(status, data), style, mark="· ")

    def message(self, data: EventData, message_id: str) -> None:
        """Write all of a message, or of the results of tools."""
        for place, item in enumerate(items_of(data)):
            self.item(item, f"{message_id}/{place}")

    def item(self, item: Item, message_id: str) -> None:
        """Write a part of a message, or the result of a tool.

        Content, and so reasoning, goes on where that of the same message was left.
        """
        match item:
            case ToolCallPart():
                self._aside.begin("tool")
                self._last_call = item.tool_call_id
                self._aside.write(call_in_words(item), _CALL, mark="• ")
            case ToolCall():
                self._aside.begin("tool")
                name = "" if item.tool_call_id == self._last_call else f"{item.tool_name}: "
                style = PLAIN if item.error is None else RED
                self._aside.write(name + result_in_words(item), style, mark=_INDENT)
            case ReasoningPart(reasoning):
                self._aside.begin("reasoning", message_id)
                self._aside.write(content_in_words(reasoning), _REASONING)
            case _:
                content = item.content if isinstance(item, ContentPart) else item
                self._answer.begin("text", message_id)
                self._answer.write(content_in_words(content))

    def end(self) -> None:
        """End the line, and begin anew with whatever comes next."""
        self._answer.end()
        self._aside.end()


class TurnView:
    """Writes a turn while it streams in.

    Text is appended as it comes. A tool's call is written once its arguments are there, or enough
    of them to fill a line or two; a result once there is one. What cannot be appended, such as
    structured content, is written when the message is over: another one begins, a status comes, or
    the turn ends.

    Args:
        blocks: what to write with.
        messages: returns the turn's messages as they stand after the event that is shown.
    """

    def __init__(self, blocks: Blocks, messages: Callable[[], Iterable[TurnMessage]]) -> None:
        self._blocks = blocks
        self._messages = messages
        self._current = ""  # The message that the last chunk was of.
        self._shown: dict[tuple[str, int], str] = {}  # The text that is shown, by message and part.
        self._is_waiting = False  # Whether a tool's call or result has come that is not shown yet.

    def show(self, event: StreamEvent) -> None:
        """Write what an event adds."""
        if isinstance(event, ChunkEvent):
            if event.event_id != self._current:
                self._show_new(is_over=True)
                self._current = event.event_id
            if self._is_worth_a_look(event):
                self._show_new(is_over=False)
            return
        self._show_new(is_over=True)
        if isinstance(event, StatusEvent):
            self._blocks.status(event.status, event.data.data)
        else:
            self._blocks.status(event.event, event.data)

    def end(self) -> None:
        """Write what is left, and end the line."""
        self._show_new(is_over=True)
        self._blocks.end()

    def _is_worth_a_look(self, event: ChunkEvent) -> bool:
        """Whether a chunk may bring what can be shown at once.

        Most pieces of structured content and of long arguments bring nothing, and rebuilding the
        message for each of them would cost more the longer it is.
        """
        return any(
            _TEXT.fullmatch(patch.path)
            or (
                patch.path.startswith(_TOOLS)
                and (self._is_waiting or not isinstance(patch.value, str))
            )
            for patch in event.patches
        )

    def _show_new(self, *, is_over: bool) -> None:
        self._is_waiting = False
        items = (items_of(each.data) for each in self._messages() if each.event_id == self._current)
        for place, item in enumerate(next(items, ())):
            key = (self._current, place)
            if isinstance(item, (ContentPart, ReasoningPart)):
                self._show_content(item, key, is_over=is_over)
            elif key not in self._shown:
                if is_over or _says_enough(item):
                    self._shown[key] = ""
                    self._blocks.item(item, self._current)
                else:
                    self._is_waiting = True

    def _show_content(
        self, part: ContentPart | ReasoningPart, key: tuple[str, int], *, is_over: bool
    ) -> None:
        content = part.content if isinstance(part, ContentPart) else part.reasoning
        if not is_over and not isinstance(content, str):
            return
        shown, text = self._shown.get(key, ""), content_in_words(content)
        message_id = self._current
        if not text.startswith(shown):
            if not is_over:
                return
            # It was rewritten. What is on the terminal stays there, so it is said again.
            shown, message_id = "", f"{message_id}/rewritten"
        if text != shown:
            self._blocks.item(type(part)(text[len(shown) :]), message_id)
        self._shown[key] = text


def _says_enough(item: Item) -> bool:
    """Whether a tool's call or result can be shown although more may come."""
    if isinstance(item, ToolCall):
        return item.result is not None and item.result.data is not None
    if isinstance(item, ToolCallPart):
        return not isinstance(item.args, str) or len(item.args) > LONGEST_ARGS
    return False
