"""The transport over urllib3, for sync code.

The steps of one request:

1. `Urllib3Transport.send` finds the server's pool, or the proxy's manager.
2. `track` changes the pool's connection class, so that connections record their progress in a
   `Urllib3Exchange`.
3. urllib3 takes an idle connection from the pool, or connects. If this fails, nothing was sent.
4. The connection records that the request is being sent, and sends its head and body.
5. `TrackedResponse.begin` reads the response head. Before the head is received, flux0 calls
   `Interrupt.fire`, which shuts down the socket, at the deadline or if the client is closed.
6. `send` returns the response. The body has not been read yet.
7. The caller reads the body piece by piece. `TrackedResponse.pieces` yields the received bytes, and
   `SyncBody` decodes them.
8. At the end, the connection returns to the pool. If the body is closed early, or after
   an error, the connection is closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.util import make_headers, parse_url

from flux0.adapters.shared.bodies import OpenBodies, SyncBody
from flux0.adapters.shared.failures import failure
from flux0.adapters.shared.limits import ACCEPT_ENCODING, MAX_CONNECTIONS
from flux0.adapters.shared.misplaced import check_type, transport_repr
from flux0.adapters.shared.proxies import PYSOCKS_SCHEMES, EnvironmentProxies
from flux0.adapters.urllib3.body import Urllib3Source, request_body, translate_error
from flux0.adapters.urllib3.connection import Urllib3Exchange, check_urllib3
from flux0.adapters.urllib3.pools import close_pools, track
from flux0.domain.errors import ConnectError, mark_user_error
from flux0.domain.headers import Headers
from flux0.domain.http import is_framed
from flux0.ports import ByteStream, Request, Response
from flux0.runtime.processes import PerProcess, fork_lock

# urllib3 creates a pool with one slot. `track` adds the other slots, because urllib3 itself takes
# longer than a call to add 1,000 slots.
_POOL: Final[dict[str, Any]] = {"maxsize": 1, "block": True}
_ACCEPT: Final = Headers((("Accept-Encoding", ACCEPT_ENCODING),))
_NO_RETRIES: Final = urllib3.Retry(total=False, redirect=False)


class Urllib3Transport:
    """Sends requests over urllib3, with your pool manager or a built-in pool manager.

    Your manager, such as a `ProxyManager`, is used with its proxy, certificates, limits and default
    headers, and is never closed. flux0 tracks the manager's connections, in order to know
    whether a request was sent.

    The built-in manager reads the environment's proxy settings before the first request to each
    server. To ignore these settings, pass a `PoolManager()`.

    The timeouts come from the request. The pool timeout has an effect only if the manager has
    `block=True`, as the built-in manager does. Redirects are not followed, and the retries of
    urllib3 are disabled.
    """

    def __init__(self, pool_manager: urllib3.PoolManager | None = None) -> None:
        check_urllib3()
        check_type("pool_manager", pool_manager, urllib3.PoolManager)
        self._user_manager = pool_manager
        self._connections = PerProcess(partial(_Connections, pool_manager))

    def __repr__(self) -> str:
        return transport_repr(self, pool_manager=self._user_manager)

    def send(self, request: Request) -> Response[ByteStream]:
        """Send `request` once, and return the response when its head was received."""
        connections, timeout = self._connections.get(), request.timeout
        try:
            opener, target = connections.opener_for(request.url)
        except urllib3.exceptions.HTTPError as error:
            raise failure(ConnectError, error, timeout) from error
        with Urllib3Exchange(request) as exchange:
            try:
                response = opener.urlopen(
                    request.method,
                    target,
                    redirect=False,
                    assert_same_host=False,
                    body=request_body(request.body),
                    headers=_headers(request, opener.headers),
                    retries=_NO_RETRIES,
                    preload_content=False,
                    timeout=urllib3.Timeout(connect=timeout.connect, read=timeout.read),
                    pool_timeout=timeout.pool,
                )
            except Exception as error:
                if isinstance(error, urllib3.exceptions.HTTPError) or error is exchange.failure:
                    raise translate_error(error, exchange) from error
                mark_user_error(error, sent=exchange.sent)
                raise
        headers = Headers(tuple(response.headers.items()))
        body = SyncBody(Urllib3Source(response, timeout.read))
        connections.bodies.add(body)
        return Response(response.status, headers, body, response, not is_framed(headers))

    def close(self) -> None:
        """Close the connections and the open bodies, unless you passed in the pool manager."""
        if self._user_manager is None:
            self._connections.get().close()


class _Connections:
    def __init__(self, user_manager: urllib3.PoolManager | None) -> None:
        self.bodies = OpenBodies()
        built_in = user_manager is None
        self._proxies = EnvironmentProxies("urllib3", PYSOCKS_SCHEMES) if built_in else None
        self._size = MAX_CONNECTIONS if built_in else None
        # `_managers` maps the URL of each proxy to a pool manager. The key None is for connections
        # without a proxy.
        self._managers: dict[str | None, Any] = {} if built_in else {None: user_manager}
        self._last_pool: tuple[str, urllib3.HTTPConnectionPool] | None = None

    def close(self) -> None:
        self._last_pool = None
        for manager in self._managers.copy().values():
            close_pools(manager)
        self.bodies.close()

    def opener_for(self, url: str) -> tuple[Any, str]:
        """Return the object whose `urlopen` sends a request to `url`, and the URL for `urlopen`."""
        proxy = None if self._proxies is None else self._proxies.proxy_for(url)
        manager: Any = self._managers.get(proxy)
        if manager is None:
            manager = self._managers.setdefault(proxy, _make_manager(proxy))
        if proxy is not None or self._proxies is None:
            track(manager.connection_from_url(url), self._size)
            return manager, url
        # Call the pool directly instead of `PoolManager.urlopen`, which parses the URL for each
        # request.
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        last = self._last_pool
        if last is None or last[0] != origin:
            last = self._last_pool = origin, manager.connection_from_url(origin)
        track(last[1], self._size)
        path = parts.path or "/"
        return last[1], f"{path}?{parts.query}" if parts.query else path


def _make_manager(proxy: str | None) -> urllib3.PoolManager:
    parsed = parse_url(proxy or "")
    proxy_url = parsed._replace(auth=None).url
    if proxy is None:
        return urllib3.PoolManager(**_POOL)
    if proxy_url.startswith("socks"):
        # Hold `fork_lock` during the import. If another thread forks during an import, the child
        # waits forever for the import locks that it inherits.
        with fork_lock:
            from urllib3.contrib.socks import SOCKSProxyManager  # noqa: PLC0415 - needs PySocks

        user, _, password = (parsed.auth or "").partition(":")
        return SOCKSProxyManager(proxy_url, unquote(user) or None, unquote(password), **_POOL)
    auth = make_headers(proxy_basic_auth=unquote(parsed.auth)) if parsed.auth else None
    return urllib3.ProxyManager(proxy_url, proxy_headers=auth, **_POOL)


def _headers(request: Request, defaults: Mapping[str, str]) -> dict[str, str]:
    merged = Headers(tuple(defaults.items())).merge(_ACCEPT).merge(request.headers)
    # ProxyManager adds the header fields Accept and Host, unless the request has fields with
    # exactly these names. Therefore, use title case for all names.
    headers = {name.title(): value for name, value in merged.items()}
    if request.body is not None:
        headers["Content-Length"] = str(len(request.body))
    return headers
