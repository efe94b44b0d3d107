"""Relay formats for chat components: the AI SDK's UI message stream, and AG-UI."""

from flux0.adapters.ui.ag_ui import AgUiFormat as AgUiFormat
from flux0.adapters.ui.ai_sdk import AiSdkFormat as AiSdkFormat
from flux0.adapters.ui.messages import (
    ag_ui_messages as ag_ui_messages,
    ui_messages as ui_messages,
)
from flux0.adapters.ui.requests import (
    NewMessage as NewMessage,
    new_message as new_message,
    user_text as user_text,
)
