"""The events of AG-UI, the Agent-User Interaction Protocol, which CopilotKit reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, final

from attrs import field, frozen

from flux0.domain.errors import Flux0Error
from flux0.domain.json_text import json_text
from flux0.relay_format import RelayFormat, general_text
from flux0.turn_steps import Step, StepEncoder, StepType, json_event


@final
@frozen
class AgUiFormat(RelayFormat):
    """The events of AG-UI, a relay format for `HttpAgent` of `@ag-ui/client`, and for CopilotKit.

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
        return StepEncoder(self._encode, error_text=self._error_text)

    def _encode(self, step: Step) -> bytes:
        if name := _RUN.get(step.type):
            run = json_event({"type": name, "threadId": self.thread_id, "runId": self.run_id})
            if step.type == "turn-end" or self._messages is None:
                return run
            return run + json_event({"type": "MESSAGES_SNAPSHOT", "messages": self._messages})
        encode = _EVENTS.get(step.type)
        return b"" if encode is None else encode(step)


def _text(type: str, step: Step, **members: Any) -> bytes:
    return json_event({"type": type, "messageId": step.id, **members})


def _call(type: str, step: Step, **members: Any) -> bytes:
    return json_event({"type": type, "toolCallId": step.id, **members})


def _result(step: Step) -> bytes:
    content = step.value if isinstance(step.value, str) else json_text(step.value)
    ids = {"messageId": f"{step.id}-result", "role": "tool"}
    return _call("TOOL_CALL_RESULT", step, content=content, **ids)


def _content(step: Step) -> bytes:
    content = {"content": step.value}
    return _text("ACTIVITY_SNAPSHOT", step, activityType="content", content=content)


def _status(step: Step) -> bytes:
    value = {"status": step.name, "data": step.value}
    return json_event({"type": "CUSTOM", "name": "status", "value": value})


_RUN: Final[Mapping[StepType, str]] = {"relay-start": "RUN_STARTED", "turn-end": "RUN_FINISHED"}
_EVENTS: Final[Mapping[StepType, Callable[[Step], bytes]]] = {
    "text-start": lambda step: _text("TEXT_MESSAGE_START", step, role="assistant"),
    "text-delta": lambda step: _text("TEXT_MESSAGE_CONTENT", step, delta=step.text),
    "text-end": lambda step: _text("TEXT_MESSAGE_END", step),
    "reasoning-start": lambda step: (
        _text("REASONING_START", step) + _text("REASONING_MESSAGE_START", step, role="reasoning")
    ),
    "reasoning-delta": lambda step: _text("REASONING_MESSAGE_CONTENT", step, delta=step.text),
    "reasoning-end": lambda step: (
        _text("REASONING_MESSAGE_END", step) + _text("REASONING_END", step)
    ),
    "call-start": lambda step: _call("TOOL_CALL_START", step, toolCallName=step.name),
    "call-delta": lambda step: _call("TOOL_CALL_ARGS", step, delta=step.text),
    "call-end": lambda step: _call("TOOL_CALL_END", step),
    "call-invalid": lambda step: _call("TOOL_CALL_END", step),
    "call-result": _result,
    "content": _content,
    "status": _status,
    "error": lambda step: json_event(
        {"type": "RUN_ERROR", "message": step.text, "code": step.name}
    ),
}
