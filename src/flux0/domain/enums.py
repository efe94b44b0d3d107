"""Names that the server uses in its events. Later server versions may add names."""

from __future__ import annotations

from enum import Enum


class OpenEnum(str, Enum):
    """A base class of string enums: `str()` and `format()` of a member return its value."""

    __str__ = str.__str__
    __format__ = str.__format__  # type: ignore[assignment]  # only the parameter's name differs


class EventType(OpenEnum):
    """The type of an event."""

    MESSAGE = "message"
    TOOL = "tool"
    STATUS = "status"
    CUSTOM = "custom"


class EventSource(OpenEnum):
    """The source of an event."""

    USER = "user"
    AI_AGENT = "ai_agent"
    SYSTEM = "system"


class SessionStatus(OpenEnum):
    """The status of an agent in a turn.

    `READY` and `COMPLETED` never appear in a stream, because the server does not send them.
    """

    ACKNOWLEDGED = "acknowledged"
    CANCELLED = "cancelled"
    PROCESSING = "processing"
    READY = "ready"
    TYPING = "typing"
    ERROR = "error"
    COMPLETED = "completed"
