"""The proxies that the environment names, by one rule for all transports.

The libraries have rules of their own, which differ, and some have none.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from flux0.domain.errors import ConnectError


class EnvironmentProxies:
    """Which proxy a request goes through, as the environment was when its server was first asked.

    `HTTP_PROXY`, `HTTPS_PROXY` and `ALL_PROXY` name proxies, and `NO_PROXY` the servers that are
    reached without one; on macOS and Windows the system's settings count too.

    Args:
        library: what connects to the proxies.
        schemes: those of the proxies that it knows.
    """

    def __init__(self, library: str, schemes: Iterable[str] = ("http", "https")) -> None:
        self._library = library
        self._schemes = frozenset(schemes)
        self._known: dict[str, str | None] = {}

    def proxy_for(self, url: str) -> str | None:
        """Return the URL of the proxy for a request, or None; raises `ConnectError`."""
        origin = "/".join(url.split("/", 3)[:3])
        if origin not in self._known:
            self._known[origin] = self._find(origin)
        return self._known[origin]

    def _find(self, origin: str) -> str | None:
        try:
            server = urlsplit(origin)
            host, port = server.hostname or "", server.port
        except ValueError:
            return None  # The library says what is wrong with the URL.
        proxies = getproxies()
        proxy = proxies.get(server.scheme) or proxies.get("all")
        if not proxy or _is_direct(host, port, proxies.get("no", "")):
            return None
        if "://" not in proxy:
            proxy = f"http://{proxy}"
        scheme, _, rest = proxy.partition("://")
        login, at, place = rest.rpartition("@")
        try:
            usable = scheme.lower() in self._schemes and bool(urlsplit(proxy).hostname)
            usable = usable and urlsplit(proxy).port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ConnectError(
                f"the environment names the proxy {scheme}://{place}, which {self._library} cannot "
                "use"
            )
        # Some of the libraries leave out a name that has no password.
        return f"{scheme}://{login}:@{place}" if at and ":" not in login else proxy


def _is_direct(host: str, port: int | None, exceptions: str) -> bool:
    if proxy_bypass(host if port is None else f"{host}:{port}"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    for exception in exceptions.split(","):
        try:
            if address in ip_network(exception.strip(), strict=False):
                return True
        except ValueError:
            continue  # It is a name.
    return False
