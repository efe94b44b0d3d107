"""What an agent said in one turn."""

from __future__ import annotations

from attrs import frozen

from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.models import ToolCall


@frozen
class Reply:
    """The whole of a turn, as it was read to its end.

    `messages` are its messages and tool results, `tool_calls` the tools that the agent asked for,
    each with its result.
    """

    messages: tuple[TurnMessage, ...]
    tool_calls: tuple[ToolCall, ...]

    @property
    def text(self) -> str:
        """The text of the answer, without the agent's reasoning; messages are apart by a line."""
        return "\n".join(message.text for message in self.messages if message.text)

    def __str__(self) -> str:
        return self.text
