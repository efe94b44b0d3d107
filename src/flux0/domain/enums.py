"""Names that the server uses in its events, open to names it may add later."""

from __future__ import annotations

from enum import Enum


class OpenEnum(str, Enum):
    """A text enum whose members equal, print and serialize as their text."""

    __str__ = str.__str__
    __format__ = str.__format__  # type: ignore[assignment]  # only the parameter's name differs


class EventType(OpenEnum):
    """What kind of thing happened in a session."""

    MESSAGE = "message"
    TOOL = "tool"
    STATUS = "status"
    CUSTOM = "custom"


class EventSource(OpenEnum):
    """Who caused an event."""

    USER = "user"
    AI_AGENT = "ai_agent"
    SYSTEM = "system"


class SessionStatus(OpenEnum):
    """What the agent is doing.

    The server acts on `READY` and `COMPLETED` itself and sends neither on a stream.
    """

    ACKNOWLEDGED = "acknowledged"
    CANCELLED = "cancelled"
    PROCESSING = "processing"
    READY = "ready"
    TYPING = "typing"
    ERROR = "error"
    COMPLETED = "completed"
