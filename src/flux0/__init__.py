"""The Python client of the flux0 agent server.

    with Flux0() as client:
        agents = client.agents.list()

`flux0.models` has all models and errors. Each name is imported when it is first used. Therefore
`import flux0` imports no HTTP library, and the command line handles Ctrl-C as soon as it starts.
"""

from __future__ import annotations

from importlib import import_module

from flux0._version import __version__

TYPE_CHECKING = False  # Type checkers treat it as True. Importing `typing` takes time.
if TYPE_CHECKING:
    from typing import Any

    from flux0 import models
    from flux0.adapters.aiohttp.transport import AiohttpTransport
    from flux0.adapters.httpx import (
        AsyncHttpClient,
        HttpClient,
        Httpx2Transport,
        HttpxTransport,
    )
    from flux0.adapters.urllib3.requests_transport import RequestsTransport
    from flux0.adapters.urllib3.transport import Urllib3Transport
    from flux0.client.conversation import AsyncConversation, Conversation
    from flux0.client.flux0 import Flux0
    from flux0.client.json_form import from_dict, to_dict, to_json
    from flux0.client.streams import AsyncEventStream, EventStream
    from flux0.domain.headers import Headers
    from flux0.domain.messages.accumulator import MessageAccumulator
    from flux0.domain.retrying import BackoffStrategy, RetryConfig, RetryDetails
    from flux0.models import *  # noqa: F403 - listed in __all__ below

# Maps each public name that is not in `flux0.models` to its module.
_MODULES = {
    "AiohttpTransport": "adapters.aiohttp.transport",
    "AsyncConversation": "client.conversation",
    "AsyncEventStream": "client.streams",
    "AsyncHttpClient": "adapters.httpx",
    "BackoffStrategy": "domain.retrying",
    "Conversation": "client.conversation",
    "EventStream": "client.streams",
    "Flux0": "client.flux0",
    "Headers": "domain.headers",
    "HttpClient": "adapters.httpx",
    "Httpx2Transport": "adapters.httpx",
    "HttpxTransport": "adapters.httpx",
    "MessageAccumulator": "domain.messages.accumulator",
    "RequestsTransport": "adapters.urllib3.requests_transport",
    "RetryConfig": "domain.retrying",
    "RetryDetails": "domain.retrying",
    "Urllib3Transport": "adapters.urllib3.transport",
    "from_dict": "client.json_form",
    "to_dict": "client.json_form",
    "to_json": "client.json_form",
}
# Maps each transport whose HTTP library may not be installed to this library. An extra with the
# same name installs the library.
_EXTRAS = {
    "AiohttpTransport": "aiohttp",
    "RequestsTransport": "requests",
    "Urllib3Transport": "urllib3",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'flux0' has no attribute {name!r}")
    # Import all errors with the first name, so that `except flux0.APIError` never runs an import.
    models = import_module("flux0.models")
    if name in _EXTRAS:
        try:
            return getattr(import_module(f"flux0.{_MODULES[name]}"), name)
        except ModuleNotFoundError as error:
            return _placeholder(name, error)
    module = import_module(f"flux0.{_MODULES[name]}") if name in _MODULES else models
    value = models if name == "models" else getattr(module, name)
    globals()[name] = value
    return value


def _placeholder(name: str, cause: ModuleNotFoundError) -> type[Any]:
    """Return a class that raises `MissingDependency` when it is instantiated.

    `inspect` and `from flux0 import *` access all public names. Therefore, accessing a transport
    must not raise, even if the HTTP library of the transport is not installed.
    """
    from flux0.adapters.shared.misplaced import not_installed  # noqa: PLC0415 - imports the errors

    def fail(*_: object, **__: object) -> None:
        raise not_installed(_EXTRAS[name]) from cause

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
