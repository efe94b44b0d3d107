"""The Python client of the flux0 agent server.

    with Flux0() as client:
        agents = client.agents.list()

`flux0.models` has all models and errors. `import flux0` imports no HTTP library: the library of a
transport is imported when the transport is first used.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, overload

from flux0._version import __version__
from flux0.adapters.shared.misplaced import not_installed
from flux0.client.conversation import AsyncConversation, Conversation
from flux0.client.flux0 import Flux0
from flux0.client.streams import AsyncEventStream, EventStream
from flux0.domain.headers import Headers
from flux0.domain.messages.accumulator import MessageAccumulator
from flux0.domain.retrying import BackoffStrategy, RetryConfig, RetryDetails
from flux0.models import *  # noqa: F403 - listed in __all__ below

if TYPE_CHECKING:
    from flux0 import models
    from flux0.adapters.aiohttp.transport import AiohttpTransport
    from flux0.adapters.httpx import (
        AsyncHttpClient,
        HttpClient,
        Httpx2Transport,
        HttpxTransport,
    )
    from flux0.adapters.json import JsonCodec
    from flux0.adapters.urllib3.requests_transport import RequestsTransport
    from flux0.adapters.urllib3.transport import Urllib3Transport

T = TypeVar("T")

# Public names that are imported on first use. Each value has the module in `flux0.adapters` that
# defines the name, and the package that the module needs.
_LATE = {
    "AiohttpTransport": ("aiohttp.transport", "aiohttp"),
    "AsyncHttpClient": ("httpx", "httpx"),
    "HttpClient": ("httpx", "httpx"),
    "Httpx2Transport": ("httpx", "httpx2"),
    "HttpxTransport": ("httpx", "httpx"),
    "RequestsTransport": ("urllib3.requests_transport", "requests"),
    "Urllib3Transport": ("urllib3.transport", "urllib3"),
}


def to_dict(model: object) -> Any:
    """Convert a model to the JSON form of the server: dicts, lists and plain values."""
    return _codec().to_dict(model)


def to_json(model: object) -> str:
    """Return the JSON form of a model as a JSON string; see `to_dict`."""
    return _codec().encode(model).decode()


@overload
def from_dict(model: type[T], data: object) -> T: ...
@overload
def from_dict(model: object, data: object) -> Any: ...
def from_dict(model: Any, data: object) -> Any:
    """Build a model from its JSON form, such as the result of `to_dict`.

    Args:
        model: The class of the model. It can also be one of the unions `StreamEvent`, `EventData`
            and `MessagePart`, or a list or tuple type, such as `list[StreamEvent]`.
        data: The JSON form: dicts, lists and plain values.

    Raises:
        DecodeError: The data does not have the shape of the model.
        InvalidArgument: `model` is not a model.
    """
    return _codec().from_dict(model, data)


@cache
def _codec() -> JsonCodec:
    from flux0.adapters.json import JsonCodec  # noqa: PLC0415 - slow to import

    return JsonCodec()


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'flux0' has no attribute {name!r}")
    module, extra = _LATE[name]
    try:
        return getattr(import_module(f"flux0.adapters.{module}"), name)
    except ModuleNotFoundError as error:
        return _placeholder(name, extra, error)


def _placeholder(name: str, extra: str, cause: ModuleNotFoundError) -> type[Any]:
    """Return a class that raises `MissingDependency` when it is instantiated.

    `inspect` and `from flux0 import *` access all public names. Therefore, accessing a transport
    must not raise, even if the HTTP library of the transport is not installed.
    """

    def fail(*_: object, **__: object) -> None:
        raise not_installed(extra) from cause

    return type(name, (), {"__module__": __name__, "__init__": fail})


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [  # noqa: F405 - from flux0.models
    "APIError",
    "Agent",
    "AgentError",
    "AgentNotFound",
    "Agents",
    "AiohttpTransport",
    "AsyncConversation",
    "AsyncEventStream",
    "AsyncHttpClient",
    "AuthenticationError",
    "BackoffStrategy",
    "BadRequestError",
    "ChunkEvent",
    "ClientClosed",
    "ConflictError",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionInterrupted",
    "ConsumptionOffsets",
    "ContentPart",
    "ControlOptions",
    "Conversation",
    "DecodeError",
    "Event",
    "EventData",
    "EventSource",
    "EventSourceDTO",
    "EventStream",
    "EventTooLarge",
    "EventType",
    "EventTypeDTO",
    "Events",
    "Flux0",
    "Flux0Error",
    "HTTPValidationError",
    "HTTPValidationErrorData",
    "Headers",
    "HttpClient",
    "Httpx2Transport",
    "HttpxTransport",
    "InvalidArgument",
    "JSONPatchOperation",
    "MessageAccumulator",
    "MessageData",
    "MessagePart",
    "MissingDependency",
    "NotFoundError",
    "Participant",
    "PermissionDeniedError",
    "PoolTimeout",
    "ProtocolError",
    "RateLimitError",
    "ReadTimeout",
    "ReasoningPart",
    "Reply",
    "RequestsTransport",
    "ResponseTooLarge",
    "RetryConfig",
    "RetryDetails",
    "Sent",
    "ServerError",
    "Session",
    "SessionStatus",
    "Sessions",
    "StatusData",
    "StatusEvent",
    "StoredTurn",
    "StreamError",
    "StreamEvent",
    "StreamIdleTimeout",
    "StreamInUse",
    "StreamInterrupted",
    "TLSError",
    "ToolCall",
    "ToolCallPart",
    "ToolData",
    "ToolResult",
    "TransportError",
    "TransportTimeout",
    "TurnMessage",
    "UnknownEvent",
    "Urllib3Transport",
    "ValidationError",
    "WriteTimeout",
    "__version__",
    "from_dict",
    "models",
    "to_dict",
    "to_json",
]
