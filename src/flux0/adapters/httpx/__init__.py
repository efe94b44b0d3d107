"""The transports over httpx and httpx2. Creating a transport imports its library."""

from flux0.adapters.httpx.transport import (
    AsyncHttpClient,
    HttpClient,
    Httpx2Transport,
    HttpxTransport,
)

__all__ = ["AsyncHttpClient", "HttpClient", "Httpx2Transport", "HttpxTransport"]
