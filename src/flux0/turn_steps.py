"""The steps of a turn, the interface for relay formats that you write.

The events of a turn are changes to JSON documents, but a web page shows text, reasoning and tool
calls. Steps describe the changes as such a page needs them: text begins, text is added, a tool is
called, and so on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator
from itertools import count
from typing import Any, Final, Literal, TypeAlias, final

from attrs import define, evolve, field, frozen

from flux0.domain.enums import SessionStatus
from flux0.domain.errors import AgentError, Flux0Error
from flux0.domain.json_text import json_text
from flux0.domain.messages.accumulator import MessageAccumulator
from flux0.domain.messages.finalizing import REASONING
from flux0.domain.stored_models import ContentPart, MessageData, ToolCall, ToolCallPart, ToolData
from flux0.domain.stream_events import ChunkEvent, StatusEvent, StreamEvent
from flux0.relay_format import HEARTBEAT, RelayEncoder, general_text

# The path of a JSON Patch operation that appends to the arguments of a tool call.
_ARGS: Final = re.compile("/tool_calls/([0-9]{1,4})/args/-")
# The paths of JSON Patch operations that add a tool call, name a tool call, or add a tool result.
_ITEMS: Final = re.compile("(/tool_calls(/[^/]+(/tool_name)?)?|/tool_call_results(/[^/]+)?)?")
# Rebuilding a message is slow. While tool calls and results are added to a message, the message is
# rebuilt at most `_MAX_REBUILDS` times. A complete message is rebuilt once more.
_MAX_REBUILDS: Final = 100

_Text: TypeAlias = Literal["text-start", "text-delta", "text-end"]
_Reasoning: TypeAlias = Literal["reasoning-start", "reasoning-delta", "reasoning-end"]
_Call: TypeAlias = Literal["call-start", "call-delta", "call-end", "call-invalid", "call-result"]
_Turn: TypeAlias = Literal["relay-start", "turn-start", "status", "error", "turn-end"]
StepType: TypeAlias = Literal[_Turn, _Text, _Reasoning, _Call, "content", "message-end"]
"""The type of a step. `Step` describes each type."""

_Part: TypeAlias = tuple[StepType, StepType, StepType]
_TEXT: Final[_Part] = "text-start", "text-delta", "text-end"
_REASONING: Final[_Part] = "reasoning-start", "reasoning-delta", "reasoning-end"


@frozen
class Step:
    """One step of a turn.

    | `type` | meaning | attributes |
    | --- | --- | --- |
    | `relay-start` | the relay begins, before the first event | |
    | `turn-start` | the first text, call or content follows | `id` of the turn |
    | `text-start` | a part of the answer's text begins | `id` of the part |
    | `text-delta` | text is added to the part | `id`, `text` |
    | `text-end` | the part is complete | `id` |
    | `reasoning-start`, `reasoning-delta`, `reasoning-end` | the same for reasoning | |
    | `call-start` | a tool call begins | `id` of the call, `name` of the tool |
    | `call-delta` | text is added to the arguments, which are JSON | `id`, `name`, `text` |
    | `call-end` | the arguments are complete | `id`, `name`, `value`: the arguments |
    | `call-invalid` | the turn has ended, but the arguments are not JSON | `id`, `name` |
    | `call-result` | the result of the call | `id`, `name`, `value`: the result |
    | `content` | JSON content of a message | `id` of the message, `value`: the content |
    | `message-end` | the next message has begun, or the turn ends | `id` of the message |
    | `status` | a status | `name` of the status, `value`: its data |
    | `error` | the turn, or the relay, has failed | `name` of the class, `text` to show, `error` |
    | `turn-end` | the turn has ended without an error | |

    Each part and each call starts before its other steps, ends once, and has a new id. A result
    follows the end of its call. After `error` or `turn-end`, there are no steps.

    If the agent continues a message after the next message has begun, the message gets new parts,
    and `content` and `message-end` are repeated if the message has changed.

    Attributes:
        type: The type of this step, from the table.
        id: The id of a turn, a part, a call or a message; empty for other steps.
        name: The name of a tool or a status, or the class of an error.
        text: The added text, or the text that readers get for an error.
        value: Plain JSON, as the table says; None for other steps.
        error: The error of a step `error`; None for other steps. The error's message may contain
            the exception of an agent.
    """

    type: StepType
    id: str = ""
    name: str = ""
    text: str = ""
    value: Any = None
    error: Flux0Error | None = None


@define
class _StreamedCall:
    id: str
    name: str
    length: int = 0  # The number of received characters of the tool call's arguments.
    is_open: bool = True
    has_result: bool = False

    def step(self, type: StepType, text: str = "", value: Any = None) -> Step:
        return Step(type, self.id, self.name, text, value)


@define
class _Message:
    id: str
    kind: _Part  # The step types that start, extend and end the message's text.
    texts: list[str] = field(factory=list[str])
    calls: dict[int, _StreamedCall] = field(factory=dict[int, _StreamedCall])
    # `open_text` is the id of the started but not ended text part; empty if there is none.
    open_text: str = ""
    is_settled: bool = False
    rebuilds: int = 0


class TurnSteps:
    """Converts the events of one turn into `Step` objects, for the encoders of relays.

    A text part ends when the next message begins. If an agent writes several messages at the same
    time, one message may have several text parts. The step for JSON content follows when the next
    message begins, and again at the turn's end if the message has changed.

    Args:
        error_text: Returns the text that a reader gets for an error. By default, the text is a
            general sentence.
    """

    def __init__(self, error_text: Callable[[Flux0Error], str] = general_text) -> None:
        self._error_text = error_text
        self._accumulator = MessageAccumulator()
        self._messages: dict[str, _Message] = {}
        self._calls: dict[str, _StreamedCall] = {}
        self._part_numbers = count(1)
        self._turn_id = ""
        self._is_started = self._is_ended = False

    def event(self, event: StreamEvent) -> Iterator[Step]:
        """Return the steps of an event. Iterate over all of them before the next call.

        After the agent has reported an error, later events have no steps.
        """
        # `TurnSteps` skips an `UnknownEvent`: only flux0's own relay format can represent it.
        if self._is_ended or not isinstance(event, (ChunkEvent, StatusEvent)):
            return
        self._turn_id = event.correlation_id
        if isinstance(event, ChunkEvent):
            yield from self._started(self._chunk(event))
        elif event.status == SessionStatus.ERROR:
            yield from self.error(AgentError(event.data.data))
        else:
            yield Step("status", name=event.status, value=event.data.data)

    def error(self, error: Flux0Error) -> Iterator[Step]:
        """Return the remaining steps of a turn that fails."""
        name, text = type(error).__name__, self._error_text(error)
        return self._end(Step("error", name=name, text=text, error=error))

    def end(self) -> Iterator[Step]:
        """Return the remaining steps of a turn that ends without an error."""
        return self._end(Step("turn-end"))

    def _end(self, last: Step) -> Iterator[Step]:
        if not self._is_ended:
            self._is_ended = True
            for message in self._messages.values():
                yield from self._started(self._settle(message))
            for call in self._calls.values():
                if call.is_open:
                    yield call.step("call-invalid")
            yield last

    def _started(self, steps: Iterator[Step]) -> Iterator[Step]:
        for step in steps:
            if not self._is_started and step.type != "message-end":
                self._is_started = True
                yield Step("turn-start", self._turn_id)
            yield step

    def _chunk(self, event: ChunkEvent) -> Iterator[Step]:
        message = self._messages.get(event.event_id)
        if message is None:
            if self._messages:
                yield from self._settle(next(reversed(self._messages.values())))
            kind = _TEXT
            if event.metadata.get("kind") == REASONING:
                # `MessageAccumulator.feed` returns the added text only for answers. Remove the kind
                # "reasoning" from the chunk, so that the accumulator treats the reasoning as an
                # answer.
                kind, event = _REASONING, evolve(event, metadata={**event.metadata, "kind": None})
            message = self._messages[event.event_id] = _Message(event.event_id, kind)
        message.is_settled = False
        if text := self._accumulator.feed(event):
            # If the first chunk of a message has several operations, one operation may replace text
            # that an earlier operation has added. Therefore, take the text from the message that
            # the accumulator has built.
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
            yield Step("message-end", message.id)

    def _text(self, message: _Message, text: str) -> Iterator[Step]:
        if not message.open_text:
            message.open_text = f"{message.id}-{next(self._part_numbers)}"
            yield Step(message.kind[0], message.open_text)
        message.texts.append(text)
        yield Step(message.kind[1], message.open_text, text=text)

    def _close_text(self, message: _Message) -> Iterator[Step]:
        if message.open_text:
            yield Step(message.kind[2], message.open_text)
            message.open_text = ""

    def _items(self, message: _Message, *, partial: bool = False) -> Iterator[Step]:
        # The argument is `partial=True`: with False, `MessageAccumulator.message` returns None as
        # long as the arguments of one tool call in the message are incomplete.
        final = self._accumulator.message(message.id, partial=True)
        data = None if final is None else final.data
        for item in data.tool_calls if isinstance(data, ToolData) else ():
            call = yield from self._call(item)
            yield from _complete(call, item.args)
            if not call.has_result:
                call.has_result = True
                yield call.step("call-result", value=item.result and item.result.data)
        for index, part in enumerate(data.parts if isinstance(data, MessageData) else ()):
            if isinstance(part, ToolCallPart):
                call = message.calls[index] = yield from self._call(part)
                if isinstance(part.args, str):
                    yield from _append(call, part.args[call.length :])
                else:
                    yield from _complete(call, part.args)
            elif isinstance(part, ContentPart) and not partial:
                if not isinstance(part.content, str):
                    yield Step("content", message.id, value=part.content)
                # If the text of a complete message differs from the streamed text, the agent has
                # replaced the text instead of appending to it. Send the new text as another part.
                elif part.content not in {"", "".join(message.texts)}:
                    yield from self._close_text(message)
                    message.texts.clear()
                    yield from self._text(message, part.content)

    def _call(self, item: ToolCall | ToolCallPart) -> Generator[Step, None, _StreamedCall]:
        call_id = str(item.tool_call_id)
        if call_id not in self._calls:
            self._calls[call_id] = call = _StreamedCall(call_id, str(item.tool_name))
            yield call.step("call-start")
        return self._calls[call_id]


def _append(call: _StreamedCall, text: Any) -> Iterator[Step]:
    if call.is_open and text and isinstance(text, str):
        call.length += len(text)
        yield call.step("call-delta", text)


def _complete(call: _StreamedCall, args: Any) -> Iterator[Step]:
    if call.is_open:
        if not call.length:
            yield call.step("call-delta", json_text(args, compact=True))
        call.is_open = False
        yield call.step("call-end", value=args)


@final
class StepEncoder(RelayEncoder):
    """Encodes a turn for one relay with your function.

    Args:
        encode: A function that returns the bytes of a step. It is called for all steps in order,
            and never twice at the same time.
        error_text: Returns the text that a reader gets for an error. By default, the text is a
            general sentence.
        heartbeat: The bytes that show that the relay is alive.
    """

    def __init__(
        self,
        encode: Callable[[Step], bytes],
        *,
        error_text: Callable[[Flux0Error], str] = general_text,
        heartbeat: bytes = HEARTBEAT,
    ) -> None:
        self._encode, self._heartbeat = encode, heartbeat
        self._steps = TurnSteps(error_text)

    def start(self) -> bytes:
        return self._encode(Step("relay-start"))

    def event(self, event: StreamEvent) -> bytes:
        return b"".join(map(self._encode, self._steps.event(event)))

    def error(self, error: Flux0Error, number: int | None = None) -> bytes:  # noqa: ARG002 - part of the interface
        return b"".join(map(self._encode, self._steps.error(error)))

    def heartbeat(self) -> bytes:
        return self._heartbeat

    def end(self) -> bytes:
        return b"".join(map(self._encode, self._steps.end()))


def json_event(value: Any) -> bytes:
    """Return a server-sent event whose data is JSON. NaN and the infinities become null."""
    return f"data: {json_text(value, compact=True)}\n\n".encode()
