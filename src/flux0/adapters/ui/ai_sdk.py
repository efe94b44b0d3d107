"""The UI message stream of the AI SDK (npm package `ai`), which `useChat` reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, final

from flux0.adapters.ui.steps import ID, NAME, VALUE, StepEncoder, Templates
from flux0.relay_format import RelayFormat

_HEADER = "x-vercel-ai-ui-message-stream"


@final
class AiSdkFormat(RelayFormat):
    """The UI message stream of the AI SDK, a relay format for `useChat`.

    The messages of a turn become one `UIMessage`, whose id is the `correlation_id` of the turn.
    """

    headers: ClassVar[Mapping[str, str]] = {**RelayFormat.headers, _HEADER: "v1"}

    def encoder(self) -> StepEncoder:
        """Return an encoder for one relay."""
        return StepEncoder(_TEMPLATES, last=b"data: [DONE]\n\n")


# flux0 does not know the tools of the component, so they are dynamic.
_TOOL: Final = {"toolCallId": ID, "toolName": NAME, "dynamic": True}
_INVALID: Final = "the arguments are not valid JSON"


_TEMPLATES: Final[Templates] = {
    "start": [{"type": "start", "messageId": ID}],
    "text-start": [{"type": "text-start", "id": ID}],
    "text-delta": [{"type": "text-delta", "id": ID, "delta": VALUE}],
    "text-end": [{"type": "text-end", "id": ID}],
    "reasoning-start": [{"type": "reasoning-start", "id": ID}],
    "reasoning-delta": [{"type": "reasoning-delta", "id": ID, "delta": VALUE}],
    "reasoning-end": [{"type": "reasoning-end", "id": ID}],
    "call-start": [{"type": "tool-input-start", **_TOOL}],
    "call-delta": [{"type": "tool-input-delta", "toolCallId": ID, "inputTextDelta": VALUE}],
    "call-end": [{"type": "tool-input-available", **_TOOL, "input": VALUE}],
    "call-invalid": [{"type": "tool-input-error", **_TOOL, "input": VALUE, "errorText": _INVALID}],
    "call-result": [{"type": "tool-output-available", "toolCallId": ID, "output": VALUE}],
    "content": [{"type": "data-content", "id": ID, "data": VALUE}],
    "status": [{"type": "data-status", "data": VALUE, "transient": True}],
    "error": [{"type": "error", "errorText": VALUE}],
    "finish": [{"type": "finish"}],
}
