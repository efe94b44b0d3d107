"""The Python client for flux0 agent servers.

    with Flux0() as client:
        agents = client.agents.list()

This package has all names of `flux0.models`, too. Each name is imported when it is first used.
Therefore `import flux0` imports no HTTP library, and the command line handles Ctrl-C as soon as it
starts.
"""

from __future__ import annotations

from importlib import import_module

from flux0._version import __version__ as __version__

# `TYPE_CHECKING` is defined here, because importing `typing.TYPE_CHECKING` makes `import flux0`
# slower. Type checkers treat any variable with this name as True.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flux0 import models as models
    from flux0.adapters.aiohttp.transport import AiohttpTransport as AiohttpTransport
    from flux0.adapters.httpx import (
        AsyncHttpClient as AsyncHttpClient,
        HttpClient as HttpClient,
        Httpx2Transport as Httpx2Transport,
        HttpxTransport as HttpxTransport,
    )
    from flux0.adapters.redis.store import RedisTurnStore as RedisTurnStore
    from flux0.adapters.urllib3.requests_transport import RequestsTransport as RequestsTransport
    from flux0.adapters.urllib3.transport import Urllib3Transport as Urllib3Transport
    from flux0.client.background_turns import BackgroundTurns as BackgroundTurns
    from flux0.client.conversation import (
        AsyncConversation as AsyncConversation,
        Conversation as Conversation,
    )
    from flux0.client.flux0 import Flux0 as Flux0
    from flux0.client.json_form import (
        from_dict as from_dict,
        to_dict as to_dict,
        to_json as to_json,
    )
    from flux0.domain.headers import Headers as Headers
    from flux0.domain.messages.accumulator import MessageAccumulator as MessageAccumulator
    from flux0.domain.retrying import (
        BackoffStrategy as BackoffStrategy,
        RetryConfig as RetryConfig,
        RetryDetails as RetryDetails,
    )
    from flux0.models import *  # noqa: F403 - all its names are public names of flux0
    from flux0.relay_format import (
        RELAY_HEADERS as RELAY_HEADERS,
        Flux0Format as Flux0Format,
        RelayEncoder as RelayEncoder,
        RelayFormat as RelayFormat,
    )
    from flux0.turn_store import (
        StoreState as StoreState,
        TurnStats as TurnStats,
        TurnStore as TurnStore,
    )
    from flux0.turns.background_turn import BackgroundTurn as BackgroundTurn
    from flux0.turns.memory_store import MemoryTurnStore as MemoryTurnStore
    from flux0.turns.streams import AsyncEventStream as AsyncEventStream, EventStream as EventStream

# `_NAMES` maps each module to its public names, except the names of `flux0.models`.
_NAMES = {
    "adapters.aiohttp.transport": ["AiohttpTransport"],
    "adapters.httpx": ["AsyncHttpClient", "HttpClient", "Httpx2Transport", "HttpxTransport"],
    "adapters.redis.store": ["RedisTurnStore"],
    "adapters.urllib3.requests_transport": ["RequestsTransport"],
    "adapters.urllib3.transport": ["Urllib3Transport"],
    "client.background_turns": ["BackgroundTurns"],
    "client.conversation": ["AsyncConversation", "Conversation"],
    "client.flux0": ["Flux0"],
    "client.json_form": ["from_dict", "to_dict", "to_json"],
    "turns.streams": ["AsyncEventStream", "EventStream"],
    "domain.headers": ["Headers"],
    "domain.messages.accumulator": ["MessageAccumulator"],
    "domain.retrying": ["BackoffStrategy", "RetryConfig", "RetryDetails"],
    "relay_format": ["Flux0Format", "RELAY_HEADERS", "RelayEncoder", "RelayFormat"],
    "turn_store": ["StoreState", "TurnStats", "TurnStore"],
    "turns.background_turn": ["BackgroundTurn"],
    "turns.memory_store": ["MemoryTurnStore"],
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # The first access to any public name imports all errors, so that `except flux0.APIError` never
    # imports a module while Python handles an exception.
    models = import_module("flux0.models")
    if name == "models":
        value: Any = models
    elif name == "__all__":
        public = (each for each in vars(models) if not each.startswith("_"))
        value = sorted(("__version__", "models", *_MODULES, *public))
    elif name in _MODULES:
        try:
            value = getattr(import_module(f"flux0.{_MODULES[name]}"), name)
        except ModuleNotFoundError as error:
            return _placeholder(name, error)
    elif hasattr(models, name):
        value = getattr(models, name)
    else:
        raise AttributeError(f"module 'flux0' has no attribute {name!r}")
    globals()[name] = value
    return value


def _placeholder(name: str, cause: ModuleNotFoundError) -> type[Any]:
    """Return a placeholder for the class of a transport whose HTTP library is not installed.

    The placeholder raises `MissingDependency` when it is instantiated.

    `inspect` and `from flux0 import *` access all public names. Therefore, accessing a transport
    must not raise, even if its HTTP library is not installed.
    """
    from flux0.adapters.shared.misplaced import (  # noqa: PLC0415 - imports the errors
        TRANSPORTS,
        not_installed,
    )

    libraries = {transport: library for library, transport in TRANSPORTS.items()}
    if name not in libraries:
        raise cause

    def fail(*_: object, **__: object) -> None:
        raise not_installed(libraries[name]) from cause

    return type(name, (), {"__module__": __name__, "__init__": fail})


def __dir__() -> list[str]:
    names: list[str] = __getattr__("__all__")
    return names
