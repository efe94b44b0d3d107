"""The models of the server's resources: agents, sessions and events.

All models are frozen attrs classes. A field of type `Any` holds plain JSON: None, bool, int, float,
str, list or dict. The attribute `extra` has the JSON members that this version of flux0 does not
know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar, overload

from attrs import frozen

from flux0.domain.enums import EventSource, EventType, SessionStatus
from flux0.domain.extensible import Extensible

T = TypeVar("T")


@frozen
class Agent(Extensible):
    """An agent of the server.

    Attributes:
        id: the id, which has 10 characters.
        name: the name, such as `Drizzle`. Several agents may have the same name.
        type: the name of the runner that runs the agent on the server.
        created_at: the time when the agent was created, with a time zone.
        description: the description for people; None if the agent has none.
    """

    id: str
    name: str
    type: str
    created_at: datetime
    description: str | None = None


@frozen
class ConsumptionOffsets(Extensible):
    """The offsets up to which each consumer has read the events of a session.

    Attributes:
        client: the offset for clients; None if the server sent no offset. The server 0.1.0b4 always
            sends 0.
    """

    client: int | None = None


@frozen
class Session(Extensible):
    """A session: the conversation of one user with one agent.

    The server 0.1.0b4 sends neither `metadata` nor `mode`; a newer server sends both.

    Attributes:
        id: the id, which is needed to continue the session.
        agent_id: the id of the session's agent.
        user_id: the server's id for the session's user. It is not the name that you passed as
            `user`.
        created_at: the time when the session was created, with a time zone.
        consumption_offsets: the offsets up to which each consumer has read the events.
        title: the title that you passed; None if there is none.
        metadata: data of the application, as plain JSON; None if there are none.
        mode: how a newer server handles the session's turns, such as `record`; None if the server
            sent no mode.
    """

    id: str
    agent_id: str
    user_id: str
    created_at: datetime
    consumption_offsets: ConsumptionOffsets
    title: str | None = None
    metadata: Mapping[str, Any] | None = None
    mode: str | None = None


@frozen
class ContentPart(Extensible):
    """A part of a message with content for the user.

    Attributes:
        type: `"content"`.
        content: the text, or any plain JSON.
    """

    type: ClassVar[str] = "content"
    content: Any


@frozen
class ReasoningPart(Extensible):
    """A part of a message with the agent's reasoning.

    Attributes:
        type: `"reasoning"`.
        reasoning: the text, or any plain JSON.
    """

    type: ClassVar[str] = "reasoning"
    reasoning: Any


@frozen
class ToolCallPart(Extensible):
    """A part of a message in which the agent calls a tool.

    Attributes:
        type: `"tool_call"`.
        tool_call_id: the id that connects the call and its result.
        tool_name: the called tool's name.
        args: the arguments, as plain JSON, normally a dict.
    """

    type: ClassVar[str] = "tool_call"
    tool_call_id: str
    tool_name: str
    args: Any


MessagePart: TypeAlias = ContentPart | ReasoningPart | ToolCallPart | Mapping[str, Any]
"""A part of a message; a mapping if flux0 does not know its type."""


@frozen
class Participant(Extensible):
    """The author of a message: a user or an agent.

    Attributes:
        id: the id of the user or the agent.
        name: the user's or the agent's name. For users, the server 0.1.0b4 sends `Anonymous`.
    """

    id: str | None = None
    name: str | None = None


@frozen
class MessageData(Extensible):
    """The data of an event of type `message`.

    If flux0 does not know the type of a part, the part is the mapping that the server sent.

    Attributes:
        type: `"message"`.
        parts: the content, the reasoning and the tool calls, in order.
        participant: the author; None in a message that names none.
        flagged: whether the server has flagged the message. The server 0.1.0b4 never sends True.
        tags: the message's tags. The server 0.1.0b4 sends none.
    """

    type: ClassVar[str] = "message"
    parts: tuple[MessagePart, ...]
    participant: Participant | None = None
    flagged: bool | None = None
    tags: tuple[str, ...] | None = None

    @property
    def text(self) -> str:
        """The text of all content parts, joined, without the reasoning."""
        texts = (part.content for part in self.parts if isinstance(part, ContentPart))
        return "".join(text for text in texts if isinstance(text, str))

    @property
    def reasoning(self) -> str:
        """The text of all reasoning parts, joined."""
        texts = (part.reasoning for part in self.parts if isinstance(part, ReasoningPart))
        return "".join(text for text in texts if isinstance(text, str))

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls in this message, without their results."""
        parts = (part for part in self.parts if isinstance(part, ToolCallPart))
        return tuple(ToolCall(part.tool_call_id, part.tool_name, part.args) for part in parts)


