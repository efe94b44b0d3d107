"""The built-in clients of httpx and httpx2, and the tracking of connections.

httpcore does not report which socket an exchange uses, or whether bytes are left after the end of a
response. Therefore flux0 opens or wraps the connections, for built-in clients and for the user's
clients.
"""

from __future__ import annotations

import os
import re
import ssl
from contextlib import AsyncExitStack
from functools import cache, lru_cache, partial
from typing import Any, Final

from flux0.adapters.httpx.async_streams import AsyncBackend
from flux0.adapters.httpx.library import Library
from flux0.adapters.httpx.pools import MAX_EXCHANGES, AsyncPool, SyncPool
from flux0.adapters.httpx.sockets import SyncBackend
from flux0.adapters.shared.bodies import OpenBodies
from flux0.adapters.shared.connecting import refuse_without_sockets
from flux0.adapters.shared.failures import failure
from flux0.adapters.shared.limits import MAX_IDLE_SECONDS
from flux0.domain.errors import ConnectError
from flux0.ports import Timeout
from flux0.runtime.processes import fork_lock

# httpx clients for http URLs get `_EMPTY_CONTEXT` as the argument `verify`, because they need no
# certificates. Without the argument, httpx loads all certificates, which takes longer than a call.
_EMPTY_CONTEXT: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def track_client(client: Any, library: Library) -> Any:
    """Track the connections that the user's client will open, and return the client."""
    if isinstance(client, (library.httpx.Client, library.httpx.AsyncClient)):
        for transport in (client._transport, *client._mounts.values()):  # noqa: SLF001 - no public way
            track_transport(transport, library)
    return client


def track_transport(transport: Any, library: Library) -> None:
    """Track the connections that a transport of httpx will open.

    Pools of httpcore accept a network backend, but httpx has no argument for the backend. Therefore
    this function sets private attributes. Existing connections are not tracked. The user's
    custom transports are left unchanged.
    """
    httpx, httpcore = library
    backends = {httpx.HTTPTransport: SyncBackend, httpx.AsyncHTTPTransport: AsyncBackend}
    for kind, backend in backends.items():
        if isinstance(transport, kind):
            pool = transport._pool  # noqa: SLF001
            if not isinstance(wrapped := pool._network_backend, backend):  # noqa: SLF001
                pool._network_backend = backend(wrapped, httpcore, type(transport) is kind)  # noqa: SLF001


class _BuiltInClient:
    """A client over httpx without cookies, authentication or redirects.

    `httpx.Client` checks for these features in each call. The checks take a quarter of the call's
    time.

    Args:
        library: httpx or httpx2.
        transport: A transport of httpx, whose pool is of `pools.py`.
    """

    def __init__(self, library: Library, transport: Any) -> None:
        self._request_class, self._sender = library.httpx.Request, transport
        # Cache parsed URLs, because parsing a URL takes a tenth of a call's time.
        self._parse_url = lru_cache(128)(partial(_parse_url, library.httpx))

    def build_request(self, method: str, url: str, *, timeout: Any, **options: Any) -> Any:
        limits = dict(zip(("connect", "read", "write", "pool"), timeout, strict=True))
        url = self._parse_url(url)
        return self._request_class(method, url, extensions={"timeout": limits}, **options)


def _parse_url(httpx_module: Any, text: str) -> Any:
    url = httpx_module.URL(text)
    if url.scheme not in ("http", "https"):
        raise httpx_module.InvalidURL("it must begin with http:// or https://")
    return url


class SyncBuiltInClient(_BuiltInClient):
    def send(self, request: Any, **_: object) -> Any:
        response = self._sender.handle_request(request)
        # Set the attribute `request` of the response, as `httpx.Client` does, because hooks and
        # errors use the attribute.
        response.request = request
        return response

    def close(self) -> None:
        self._sender.close()


class AsyncBuiltInClient(_BuiltInClient):
    async def send(self, request: Any, **_: object) -> Any:
        response = await self._sender.handle_async_request(request)
        response.request = request
        return response

    async def aclose(self) -> None:
        await self._sender.aclose()


class BuiltInClients:
    """The built-in clients of a transport. Each combination of proxy and URL scheme has a client.

    Clients are created at their first use.

    Attributes:
        bodies: The open response bodies of sync clients.
    """

    def __init__(self, library: Library, *, is_async: bool) -> None:
        self._create = partial(_create_client, library, is_async=is_async)
        self.bodies: OpenBodies = OpenBodies()
        self._clients: dict[tuple[str | None, bool], Any] = {}

    def get(self, url: str, proxy: str | None) -> Any:
        """Return the client for requests to `url` through the proxy with the URL `proxy`.

        If `proxy` is None, the client connects to the server directly.
        """
        key = proxy, url.startswith("https:")
        client = self._clients.get(key)
        if client is None:
            # If another thread has stored a client for `key` meanwhile, `setdefault` returns the
            # client of the other thread.
            client = self._clients.setdefault(key, self._create(*key))
        return client

    def close(self) -> None:
        self.bodies.close()
        self.close_clients()

    def close_clients(self) -> None:
        """Close the sync clients. Unlike `close`, this method starts no threads."""
        for client in self._clients.copy().values():
            client.close()

    async def close_async(self) -> None:
        async with AsyncExitStack() as closing:
            for client in self._clients.values():
                closing.push_async_callback(client.aclose)


def _create_client(library: Library, proxy: str | None, tls: bool, *, is_async: bool) -> Any:
    refuse_without_sockets(library.httpx.__name__)
    limits = library.httpx.Limits(keepalive_expiry=MAX_IDLE_SECONDS)
    kind = library.httpx.AsyncHTTPTransport if is_async else library.httpx.HTTPTransport
    if proxy is not None:
        # Replace the scheme socks5h, which httpx before version 0.28 rejects. With the scheme
        # socks5, all versions of httpx let the proxy look up host names, as with socks5h.
        proxy = re.sub("^socks5h:", "socks5:", proxy, flags=re.IGNORECASE)

    try:
        # OpenSSL holds a lock while it reads certificates. If the process forks at this time, the
        # child waits for the lock forever. Therefore, `fork_lock` delays the fork.
        with fork_lock:
            context = _tls_context(library.httpx) if tls else _EMPTY_CONTEXT
            transport = kind(verify=context, limits=limits, proxy=proxy)
    # httpx raises ImportError if a SOCKS proxy needs an extra, such as httpx[socks], and OSError if
    # the certificates cannot be read.
    except (ImportError, OSError) as error:
        raise failure(ConnectError, error, Timeout()) from error
    track_transport(transport, library)
    pool = AsyncPool if is_async else SyncPool
    transport._pool = pool(transport._pool, MAX_EXCHANGES)  # noqa: SLF001 - no public way
    return (AsyncBuiltInClient if is_async else SyncBuiltInClient)(library, transport)


def _tls_context(httpx_module: Any) -> Any:
    """Return the HTTP library's default TLS context.

    All clients in a process share it, because reading the certificates takes longer than a call. If
    an environment variable (`SSL_CERT_FILE`, `SSL_CERT_DIR` or `SSLKEYLOGFILE`) changes, a new
    context is created.
    """
    files = (os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"))
    return _cached_tls_context(httpx_module, os.getpid(), *files)


@cache
def _cached_tls_context(httpx_module: Any, *_: object) -> Any:
    return httpx_module.create_ssl_context()
