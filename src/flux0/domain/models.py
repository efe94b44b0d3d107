"""What the server keeps: agents, sessions and the events of a session.

Every class is a frozen value. A field typed `Any` holds plain JSON: None, bool, int, float, str,
list or dict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar, overload

from attrs import field, frozen

from flux0.domain.enums import EventSource, EventType, SessionStatus

T = TypeVar("T")


def _in_a_zone(time: datetime) -> datetime:
    """Return `time`, in UTC if it has no zone, as the server means it."""
    return time.replace(tzinfo=timezone.utc) if getattr(time, "tzinfo", time) is None else time


@frozen
class Agent:
    """An agent that sessions can be opened with; `type` names the code that runs it."""

    id: str
    name: str
    type: str
    created_at: datetime = field(converter=_in_a_zone)
    description: str | None = None


@frozen
class ConsumptionOffsets:
    """How far each consumer has read a session, as event offsets."""

    client: int | None = None


@frozen
class Session:
    """A conversation between one user and one agent."""

    id: str
    agent_id: str
    user_id: str
    created_at: datetime = field(converter=_in_a_zone)
    consumption_offsets: ConsumptionOffsets
    title: str | None = None


@frozen
class ContentPart:
    """A part of a message that is meant for the reader: text, or any JSON."""

    type: ClassVar[str] = "content"
    content: Any


@frozen
class ReasoningPart:
    """A part of a message in which the agent thinks: text, or any JSON."""

    type: ClassVar[str] = "reasoning"
    reasoning: Any


@frozen
class ToolCallPart:
    """A part of a message in which the agent asks for a tool."""

    type: ClassVar[str] = "tool_call"
    tool_call_id: str
    tool_name: str
    args: Any


MessagePart: TypeAlias = ContentPart | ReasoningPart | ToolCallPart | Mapping[str, Any]


@frozen
class Participant:
    """Who spoke: a user or an agent."""

    id: str | None = None
    name: str | None = None


@frozen
class MessageData:
    """The data of an event of type `message`.

    A part whose type is not known here is the mapping that the server sent.
    """

    type: ClassVar[str] = "message"
    parts: tuple[MessagePart, ...]
    participant: Participant | None = None
    flagged: bool | None = None
    tags: tuple[str, ...] | None = None

    @property
    def text(self) -> str:
        """The text of the parts that are meant for the reader."""
        texts = (part.content for part in self.parts if isinstance(part, ContentPart))
        return "".join(text for text in texts if isinstance(text, str))

    @property
    def reasoning(self) -> str:
        """The text of the parts in which the agent thinks."""
        texts = (part.reasoning for part in self.parts if isinstance(part, ReasoningPart))
        return "".join(text for text in texts if isinstance(text, str))

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tools that the agent asks for, without their results."""
        parts = (part for part in self.parts if isinstance(part, ToolCallPart))
        return tuple(ToolCall(part.tool_call_id, part.tool_name, part.args) for part in parts)


@frozen
class StatusData:
    """The data of an event of type `status`; `data` is whatever the agent added."""

    type: ClassVar[str] = "status"
    status: SessionStatus | str
    acknowledged_offset: int | None = None
    data: Any = None


@frozen
class ControlOptions:
    """Who drives the session after a tool result: `auto` or `manual`."""

    mode: str


@frozen
class ToolResult:
    """What a tool gave back."""

    data: Any
    metadata: Mapping[str, Any]
    control: ControlOptions


@frozen
class ToolCall:
    """One use of a tool, joined to the `ToolCallPart` that asked for it by `tool_call_id`."""

    tool_call_id: str
    tool_name: str
    args: Mapping[str, Any]
    result: ToolResult | None = None
    error: str | None = None


@frozen
class ToolData:
    """The data of an event of type `tool`."""

    type: ClassVar[str] = "tool_call_result"
    tool_calls: tuple[ToolCall, ...]


EventData: TypeAlias = MessageData | StatusData | ToolData | Mapping[str, Any]


class HasMessageData:
    """What an event says, whatever its kind."""

    __slots__ = ()
    if TYPE_CHECKING:
        data: Any  # Each kind has its own.

    @property
    def text(self) -> str:
        """The text of a message that is meant for the reader; empty if it has none."""
        return self.data.text if isinstance(self.data, MessageData) else ""

    @property
    def reasoning(self) -> str:
        """The text of a message in which the agent thinks; empty if it has none."""
        return self.data.reasoning if isinstance(self.data, MessageData) else ""

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tools that a message asks for, or those that a tool event has the results of."""
        return self.data.tool_calls if isinstance(self.data, (MessageData, ToolData)) else ()


@frozen
class Event(HasMessageData):
    """One stored event of a session.

    `correlation_id` is shared by all events of one turn. Data of a type that is not known here is
    the mapping that the server sent.
    """

    id: str
    correlation_id: str
    type: EventType | str
    source: EventSource | str
    offset: int
    data: EventData
    deleted: bool
    created_at: datetime = field(converter=_in_a_zone)
    metadata: Mapping[str, Any] | None = None


@frozen
class Listing(Sequence[T], Generic[T]):
    """A list as the server answers it: an object with `data`, which is itself a sequence."""

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
    """All agents, in the server's order."""

    data: tuple[Agent, ...]


@frozen
class Sessions(Listing[Session]):
    """Sessions, in the server's order."""

    data: tuple[Session, ...]


@frozen
class Events(Listing[Event]):
    """Events of one session, by offset."""

    data: tuple[Event, ...]
