"""The UI message stream of the AI SDK (npm package `ai`), which `useChat` reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Final, final

from flux0.domain.background_errors import RelayEnded, TurnStopped
from flux0.domain.errors import Flux0Error
from flux0.domain.messages.json_patch import JSON
from flux0.relay_format import RelayFormat, general_text
from flux0.turn_steps import Step, StepEncoder, StepType, json_event

_HEADER: Final = "x-vercel-ai-ui-message-stream"
_DONE: Final = b"data: [DONE]\n\n"
_INVALID: Final = "the arguments are not valid JSON"


@final
class AiSdkFormat(RelayFormat):
    """The UI message stream of the AI SDK, a relay format for `useChat`.

    The messages of a turn become one `UIMessage`, whose id is the `correlation_id` of the turn.

    Args:
        error_text: A function that returns the text that the page gets for an error. By default,
            the text is a general sentence, because an error may contain the exception of an agent.
    """

    headers: ClassVar[Mapping[str, str]] = {**RelayFormat.headers, _HEADER: "v1"}

    def __init__(self, *, error_text: Callable[[Flux0Error], str] = general_text) -> None:
        self._error_text = error_text

    def encoder(self) -> StepEncoder:
        return StepEncoder(_encode, error_text=self._error_text)


def without_prototypes(value: JSON) -> JSON:
    """Return a JSON value without the members that the AI SDK rejects, because they are unsafe.

    A chunk with a member `__proto__`, or a member `constructor` that has a member `prototype`, is
    an error for `useChat`, which ends the turn on the page.
    """
    # A loop, because a recursive function fails for values that are nested several hundred levels
    # deep. `ui_messages` accepts events that were not decoded from a response, so it has no limit.
    result: list[JSON] = [value]
    containers: list[Any] = [result]
    while containers:
        container = containers.pop()
        for key, item in _items(container):
            if isinstance(item, (list, dict)):
                container[key] = item.copy() if isinstance(item, list) else _safe_members(item)
                containers.append(container[key])
    return result[0]


def _items(container: list[JSON] | dict[str, JSON]) -> Iterable[tuple[Any, JSON]]:
    return container.items() if isinstance(container, dict) else enumerate(container)


def _safe_members(value: dict[str, JSON]) -> dict[str, JSON]:
    return {
        name: member
        for name, member in value.items()
        if name != "__proto__"
        and not (name == "constructor" and isinstance(member, dict) and "prototype" in member)
    }


def _chunk(chunk: dict[str, Any]) -> bytes:
    data = json_event(chunk)
    is_safe = b"__proto__" not in data and b"prototype" not in data
    return data if is_safe else json_event(without_prototypes(chunk))


def _encode(step: Step) -> bytes:
    encode = _CHUNKS.get(step.type)
    return b"" if encode is None else encode(step)


def _part(step: Step, **members: Any) -> bytes:
    return _chunk({"type": step.type, "id": step.id, **members})


def _tool(type: str, step: Step, **members: Any) -> bytes:
    return _chunk({"type": type, "toolCallId": step.id, **members})


def _dynamic(type: str, step: Step, **members: Any) -> bytes:
    # For the AI SDK, a tool is dynamic if the web page has not declared the tool. flux0 does not
    # know the declared tools, so each tool is dynamic. With `providerExecuted`, the page does not
    # execute the tool itself, and `sendAutomaticallyWhen` does not send the result of the tool.
    return _tool(type, step, dynamic=True, providerExecuted=True, **members)


def _status(step: Step) -> bytes:
    data = {"status": step.name, "data": step.value}
    return _chunk({"type": "data-status", "data": data, "transient": True})


def _error(step: Step) -> bytes:
    if isinstance(step.error, TurnStopped):
        return _chunk({"type": "abort", "reason": step.text}) + _DONE
    error = _chunk({"type": "error", "errorText": step.text}) + _DONE
    if isinstance(step.error, RelayEnded):
        return _chunk({"type": "data-reconnect", "data": {}, "transient": True}) + error
    return error


_CHUNKS: Final[Mapping[StepType, Callable[[Step], bytes]]] = {
    "turn-start": lambda step: _chunk({"type": "start", "messageId": step.id}),
    "text-start": _part,
    "text-delta": lambda step: _part(step, delta=step.text),
    "text-end": _part,
    "reasoning-start": _part,
    "reasoning-delta": lambda step: _part(step, delta=step.text),
    "reasoning-end": _part,
    "call-start": lambda step: _dynamic("tool-input-start", step, toolName=step.name),
    "call-delta": lambda step: _tool("tool-input-delta", step, inputTextDelta=step.text),
    "call-end": lambda step: _dynamic(
        "tool-input-available", step, toolName=step.name, input=step.value
    ),
    "call-invalid": lambda step: _dynamic(
        "tool-input-error", step, toolName=step.name, input=None, errorText=_INVALID
    ),
    "call-result": lambda step: _dynamic("tool-output-available", step, output=step.value),
    "content": lambda step: _chunk({"type": "data-content", "id": step.id, "data": step.value}),
    "status": _status,
    "error": _error,
    "turn-end": lambda _: _chunk({"type": "finish", "finishReason": "stop"}) + _DONE,
}
