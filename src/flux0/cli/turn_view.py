"""Showing a turn while it streams in."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import Factory, define

from flux0 import ChunkEvent, MessageAccumulator, SessionStatus, StatusEvent
from flux0.cli.blocks import Blocks
from flux0.cli.wording import LONGEST_ARGS, Item, content_in_words, items_of
from flux0.models import ContentPart, ReasoningPart, StreamEvent, ToolCall, ToolCallPart

_REASONING = "reasoning"
_TOOLS = "/tool_call"  # What begins the paths of tools' calls, and of their results.


@define(eq=False)
class _Message:
    """What is shown of one message.

    Attributes:
        id: names it in the stream.
        is_reasoning: whether the agent thinks it rather than says it.
        texts: what was shown of its text.
        tools: which of its tools' calls or results were shown, by their places in it.
        is_waiting: whether it has a tool call that is not shown yet.
        is_behind: whether anything came that was not shown as it came.
    """

    id: str
    is_reasoning: bool
    texts: list[str] = Factory(list[str])
    tools: set[int] = Factory(set[int])
    is_waiting: bool = False
    is_behind: bool = False


class TurnView:
    """Writes the events of one turn as they come, each at the cost of what it brings.

    Text is appended. A tool's call is written once its arguments are there, or enough of them to
    fill a line or two; a result once there is one. What cannot be appended, such as structured
    content, is written when the message is over: another one begins, a status comes, or the turn
    ends.
    """

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._accumulator = MessageAccumulator()
        self._messages: dict[str, _Message] = {}
        self._current: _Message | None = None

    def show(self, event: StreamEvent) -> None:
        """Write what an event adds."""
        if isinstance(event, ChunkEvent):
            self._chunk(event)
            return
        self._catch_up()
        if not isinstance(event, StatusEvent):
            self._blocks.status(event.event, event.data)
        elif event.status == SessionStatus.ERROR:
            self._blocks.error(event.status, event.data.data)
        else:
            self._blocks.status(event.status, event.data.data)

    def end(self) -> None:
        """Write what is left, and end the line."""
        self._catch_up()
        self._blocks.end()

    def _chunk(self, event: ChunkEvent) -> None:
        message = self._messages.get(event.event_id)
        if message is None:
            is_reasoning = event.metadata.get("kind") == _REASONING
            message = self._messages[event.event_id] = _Message(event.event_id, is_reasoning)
        if message is not self._current:
            self._catch_up()
            self._current = message
        text = self._accumulator.feed(event)
        if message.is_reasoning:
            text = _appended(event)
        if text:
            self._append(message, text)
        if len(event.patches) > 1 or not text:
            message.is_behind = True
            if _concerns_tools(event, message):
                self._show_new(message, is_over=False)

    def _append(self, message: _Message, text: str) -> None:
        message.texts.append(text)
        if message.is_reasoning:
            self._blocks.reasoning(text, message.id)
        else:
            self._blocks.text(text, message.id)

    def _catch_up(self) -> None:
        message = self._current
        if message is not None and message.is_behind:
            message.is_behind = False
            self._show_new(message, is_over=True)

    def _show_new(self, message: _Message, *, is_over: bool) -> None:
        message.is_waiting = False
        for place, item in enumerate(self._items(message)):
            if isinstance(item, (ContentPart, ReasoningPart)):
                if is_over:
                    self._show_content(message, item)
            elif place in message.tools:
                continue
            elif is_over or _says_enough(item):
                message.tools.add(place)
                self._blocks.item(item, message.id)
            else:
                message.is_waiting = True

    def _show_content(self, message: _Message, part: ContentPart | ReasoningPart) -> None:
        content = part.content if isinstance(part, ContentPart) else part.reasoning
        text, shown = content_in_words(content), "".join(message.texts)
        if text == shown:
            return
        if text.startswith(shown):
            self._append(message, text[len(shown) :])
        else:  # It was rewritten. What is on the terminal stays there, so it is said again.
            self._blocks.item(part, f"{message.id}/rewritten")
            message.texts = [text]

    def _items(self, message: _Message) -> Sequence[Item]:
        messages = self._accumulator.messages
        found = (items_of(each.data) for each in messages if each.event_id == message.id)
        return next(found, ())


def _appended(event: ChunkEvent) -> str:
    """Return the text that a chunk appends, if that is all it does."""
    texts = [
        patch.value
        for patch in event.patches
        if patch.op == "add" and patch.path == "/-" and isinstance(patch.value, str)
    ]
    return "".join(texts) if len(texts) == len(event.patches) else ""


def _concerns_tools(event: ChunkEvent, message: _Message) -> bool:
    """Whether a chunk may bring a tool's call or result that can be shown.

    A piece of the arguments of a call that is shown brings nothing.
    """
    return any(
        patch.path.startswith(_TOOLS) and (message.is_waiting or not isinstance(patch.value, str))
        for patch in event.patches
    )


def _says_enough(item: Item) -> bool:
    """Whether a tool's call or result can be shown although more may come."""
    if isinstance(item, ToolCall):
        return item.result is not None and item.result.data is not None
    if isinstance(item, ToolCallPart):
        return not isinstance(item.args, str) or len(item.args) > LONGEST_ARGS
    return False
