"""Writes turns and stored messages to the terminal."""

from __future__ import annotations

import re

from rich.style import Style

from flux0 import ChunkEvent, EventStream, MessageAccumulator, SessionStatus, StatusEvent, models
from flux0.cli import descriptions
from flux0.cli.output import BOLD, DIM, PLAIN, RED, Output
from flux0.models import ContentPart, ReasoningPart, ToolCall, ToolCallPart

_REASONING = Style(dim=True, italic=True)
_CALL = Style(color="cyan")
_INDENT = "  "

# The pattern `_TEXT` matches the path of a JSON patch that appends text or replaces text.
_TEXT = re.compile(r"(/(-|\d+))?")
# The path of each JSON patch for a tool call or a tool result begins with `_TOOLS`.
_TOOLS = "/tool_call"


class TurnView:
    """Writes messages in blocks, with a blank line between blocks of different kinds.

    Text is written when its chunk event is received. A tool call is written when its arguments are
    complete, or when they exceed `MAX_ARGS_SHOWN` characters. A tool result is written when it is
    complete. Structured content is written at the end of its message. A message ends when the next
    message begins, when a status is received, or when the turn ends.

    Answers are written to `answer`, and everything else to `aside`.
    """

    def __init__(self, answer: Output, aside: Output) -> None:
        self._answer = answer
        self._aside = aside
        self._last_call = ""
        self._current = ""  # The message id of the last chunk event.
        # `_shown` contains the text that was already written for each part of a message. The keys
        # are a message id and the part's index.
        self._shown: dict[tuple[str, int], str] = {}
        # `_is_waiting` is True if a tool call or a tool result was not written yet, because it is
        # incomplete.
        self._is_waiting = False

    def user(self, text: str) -> None:
        self._aside.begin_block("user")
        self._aside.write(text, BOLD, mark="> ")

    def message(self, data: models.EventData, message_id: str) -> None:
        for place, item in enumerate(descriptions.items_of(data)):
            self._item(item, f"{message_id}/{place}")

    def show(self, event: models.StreamEvent, turn: EventStream | MessageAccumulator) -> None:
        if isinstance(event, ChunkEvent):
            if event.event_id != self._current:
                self._show_new(turn, is_complete=True)
                self._current = event.event_id
            if any(map(self._may_show, event.patches)):
                self._show_new(turn, is_complete=False)
            return
        self._show_new(turn, is_complete=True)
        # If a later version of flux0 adds classes of events, these events can have no attribute
        # `data`.
        status, data = event.event, getattr(event, "data", None)
        if isinstance(event, StatusEvent):
            status, data = event.status, event.data.data
        style = RED if status == SessionStatus.ERROR else DIM
        self._aside.begin_block("status")
        self._aside.write(descriptions.describe_status(status, data), style, mark="· ")

    def finish(self, turn: EventStream | MessageAccumulator | None = None) -> None:
        try:
            if turn is not None:
                self._show_new(turn, is_complete=True)
            self._shown.clear()
            self._answer.end_block()
        finally:  # If the pipe of `_answer` is closed, writing to `_answer` raises an error.
            self._aside.end_block()

    def _item(self, item: descriptions.Item, message_id: str) -> None:
        match item:
            case ToolCallPart():
                self._aside.begin_block("tool")
                self._last_call = item.tool_call_id
                self._aside.write(descriptions.describe_call(item), _CALL, mark="• ")
            case ToolCall():
                self._aside.begin_block("tool")
                name = "" if item.tool_call_id == self._last_call else f"{item.tool_name}: "
                style = PLAIN if item.error is None else RED
                self._aside.write(name + descriptions.describe_result(item), style, mark=_INDENT)
            case ReasoningPart(reasoning):
                self._aside.begin_block("reasoning", message_id)
                self._aside.write(descriptions.to_text(reasoning, indent=2), _REASONING)
            case _:
                content = item.content if isinstance(item, ContentPart) else item
                self._answer.begin_block("text", message_id)
                self._answer.write(descriptions.to_text(content, indent=2))

    def _may_show(self, patch: models.JSONPatchOperation) -> bool:
        """Return whether a patch may add content that the terminal can show now.

        Other patches have fragments of structured content, or of a tool call that is already shown.
        After such a patch, do not read `turn.messages`: reading it rebuilds the message, and takes
        longer for longer messages.
        """
        if patch.path.startswith(_TOOLS):
            return self._is_waiting or not isinstance(patch.value, str)
        return _TEXT.fullmatch(patch.path) is not None

    def _show_new(self, turn: EventStream | MessageAccumulator, *, is_complete: bool) -> None:
        self._is_waiting = False
        data = (message.data for message in turn.messages if message.event_id == self._current)
        for place, item in enumerate(descriptions.items_of(next(data, None))):
            key = (self._current, place)
            if isinstance(item, (ContentPart, ReasoningPart)):
                self._show_content(item, key, is_complete=is_complete)
            elif key not in self._shown:
                if is_complete or _can_be_shown(item):
                    self._shown[key] = ""
                    self._item(item, self._current)
                else:
                    self._is_waiting = True

    def _show_content(
        self, part: ContentPart | ReasoningPart, key: tuple[str, int], *, is_complete: bool
    ) -> None:
        content = part.content if isinstance(part, ContentPart) else part.reasoning
        if not is_complete and not isinstance(content, str):
            return
        message_id = key[0]
        text, shown = descriptions.to_text(content, indent=2), self._shown.get(key, "")
        if not text.startswith(shown):
            if not is_complete:
                return
            # The agent has replaced the text that the terminal shows. Write the new text below the
            # old text.
            shown, message_id = "", f"{message_id}/rewritten"
        # Store the text before it is written, because Ctrl-C can interrupt the writing.
        self._shown[key] = text
        if text != shown:
            self._item(type(part)(text[len(shown) :]), message_id)


def _can_be_shown(item: descriptions.Item) -> bool:
    if isinstance(item, ToolCall):
        return item.result is not None and item.result.data is not None
    if isinstance(item, ToolCallPart):
        return not isinstance(item.args, str) or len(item.args) > descriptions.MAX_ARGS_SHOWN
    return False
