"""The transport over urllib3, for synchronous code."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from io import SEEK_CUR, BytesIO
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.util import make_headers, parse_url

from flux0.adapters.shared.bodies import OpenBodies, SyncBody
from flux0.adapters.shared.failures import failure
from flux0.adapters.shared.limits import ACCEPT_ENCODING, MAX_CONNECTIONS
from flux0.adapters.shared.misplaced import shown
from flux0.adapters.shared.proxies import EnvironmentProxies
from flux0.adapters.urllib3.body import Urllib3Body, in_blocks, translated
from flux0.adapters.urllib3.connection import Urllib3Exchange, require, watch
from flux0.domain.errors import ConnectError
from flux0.domain.headers import Headers
from flux0.domain.http import is_framed, is_success
from flux0.ports import ByteStream, Request, Response
from flux0.runtime.processes import PerProcess

_POOL: Final[dict[str, Any]] = {"maxsize": MAX_CONNECTIONS, "block": True}
_NO_RETRIES: Final = urllib3.Retry(total=False, redirect=False)


class Urllib3Transport:
    """Sends requests over urllib3, through a pool manager of the user's or one made here.

    A manager passed in, such as a `ProxyManager`, keeps its proxy, certificates, limits and default
    headers, and is never closed here. Its connections are watched, to know what was sent. One made
    here takes proxies from the environment, when it first sends; `Urllib3Transport(PoolManager())`
    takes none. Timeouts are the request's, but `pool` counts only where the pools block, as those
    made here do. Redirects are not followed, and urllib3's own retries are off.
    """

    def __init__(self, pool_manager: urllib3.PoolManager | None = None) -> None:
        require("pool_manager", pool_manager, urllib3.PoolManager)
        self._given = pool_manager
        self._pools = PerProcess(partial(_Connections, pool_manager))

    def __repr__(self) -> str:
        return shown(self, pool_manager=self._given)

    def send(self, request: Request) -> Response[ByteStream]:
        """Send `request` once; see `Transport.send`."""
        pools = self._pools.get()
        timeout = request.timeout
        try:
            opener, target = pools.opening(request.url)
        except urllib3.exceptions.HTTPError as error:
            raise failure(ConnectError, error, timeout) from error
        with Urllib3Exchange(request) as exchange:
            try:
                response = opener.urlopen(
                    request.method,
                    target,
                    redirect=False,
                    assert_same_host=False,
                    body=in_blocks(request.body),
                    headers=_headers(request, pools.manager),
                    retries=_NO_RETRIES,
                    preload_content=False,
                    timeout=_timeout(timeout.connect, timeout.read),
                    pool_timeout=timeout.pool,
                )
            except Exception as error:
                if isinstance(error, urllib3.exceptions.HTTPError) or error is exchange.failure:
                    raise translated(error, exchange) from error
                raise
        raw, retain = (response, None) if is_success(response.status) else _readable(response)
        reading = Urllib3Body(response, timeout, retain)
        if request.is_streaming(response.status):
            reading.set_timeout(timeout.idle)
        headers = Headers(tuple(response.headers.items()))
        body = SyncBody(reading)
        pools.bodies.add(body)
        return Response(response.status, headers, body, raw, not is_framed(headers))

    def close(self) -> None:
        """Close the connections, and what is read over them, unless the manager is the user's."""
        if self._given is None:
            self._pools.get().close()


class _Connections:
    """The connections of one process.

    Attributes:
        manager: the user's, or one made here.
        bodies: what is read over it.
    """

    def __init__(self, given: urllib3.PoolManager | None) -> None:
        self.manager = urllib3.PoolManager(**_POOL) if given is None else given
        self.bodies = OpenBodies()
        self._proxies = EnvironmentProxies("urllib3") if given is None else None
        self._proxied: dict[str, urllib3.PoolManager] = {}
        self._last: tuple[str, urllib3.HTTPConnectionPool] | None = None

    def close(self) -> None:
        self._last = None
        for manager in (self.manager, *self._proxied.values()):
            manager.clear()  # A pool that nobody holds closes its connections.
        self.bodies.close()

    def opening(self, url: str) -> tuple[Any, str]:
        """Return what opens a URL, and what of the URL it is to be given."""
        parts = urlsplit(url)
        manager = self._manager_for(url)
        if manager is not self.manager or self._proxies is None:
            watch(manager.connection_from_url(url))
            return manager, url
        # As PoolManager.urlopen does, which takes a URL apart anew each time.
        origin = f"{parts.scheme}://{parts.netloc}"
        last = self._last
        if last is None or last[0] != origin:
            last = self._last = origin, manager.connection_from_url(origin)
        watch(last[1])
        path = parts.path or "/"
        return last[1], f"{path}?{parts.query}" if parts.query else path

    def _manager_for(self, url: str) -> urllib3.PoolManager:
        proxy = None if self._proxies is None else self._proxies.proxy_for(url)
        if proxy is None:
            return self.manager
        made = self._proxied.get(proxy)
        if made is None:
            parsed = parse_url(proxy)
            auth = make_headers(proxy_basic_auth=unquote(parsed.auth)) if parsed.auth else None
            made = urllib3.ProxyManager(parsed._replace(auth=None).url, proxy_headers=auth, **_POOL)
            made = self._proxied.setdefault(proxy, made)
        return made


@lru_cache(8)
def _timeout(connect: float | None, read: float | None) -> urllib3.Timeout:
    return urllib3.Timeout(connect=connect, read=read)


def _headers(request: Request, manager: urllib3.PoolManager) -> dict[str, str]:
    given = manager.headers, {"Accept-Encoding": ACCEPT_ENCODING}, request.headers
    # ProxyManager gives way to fields that are spelled like its own.
    headers = {name.title(): value for fields in given for name, value in fields.items()}
    if request.body is not None:
        headers["Content-Length"] = str(len(request.body))
    return headers


def _readable(response: Any) -> tuple[urllib3.HTTPResponse, Callable[[bytes], object]]:
    """Return a response for users to read, and what takes its content, once that was read here."""
    content = BytesIO()
    copy = urllib3.HTTPResponse(
        content,
        response.headers,
        response.status,
        response.version,
        response.reason,
        preload_content=False,
        decode_content=False,
        enforce_content_length=False,
        request_url=response.url,
    )

    def fill(data: bytes) -> None:
        if not content.closed:  # As it is once the copy was closed, or dropped.
            content.seek(-content.write(data), SEEK_CUR)

    return copy, fill
