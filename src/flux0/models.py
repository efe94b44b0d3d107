"""All models and errors of flux0.

The aliases at the end are for code that was written for the generated package `flux0_client`.
"""

from flux0.domain.api_errors import (
    APIError as APIError,
    AuthenticationError as AuthenticationError,
    BadRequestError as BadRequestError,
    ConflictError as ConflictError,
    HTTPValidationError as HTTPValidationError,
    HTTPValidationErrorData as HTTPValidationErrorData,
    NotFoundError as NotFoundError,
    PermissionDeniedError as PermissionDeniedError,
    RateLimitError as RateLimitError,
    ServerError as ServerError,
    ValidationError as ValidationError,
)
from flux0.domain.background_errors import (
    ReaderLost as ReaderLost,
    RelayEnded as RelayEnded,
    TurnRunning as TurnRunning,
    TurnStopped as TurnStopped,
    TurnStoreError as TurnStoreError,
    TurnTooLarge as TurnTooLarge,
)
from flux0.domain.enums import (
    EventSource as EventSource,
    EventType as EventType,
    SessionStatus as SessionStatus,
)
from flux0.domain.errors import (
    AgentError as AgentError,
    AgentNotFound as AgentNotFound,
    ClientClosed as ClientClosed,
    ConnectError as ConnectError,
    ConnectionInterrupted as ConnectionInterrupted,
    ConnectTimeout as ConnectTimeout,
    DecodeError as DecodeError,
    EventTooLarge as EventTooLarge,
    Flux0Error as Flux0Error,
    InvalidArgument as InvalidArgument,
    MissingDependency as MissingDependency,
    PoolTimeout as PoolTimeout,
    ProtocolError as ProtocolError,
    ReadTimeout as ReadTimeout,
    ResponseTooLarge as ResponseTooLarge,
    Sent as Sent,
    StreamError as StreamError,
    StreamIdleTimeout as StreamIdleTimeout,
    StreamInterrupted as StreamInterrupted,
    StreamInUse as StreamInUse,
    TLSError as TLSError,
    TransportError as TransportError,
    TransportTimeout as TransportTimeout,
    WriteTimeout as WriteTimeout,
)
from flux0.domain.messages.finalizing import TurnMessage as TurnMessage
from flux0.domain.messages.history import Reply as Reply, StoredTurn as StoredTurn
from flux0.domain.stored_models import (
    Agent as Agent,
    Agents as Agents,
    ConsumptionOffsets as ConsumptionOffsets,
    ContentPart as ContentPart,
    ControlOptions as ControlOptions,
    Event as Event,
    EventData as EventData,
    Events as Events,
    MessageData as MessageData,
    MessagePart as MessagePart,
    Participant as Participant,
    ReasoningPart as ReasoningPart,
    Session as Session,
    Sessions as Sessions,
    StatusData as StatusData,
    ToolCall as ToolCall,
    ToolCallPart as ToolCallPart,
    ToolData as ToolData,
    ToolResult as ToolResult,
)
from flux0.domain.stream_events import (
    ChunkEvent as ChunkEvent,
    JSONPatchOperation as JSONPatchOperation,
    StatusEvent as StatusEvent,
    StreamEvent as StreamEvent,
    UnknownEvent as UnknownEvent,
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
