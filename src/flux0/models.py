"""All models and errors of flux0.

The aliases at the end are for code that was written for the generated package `flux0_client`.
"""

from flux0.domain.api_errors import (
    APIError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    HTTPValidationError,
    HTTPValidationErrorData,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    ValidationError,
)
from flux0.domain.enums import (
    EventSource,
    EventType,
    SessionStatus,
)
from flux0.domain.errors import (
    AgentError,
    AgentNotFound,
    ClientClosed,
    ConnectError,
    ConnectionInterrupted,
    ConnectTimeout,
    DecodeError,
    EventTooLarge,
    Flux0Error,
    InvalidArgument,
    MissingDependency,
    PoolTimeout,
    ProtocolError,
    ReadTimeout,
    ResponseTooLarge,
    Sent,
    StreamError,
    StreamIdleTimeout,
    StreamInterrupted,
    StreamInUse,
    TLSError,
    TransportError,
    TransportTimeout,
    WriteTimeout,
)
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.messages.history import Reply, StoredTurn
from flux0.domain.models import (
    Agent,
    Agents,
    ConsumptionOffsets,
    ContentPart,
    ControlOptions,
    Event,
    EventData,
    Events,
    MessageData,
    MessagePart,
    Participant,
    ReasoningPart,
    Session,
    Sessions,
    StatusData,
    ToolCall,
    ToolCallPart,
    ToolData,
    ToolResult,
)
from flux0.domain.stream_events import (
    ChunkEvent,
    JSONPatchOperation,
    StatusEvent,
    StreamEvent,
    UnknownEvent,
)

AgentDTO = Agent
AgentsDTO = Agents
ChunkEventDTO = ChunkEvent
ConsumptionOffsetsDTO = ConsumptionOffsets
ContentPartDTO = ContentPart
EmittedEventDTO = StatusEvent
EventDTO = Event
EventDTOData = EventData
EventsDTO = Events
EventSourceDTO = EventSource
EventTypeDTO = EventType
JSONPatchOperationDTO = JSONPatchOperation
MessageEventDataDTO = MessageData
Part = MessagePart
ReasoningPartDTO = ReasoningPart
SessionDTO = Session
SessionsDTO = Sessions
SessionStream = StreamEvent
StatusEventDataDTO = StatusData
StatusEventDataStatusField = SessionStatus
ToolCallDTO = ToolCall
ToolEventDataDTO = ToolData
ToolPartDTO = ToolCallPart
ToolResultDTO = ToolResult

__all__ = [
    "APIError",
    "Agent",
    "AgentDTO",
    "AgentError",
    "AgentNotFound",
    "Agents",
    "AgentsDTO",
    "AuthenticationError",
    "BadRequestError",
    "ChunkEvent",
    "ChunkEventDTO",
    "ClientClosed",
    "ConflictError",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionInterrupted",
    "ConsumptionOffsets",
    "ConsumptionOffsetsDTO",
    "ContentPart",
    "ContentPartDTO",
    "ControlOptions",
    "DecodeError",
    "EmittedEventDTO",
    "Event",
    "EventDTO",
    "EventDTOData",
    "EventData",
    "EventSource",
    "EventSourceDTO",
    "EventTooLarge",
    "EventType",
    "EventTypeDTO",
    "Events",
    "EventsDTO",
    "Flux0Error",
    "HTTPValidationError",
    "HTTPValidationErrorData",
    "InvalidArgument",
    "JSONPatchOperation",
    "JSONPatchOperationDTO",
    "MessageData",
    "MessageEventDataDTO",
    "MessagePart",
    "MissingDependency",
    "NotFoundError",
    "Part",
    "Participant",
    "PermissionDeniedError",
    "PoolTimeout",
    "ProtocolError",
    "RateLimitError",
    "ReadTimeout",
    "ReasoningPart",
    "ReasoningPartDTO",
    "Reply",
    "ResponseTooLarge",
    "Sent",
    "ServerError",
    "Session",
    "SessionDTO",
    "SessionStatus",
    "SessionStream",
    "Sessions",
    "SessionsDTO",
    "StatusData",
    "StatusEvent",
    "StatusEventDataDTO",
    "StatusEventDataStatusField",
    "StoredTurn",
    "StreamError",
    "StreamEvent",
    "StreamIdleTimeout",
    "StreamInUse",
    "StreamInterrupted",
    "TLSError",
    "ToolCall",
    "ToolCallDTO",
    "ToolCallPart",
    "ToolData",
    "ToolEventDataDTO",
    "ToolPartDTO",
    "ToolResult",
    "ToolResultDTO",
    "TransportError",
    "TransportTimeout",
    "TurnMessage",
    "UnknownEvent",
    "ValidationError",
    "WriteTimeout",
]
