"""Names that the server uses in its events. Later server versions may add names."""

from __future__ import annotations

from enum import Enum


class OpenEnum(str, Enum):
    """A base class of string enums: `str()` and `format()` of a member return its value."""

    __str__ = str.__str__
    # The type checker reports that the parameters of `str.__format__` and `Enum.__format__` differ.
    __format__ = str.__format__  # type: ignore[assignment]


class EventType(OpenEnum):
    """The type of an event.

    Attributes:
        MESSAGE: a message of a user or an agent, or the tool calls of an agent.
        TOOL: the results of tool calls.
        STATUS: a status of the agent.
        CUSTOM: an event of an application. The server 0.1.0b4 creates none.
    """

    MESSAGE = "message"
    TOOL = "tool"
    STATUS = "status"
    CUSTOM = "custom"


class EventSource(OpenEnum):
    """The source of an event.

    Attributes:
        USER: a user wrote the message.
        AI_AGENT: an agent wrote the message, or reported the status.
        SYSTEM: the server or an application created the event.
    """

    USER = "user"
    AI_AGENT = "ai_agent"
    SYSTEM = "system"


class SessionStatus(OpenEnum):
    """The status of an agent in a turn.

    `READY` and `COMPLETED` never appear in a stream, because the server does not send them.

    Attributes:
        ACKNOWLEDGED: the agent has received the message.
        CANCELLED: the agent has stopped before the turn was complete.
        PROCESSING: the agent is working.
        READY: a message is complete. The server then stores it.
        TYPING: the agent is writing its answer.
        ERROR: the agent has failed.
        COMPLETED: the turn is complete. The server then ends the stream.
    """

    ACKNOWLEDGED = "acknowledged"
    CANCELLED = "cancelled"
    PROCESSING = "processing"
    READY = "ready"
    TYPING = "typing"
    ERROR = "error"
    COMPLETED = "completed"
