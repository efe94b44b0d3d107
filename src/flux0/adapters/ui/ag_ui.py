"""The events of AG-UI, the Agent-User Interaction Protocol, which CopilotKit reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, final

from flux0.adapters.ui.steps import ID, NAME, VALUE, Step, StepEncoder, Templates
from flux0.domain.json_text import json_text
from flux0.relay_format import RelayFormat


@final
class AgUiFormat(RelayFormat):
    """The events of AG-UI, a relay format for `HttpAgent` of `@ag-ui/client`, and for CopilotKit.

    Attributes:
        thread_id: The member `threadId` of the request.
        run_id: The member `runId` of the request.
    """

    def __init__(self, thread_id: str, run_id: str) -> None:
        self.thread_id: str = thread_id
        self.run_id: str = run_id

    def encoder(self) -> StepEncoder:
        """Return an encoder for one relay."""
        ids = {"threadId": self.thread_id, "runId": self.run_id}
        run, finish = {"type": "RUN_STARTED", **ids}, {"type": "RUN_FINISHED", **ids}
        return StepEncoder({**_TEMPLATES, "run": [run], "finish": [finish]})


def _text(type: str, **members: Any) -> Mapping[str, Any]:
    return {"type": type, "messageId": ID, **members}


def _call(type: str, **members: Any) -> Mapping[str, Any]:
    return {"type": type, "toolCallId": ID, **members}


def _content(step: Step) -> dict[str, Any]:
    return {"content": step.value}


def _result_id(step: Step) -> str:
    return f"{step.id}-result"


def _result(step: Step) -> str:
    return step.value if isinstance(step.value, str) else json_text(step.value)


_TEMPLATES: Final[Templates] = {
    "text-start": [_text("TEXT_MESSAGE_START", role="assistant")],
    "text-delta": [_text("TEXT_MESSAGE_CONTENT", delta=VALUE)],
    "text-end": [_text("TEXT_MESSAGE_END")],
    "reasoning-start": [
        _text("REASONING_START"),
        _text("REASONING_MESSAGE_START", role="reasoning"),
    ],
    "reasoning-delta": [_text("REASONING_MESSAGE_CONTENT", delta=VALUE)],
    "reasoning-end": [_text("REASONING_MESSAGE_END"), _text("REASONING_END")],
    "call-start": [_call("TOOL_CALL_START", toolCallName=NAME)],
    "call-delta": [_call("TOOL_CALL_ARGS", delta=VALUE)],
    "call-end": [_call("TOOL_CALL_END")],
    "call-invalid": [_call("TOOL_CALL_END")],
    "call-result": [_call("TOOL_CALL_RESULT", messageId=_result_id, content=_result, role="tool")],
    "content": [_text("ACTIVITY_SNAPSHOT", activityType="content", content=_content)],
    "status": [{"type": "CUSTOM", "name": "status", "value": VALUE}],
    "error": [{"type": "RUN_ERROR", "message": VALUE, "code": NAME}],
}