@frozen
class StatusData(Extensible):
    """The data of an event of type `status`.

    Attributes:
        type: `"status"`.
        status: the status; a string if flux0 does not know it.
        acknowledged_offset: the offset up to which the agent has handled events; None if the agent
            sent none.
        data: details from the agent, as plain JSON; None if there are none.
    """

    type: ClassVar[str] = "status"
    status: SessionStatus | str
    acknowledged_offset: int | None = None
    data: Any = None


@frozen
class ControlOptions(Extensible):
    """The control options of a tool result.

    Attributes:
        mode: `auto` or `manual`.
    """

    mode: str


@frozen
class ToolResult(Extensible):
    """The result of a tool call.

    Attributes:
        data: the value that the tool returned, as plain JSON.
        metadata: further data of the agent, as plain JSON.
        control: the control options of this result.
    """

    data: Any
    metadata: Mapping[str, Any]
    control: ControlOptions


@frozen
class ToolCall(Extensible):
    """A tool call, with its result if the result is known.

    Attributes:
        tool_call_id: the id that connects the call and its result.
        tool_name: the called tool's name.
        args: the call's arguments, as plain JSON.
        result: the result; None if it is not known.
        error: the problem, if the tool failed and the agent reported the problem; otherwise None.
    """

    tool_call_id: str
    tool_name: str
    args: Mapping[str, Any]
    result: ToolResult | None = None
    error: str | None = None


@frozen
class ToolData(Extensible):
    """The data of an event of type `tool`.

    Attributes:
        type: `"tool_call_result"`.
        tool_calls: the tool calls, each with its result.
    """

    type: ClassVar[str] = "tool_call_result"
    tool_calls: tuple[ToolCall, ...]


EventData: TypeAlias = MessageData | StatusData | ToolData | Mapping[str, Any]
"""The data of a stored event; a mapping if flux0 does not know its type."""


class HasMessageData:
    """A base class for events, with shortcuts to the text and the tool calls in `data`."""

    __slots__ = ()
    if TYPE_CHECKING:
        data: Any  # Subclasses declare `data` with a more specific type.

    @property
    def text(self) -> str:
        """The text of a message, without the reasoning; empty for other events."""
        return self.data.text if isinstance(self.data, MessageData) else ""

    @property
    def reasoning(self) -> str:
        """The reasoning in a message; empty for other events."""
        return self.data.reasoning if isinstance(self.data, MessageData) else ""

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls of a message or of a tool event; empty for other events."""
        return self.data.tool_calls if isinstance(self.data, (MessageData, ToolData)) else ()


@frozen
class Event(HasMessageData, Extensible):
    """One stored event of a session.

    Attributes:
        id: the id of the stored event. It is different from the ids in the stream.
        correlation_id: the id of the turn, which all its events have.
        type: the type, which determines the class of `data`.
        source: the author: a user, an agent or the system.
        offset: the position in the session; the first event has 0.
        data: the content: `MessageData`, `StatusData` or `ToolData`; the mapping that the server
            sent if flux0 does not know the type.
        deleted: whether the event was deleted. The server 0.1.0b4 deletes no events.
        created_at: the time at which the event was stored, with a time zone.
        metadata: further data of the agent, as plain JSON; None if there are none.
    """

    id: str
    correlation_id: str
    type: EventType | str
    source: EventSource | str
    offset: int
    data: EventData
    deleted: bool
    created_at: datetime
    metadata: Mapping[str, Any] | None = None


@frozen
class Listing(Extensible, Sequence[T], Generic[T]):
    """A list from the server. The items are in `data`; the object itself is also a sequence."""

    data: tuple[T, ...]

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        return self.data[index]

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[T]:
        return iter(self.data)


@frozen
class Agents(Listing[Agent]):
    """All agents, in the order in which the server returned them.

    Attributes:
        data: the agents. `agents[0]` is the same as `agents.data[0]`.
    """

    data: tuple[Agent, ...]


@frozen
class Sessions(Listing[Session]):
    """Sessions, in the order in which the server returned them.

    Attributes:
        data: the sessions. `sessions[0]` is the same as `sessions.data[0]`.
    """

    data: tuple[Session, ...]


@frozen
class Events(Listing[Event]):
    """Events of one session, in the order of their offsets.

    Attributes:
        data: the events. `events[0]` is the same as `events.data[0]`.
    """

    data: tuple[Event, ...]
