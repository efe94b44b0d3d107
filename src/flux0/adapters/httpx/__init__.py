"""The transports over httpx and httpx2."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flux0.adapters.httpx.family import AsyncHttpClient, HttpClient
    from flux0.adapters.httpx.httpx2_transport import Httpx2Transport
    from flux0.adapters.httpx.httpx_transport import HttpxTransport

__all__ = ["AsyncHttpClient", "HttpClient", "Httpx2Transport", "HttpxTransport"]

_MODULES = {"HttpxTransport": "httpx_transport", "Httpx2Transport": "httpx2_transport"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Imported late, so that each transport imports its own library only.
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'family')}"), name)
