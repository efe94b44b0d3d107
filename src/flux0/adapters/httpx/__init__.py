"""The transports over httpx and httpx2. Creating a transport imports its library."""

from flux0.adapters.httpx.transport import (
    AsyncHttpClient as AsyncHttpClient,
    HttpClient as HttpClient,
    Httpx2Transport as Httpx2Transport,
    HttpxTransport as HttpxTransport,
)
