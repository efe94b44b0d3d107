"""The steps of a turn that a chat component shows, from the events of the turn."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from itertools import count
from operator import attrgetter
from typing import Any, Final, NamedTuple, TypeAlias

from attrs import define, evolve, field

from flux0.domain.enums import SessionStatus
from flux0.domain.errors import AgentError, Flux0Error
from flux0.domain.json_text import json_text
from flux0.domain.messages.accumulator import MessageAccumulator
from flux0.domain.messages.finalizing import REASONING
from flux0.domain.stored_models import ContentPart, MessageData, ToolCall, ToolCallPart, ToolData
from flux0.domain.stream_events import ChunkEvent, StatusEvent, StreamEvent
from flux0.relay_format import RelayEncoder

# The path at which an agent appends to the arguments of a tool call.
_ARGS: Final = re.compile("/tool_calls/([0-9]{1,4})/args/-")
# The paths at which an agent adds or names tool calls, or adds results.
_ITEMS: Final = re.compile("(/tool_calls(/[^/]+(/tool_name)?)?|/tool_call_results(/[^/]+)?)?")
# A message is rebuilt for each of the first added calls and results, up to this number, and then
# when it is settled.
_MAX_REBUILDS: Final = 100


class Step(NamedTuple):
    """One step of a turn.

    The types are `run`, before the first event; `start`, at the first event; `K-start`, `K-delta`
    and `K-end` of a text part, where K is `text` or `reasoning`; `call-start`, `call-delta`,
    `call-end`, `call-invalid` and `call-result` of a tool call; `content`; `status`; `finish`; and
    `error`.

    Attributes:
        type: The type.
        id: The id of the turn, text part or tool call, or of the message with the content.
        value: The added text, the complete arguments, the result, the content, the status with its
            data, or the problem.
        name: The name of the tool, or the class of the error.
    """

    type: str
    id: str = ""
    value: Any = None
    name: str = ""


# The JSON objects of each type of steps; none if a type is missing. If a value in an object is a
# function, it is called with the step.
Templates: TypeAlias = Mapping[str, Sequence[Mapping[str, Any]]]
ID, VALUE, NAME = map(attrgetter, ("id", "value", "name"))


@define
class _StreamedCall:
    id: str
    name: str
    length: int = 0  # The number of characters in its arguments so far.
    is_open: bool = True
    has_result: bool = False

    def step(self, type: str, value: Any = None) -> Step:
        return Step(f"call-{type}", self.id, value, self.name)


@define
class _Message:
    id: str
    kind: str
    texts: list[str] = field(factory=list[str])
    calls: dict[int, _StreamedCall] = field(factory=dict[int, _StreamedCall])
    open_text: str = ""  # The id of the open text part.
    is_settled: bool = False
    rebuilds: int = 0


class StepEncoder(RelayEncoder):
    """Folds the events of one turn into steps, and encodes the steps with the templates.

    A text part ends when the next message begins. If agents write several messages at the same
    time, a message may have several text parts. JSON content is encoded when the next message
    begins, and again at the end of the turn if the message has changed.

    Args:
        templates: The JSON objects of each type of steps.
        last: The bytes after the last step.
    """

    def __init__(self, templates: Templates, *, last: bytes = b"") -> None:
        self._templates, self._last = templates, last
        self._accumulator = MessageAccumulator()
        self._messages: dict[str, _Message] = {}
        self._calls: dict[str, _StreamedCall] = {}
        self._text_numbers = count(1)
        self._is_started = self._is_ended = False

    def start(self) -> bytes:
        """Encode the begin of the relay."""
        return self._encoded([Step("run")])

    def event(self, event: StreamEvent) -> bytes:
        """Encode the steps of a chunk or a status. After an error of the agent, there are none."""
        # A later version of flux0 may know further classes of events.
        if self._is_ended or not isinstance(event, (ChunkEvent, StatusEvent)):
            return b""
        start = b"" if self._is_started else self._encoded([Step("start", event.correlation_id)])
        self._is_started = True
        if isinstance(event, ChunkEvent):
            return start + self._encoded(self._chunk(event))
        if event.status == SessionStatus.ERROR:
            return start + self.error(AgentError(event.data.data))
        status = {"status": event.status, "data": event.data.data}
        return start + self._encoded([Step("status", value=status)])

    def error(self, error: Flux0Error, number: int | None = None) -> bytes:  # noqa: ARG002 - part of the port
        """Encode the rest of each message, and the error."""
        return self._end(Step("error", value=error.problem, name=type(error).__name__))

    def end(self) -> bytes:
        """Encode the rest of each message, and the end."""
        return self._end(Step("finish"))

    def _encoded(self, steps: Iterable[Step]) -> bytes:
        return b"".join(
            f"data: {json_text(_filled(template, step), compact=True)}\n\n".encode()
            for step in steps
            for template in self._templates.get(step.type, ())
        )

    def _end(self, last: Step) -> bytes:
        if self._is_ended:
            return b""
        self._is_ended = True
        rest = [step for message in self._messages.values() for step in self._settle(message)]
        invalid = (call.step("invalid") for call in self._calls.values() if call.is_open)
        return self._encoded([*rest, *invalid, last]) + self._last

    def _chunk(self, event: ChunkEvent) -> Iterator[Step]:
        message = self._messages.get(event.event_id)
        if message is None:
            if self._messages:
                yield from self._settle(next(reversed(self._messages.values())))
            kind = "text"
            if event.metadata.get("kind") == REASONING:
                # The accumulator returns only the added text of answers.
                kind, event = REASONING, evolve(event, metadata={**event.metadata, "kind": None})
            message = self._messages[event.event_id] = _Message(event.event_id, kind)
        message.is_settled = False
        if text := self._accumulator.feed(event):
            # Several operations in the first chunk may replace a part of the text that they append.
            is_appended = message.texts or len(event.patches) == 1
            yield from self._text(message, text) if is_appended else self._items(message)
            return
        for operation in event.patches:
            path = _ARGS.fullmatch(operation.path)
            if path and (call := message.calls.get(int(path[1]))):
                yield from _append(call, operation.value)
        is_added = any(_ITEMS.fullmatch(operation.path) for operation in event.patches)
        if is_added and message.rebuilds < _MAX_REBUILDS:
            message.rebuilds += 1
            yield from self._items(message, partial=True)

    def _settle(self, message: _Message) -> Iterator[Step]:
        if not message.is_settled:
            message.is_settled = True
            yield from self._items(message)
            yield from self._close_text(message)

    def _text(self, message: _Message, text: str) -> Iterator[Step]:
        if not message.open_text:
            message.open_text = f"{message.id}-{next(self._text_numbers)}"
            yield Step(f"{message.kind}-start", message.open_text)
        message.texts.append(text)
        yield Step(f"{message.kind}-delta", message.open_text, text)

    def _close_text(self, message: _Message) -> Iterator[Step]:
        if message.open_text:
            yield Step(f"{message.kind}-end", message.open_text)
            message.open_text = ""

    def _items(self, message: _Message, *, partial: bool = False) -> Iterator[Step]:
        """Yield the steps for tool calls and results and, if not `partial`, for the content."""
        # With `partial=False`, a call with incomplete arguments would hide the other calls.
        final = self._accumulator.message(message.id, partial=True)
        data = None if final is None else final.data
        for item in data.tool_calls if isinstance(data, ToolData) else ():
            call = yield from self._call(item)
            yield from _complete(call, item.args)
            if not call.has_result:
                call.has_result = True
                yield call.step("result", item.result and item.result.data)
        for index, part in enumerate(data.parts if isinstance(data, MessageData) else ()):
            if isinstance(part, ToolCallPart):
                call = message.calls[index] = yield from self._call(part)
                if isinstance(part.args, str):
                    yield from _append(call, part.args[call.length :])
                else:
                    yield from _complete(call, part.args)
            elif isinstance(part, ContentPart) and not partial:
                if not isinstance(part.content, str):
                    yield Step("content", message.id, part.content)
                elif part.content not in {"", "".join(message.texts)}:  # The text was replaced.
                    yield from self._close_text(message)
                    message.texts.clear()
                    yield from self._text(message, part.content)

    def _call(self, item: ToolCall | ToolCallPart) -> Generator[Step, None, _StreamedCall]:
        """Return the call with the id of `item`. If there is none, start it."""
        call_id = str(item.tool_call_id)
        if call_id not in self._calls:
            self._calls[call_id] = call = _StreamedCall(call_id, str(item.tool_name))
            yield call.step("start")
        return self._calls[call_id]


def _filled(template: Mapping[str, Any], step: Step) -> dict[str, Any]:
    return {key: item(step) if callable(item) else item for key, item in template.items()}


def _append(call: _StreamedCall, text: Any) -> Iterator[Step]:
    if call.is_open and text and isinstance(text, str):
        call.length += len(text)
        yield call.step("delta", text)


def _complete(call: _StreamedCall, args: Any) -> Iterator[Step]:
    if call.is_open:
        if not call.length:
            yield call.step("delta", json_text(args, compact=True))
        call.is_open = False
        yield call.step("end", args)
