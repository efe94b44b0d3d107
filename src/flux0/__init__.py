"""The Python client of the flux0 agent server.

    with Flux0() as flux0:
        agents = flux0.agents.list()

`flux0.models` has every model and error. Importing this package loads no HTTP library; a transport
loads its own when it is first asked for.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from flux0._version import __version__
from flux0.client.conversation import AsyncConversation, Conversation
from flux0.client.flux0 import Flux0
from flux0.client.streams import AsyncEventStream, EventStream
from flux0.domain.enums import EventSource, EventType, SessionStatus
from flux0.domain.errors import (
    AgentError,
    APIError,
    DecodeError,
    Flux0Error,
    HTTPValidationError,
    MissingDependency,
    StreamError,
    StreamIdleTimeout,
    StreamInterrupted,
    TransportError,
)
from flux0.domain.messages.accumulator import MessageAccumulator
from flux0.domain.retrying import BackoffStrategy, RetryConfig, RetryDetails
from flux0.domain.stream_events import ChunkEvent, StatusEvent, UnknownEvent

if TYPE_CHECKING:
    from flux0 import models
    from flux0.adapters.aiohttp import AiohttpTransport
    from flux0.adapters.httpx import HttpxTransport
    from flux0.adapters.httpx2 import Httpx2Transport
    from flux0.adapters.requests import RequestsTransport
    from flux0.adapters.urllib3 import Urllib3Transport
    from flux0.ports import Codec

T = TypeVar("T")

EventTypeDTO = EventType
EventSourceDTO = EventSource

# The adapter module that each transport is in, which is its extra's name too.
_TRANSPORTS = {
    "AiohttpTransport": "aiohttp",
    "Httpx2Transport": "httpx2",
    "HttpxTransport": "httpx",
    "RequestsTransport": "requests",
    "Urllib3Transport": "urllib3",
}


def to_dict(model: object) -> Any:
    """Return the JSON form that the server uses for a model, as plain dicts, lists and values."""
    return _codec().to_dict(model)


def from_dict(model: type[T], data: object) -> T:
    """Return the model that plain JSON stands for; raises `DecodeError` where it does not fit."""
    return _codec().from_dict(model, data)


@cache
def _codec() -> Codec:
    from flux0.adapters.json import JsonCodec  # noqa: PLC0415 - cattrs is slow to import

    return JsonCodec()


def __getattr__(name: str) -> Any:
    if name == "models":
        return import_module("flux0.models")
    if name not in _TRANSPORTS:
        raise AttributeError(f"module 'flux0' has no attribute {name!r}")
    module = _TRANSPORTS[name]
    try:
        return getattr(import_module(f"flux0.adapters.{module}"), name)
    except ModuleNotFoundError as error:
        package = "flux0-client" if module == "httpx" else f"flux0-client[{module}]"
        raise MissingDependency(
            f"{name} needs the package {error.name}: pip install '{package}'"
        ) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "APIError",
    "AgentError",
    "AiohttpTransport",
    "AsyncConversation",
    "AsyncEventStream",
    "BackoffStrategy",
    "ChunkEvent",
    "Conversation",
    "DecodeError",
    "EventSource",
    "EventSourceDTO",
    "EventStream",
    "EventType",
    "EventTypeDTO",
    "Flux0",
    "Flux0Error",
    "HTTPValidationError",
    "Httpx2Transport",
    "HttpxTransport",
    "MessageAccumulator",
    "MissingDependency",
    "RequestsTransport",
    "RetryConfig",
    "RetryDetails",
    "SessionStatus",
    "StatusEvent",
    "StreamError",
    "StreamIdleTimeout",
    "StreamInterrupted",
    "TransportError",
    "UnknownEvent",
    "Urllib3Transport",
    "__version__",
    "from_dict",
    "models",
    "to_dict",
]
