"""The events of AG-UI, the Agent-User Interaction Protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, final

from attrs import define, field, frozen

from flux0.domain.background_errors import TurnStopped
from flux0.domain.errors import Flux0Error
from flux0.domain.json_text import json_text
from flux0.relay_format import RelayFormat, general_text
from flux0.turn_steps import Step, StepEncoder, StepType, json_event


@final
@frozen
class AgUiFormat(RelayFormat):
    """The events of AG-UI, a relay format for `HttpAgent` of `@ag-ui/client`.

    Args:
        thread_id: The member `threadId` of the AG-UI client's request.
        run_id: The member `runId` of the AG-UI client's request.
        messages: The messages with which the page replaces its messages: the result of
            `ag_ui_messages`. By default, the page keeps its messages.
        error_text: A function that returns the text that the page gets for an error. By default,
            the text is a general sentence, because an error may contain the exception of an agent.

    Attributes:
        thread_id: The argument `thread_id`.
        run_id: The argument `run_id`.
    """

    thread_id: str
    run_id: str
    _messages: Sequence[Mapping[str, Any]] | None = field(
        default=None, alias="messages", kw_only=True
    )
    _error_text: Callable[[Flux0Error], str] = field(
        default=general_text, alias="error_text", kw_only=True
    )

    def encoder(self) -> StepEncoder:
        run = {"threadId": self.thread_id, "runId": self.run_id}
        return StepEncoder(_Run(run, self._messages).encode, error_text=self._error_text)


def unique_id(turn_id: str, id: str) -> str:
    """Return an id that an AG-UI client finds only in this turn.

    AG-UI clients search all messages of the chat for the id of a message or a tool call, but an
    agent may use an id again in a later turn.
    """
    return f"{turn_id}/{id}"


@define
class _Run:
    ids: Mapping[str, str]
    messages: Sequence[Mapping[str, Any]] | None
    turn_id: str = ""

    def encode(self, step: Step) -> bytes:
        match step.type:
            case "turn-start":
                self.turn_id = step.id
                return b""
            case "relay-start":
                start = json_event({"type": "RUN_STARTED", **self.ids})
                if self.messages is None:
                    return start
                return start + json_event({"type": "MESSAGES_SNAPSHOT", "messages": self.messages})
            case "turn-end":
                return json_event({"type": "RUN_FINISHED", **self.ids})
            case "error":
                return self._error(step)
            case type:
                encode = _EVENTS.get(type)
                return b"" if encode is None else encode(step, unique_id(self.turn_id, step.id))

    def _error(self, step: Step) -> bytes:
        if isinstance(step.error, TurnStopped):
            outcome = {"type": "cancelled"}
            return json_event({"type": "RUN_FINISHED", **self.ids, "outcome": outcome})
        return json_event({"type": "RUN_ERROR", "message": step.text, "code": step.name})


def _text(type: str, id: str, **members: Any) -> bytes:
    return json_event({"type": type, "messageId": id, **members})


def _reasoning_start(_: Step, id: str) -> bytes:
    start = _text("REASONING_START", id)
    return start + _text("REASONING_MESSAGE_START", id, role="reasoning")


def _reasoning_end(_: Step, id: str) -> bytes:
    return _text("REASONING_MESSAGE_END", id) + _text("REASONING_END", id)


def _call(type: str, id: str, **members: Any) -> bytes:
    return json_event({"type": type, "toolCallId": id, **members})


def _result(step: Step, id: str) -> bytes:
    content = step.value if isinstance(step.value, str) else json_text(step.value)
    message = {"messageId": f"{id}-result", "role": "tool"}
    return _call("TOOL_CALL_RESULT", id, content=content, **message)


def _content(step: Step, id: str) -> bytes:
    content = {"content": step.value}
    return _text("ACTIVITY_SNAPSHOT", id, activityType="content", content=content)


def _status(step: Step, _: str) -> bytes:
    value = {"status": step.name, "data": step.value}
    return json_event({"type": "CUSTOM", "name": "status", "value": value})


_EVENTS: Final[Mapping[StepType, Callable[[Step, str], bytes]]] = {
    "text-start": lambda _, key: _text("TEXT_MESSAGE_START", key, role="assistant"),
    "text-delta": lambda step, key: _text("TEXT_MESSAGE_CONTENT", key, delta=step.text),
    "text-end": lambda _, key: _text("TEXT_MESSAGE_END", key),
    "reasoning-start": _reasoning_start,
    "reasoning-delta": lambda step, key: _text("REASONING_MESSAGE_CONTENT", key, delta=step.text),
    "reasoning-end": _reasoning_end,
    "call-start": lambda step, key: _call("TOOL_CALL_START", key, toolCallName=step.name),
    "call-delta": lambda step, key: _call("TOOL_CALL_ARGS", key, delta=step.text),
    "call-end": lambda _, key: _call("TOOL_CALL_END", key),
    "call-invalid": lambda _, key: _call("TOOL_CALL_END", key),
    "call-result": _result,
    "content": _content,
    "status": _status,
}
