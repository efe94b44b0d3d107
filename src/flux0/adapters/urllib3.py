"""The transport over urllib3, for synchronous code."""

from __future__ import annotations

from base64 import b64encode
from functools import partial
from typing import Any, Final, cast
from urllib.parse import unquote, urlsplit

import urllib3

from flux0.adapters.support.processes import PerProcess
from flux0.adapters.support.urllib3_response import (
    ACCEPT_ENCODING,
    Blocks,
    Reading,
    ResponseBody,
    translated,
)
from flux0.domain.headers import Headers
from flux0.ports import ByteStream, Request, Response

# A turn holds its connection for as long as the agent thinks, so a busy process needs many.
_MAX_CONNECTIONS: Final = 1000
_NO_RETRIES: Final = urllib3.Retry(total=False, redirect=False)


class Urllib3Transport:
    """Sends requests over urllib3, through a pool manager of the user's or one made here.

    A manager passed in, such as a `ProxyManager`, keeps its proxy, certificates, limits and default
    headers, and is never closed here. Timeouts are the request's, but `pool` counts only where the
    pools block, as those made here do, and urllib3 writes with the timeout for connecting, which
    is then the longest that each 64 KiB of a body may take. Redirects are not followed, and
    urllib3's own retries are off.
    """

    def __init__(self, pool_manager: urllib3.PoolManager | None = None) -> None:
        self._own = pool_manager is None
        self._pools = PerProcess(partial(_Pools, pool_manager))

    def send(self, request: Request) -> Response[ByteStream]:
        """Send `request` once; see `Transport.send`."""
        pools = self._pools.get()
        headers = _headers(request, pools.manager)
        url = _take_userinfo(request.url, headers)
        open_url = pools.open_url if self._own else pools.manager.urlopen
        timeout = request.timeout
        try:
            answered = open_url(
                request.method,
                url,
                redirect=False,
                body=Blocks.of(request.body),
                headers=headers,
                retries=_NO_RETRIES,
                preload_content=False,
                timeout=urllib3.Timeout(connect=timeout.connect, read=timeout.read),
                pool_timeout=timeout.pool,
            )
        except (urllib3.exceptions.HTTPError, UnicodeError) as error:
            raise translated(error) from error
        response = cast("urllib3.HTTPResponse", answered)
        streaming = request.streams(response.status)
        reading = Reading(response, pools.readings)
        if streaming:
            reading.set_timeout(timeout.idle)
        # As `HTTPResponse.read` does, so that users find the body in `raw_response`.
        retain = None if streaming else partial(setattr, response, "_body")
        return Response(
            response.status,
            Headers(tuple(response.headers.items())),
            ResponseBody(reading, retain),
            response,
        )

    def close(self) -> None:
        """Close the connections, and what is read over them, unless the manager is the user's."""
        if self._own:
            self._pools.get().close()


class _Pools:
    """The connections of one process.

    Attributes:
        manager: the user's, or one made here.
        readings: what is read over it.
    """

    def __init__(self, manager: urllib3.PoolManager | None) -> None:
        self.manager = manager or urllib3.PoolManager(maxsize=_MAX_CONNECTIONS, block=True)
        self.readings: set[Reading] = set()
        self._last: tuple[str, urllib3.HTTPConnectionPool] | None = None

    def close(self) -> None:
        self._last = None
        self.manager.clear()  # A pool that nobody holds closes its connections.
        for reading in list(self.readings):
            reading.close()

    def open_url(self, method: str, url: str, **options: Any) -> urllib3.BaseHTTPResponse:
        """Do as `PoolManager.urlopen` does, which takes a URL apart anew each time."""
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        last = self._last
        if last is None or last[0] != origin:
            last = self._last = origin, self.manager.connection_from_url(origin)
        path = parts.path or "/"
        target = f"{path}?{parts.query}" if parts.query else path
        return last[1].urlopen(method, target, assert_same_host=False, **options)


def _headers(request: Request, pool_manager: urllib3.PoolManager) -> dict[str, str]:
    headers = {"Accept-Encoding": ACCEPT_ENCODING}
    for name, value in (*pool_manager.headers.items(), *request.headers.items()):
        # ProxyManager gives way to fields that are spelled like its own.
        headers[name.title()] = value
    if request.body is not None:
        headers["Content-Length"] = str(len(request.body))
    return headers


def _take_userinfo(url: str, headers: dict[str, str]) -> str:
    """Return `url` without the credentials in it, which urllib3 ignores; they go to `headers`."""
    if "@" not in url:
        return url
    parts = urlsplit(url)
    userinfo, at, host = parts.netloc.rpartition("@")
    if at:
        name, _, password = userinfo.partition(":")
        credentials = f"{unquote(name)}:{unquote(password)}".encode()
        headers["Authorization"] = f"Basic {b64encode(credentials).decode()}"
    return parts._replace(netloc=host).geturl()
