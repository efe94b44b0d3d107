"""The environment's proxy settings, such as `HTTPS_PROXY`.

All built-in clients use the rules in this module, because each HTTP library has different rules,
and some libraries ignore the environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from ipaddress import ip_address, ip_network
from typing import Final
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from flux0.adapters.shared.failures import unusable_proxy
from flux0.runtime.processes import fork_lock

# If PySocks is installed, urllib3 supports proxies with the schemes in `PYSOCKS_SCHEMES`.
PYSOCKS_SCHEMES: Final = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")


class EnvironmentProxies:
    """Finds the proxy for each server, and caches it.

    The environment is read at the first request to each server: the variables `HTTP_PROXY`,
    `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`. On macOS and Windows, the system settings are used,
    too.

    Args:
        library: The HTTP library that connects to the proxies.
        schemes: The URL schemes of proxies that the library supports.
    """

    def __init__(self, library: str, schemes: Iterable[str] = ("http", "https")) -> None:
        self._library = library
        self._schemes = frozenset(schemes)
        self._proxies: dict[str, str | None] = {}

    def proxy_for(self, url: str) -> str | None:
        origin = "/".join(url.split("/", 3)[:3])
        if origin not in self._proxies:
            self._proxies[origin] = self._find(origin)
        return self._proxies[origin]

    def _find(self, origin: str) -> str | None:
        server, proxies = _parse(origin), getproxies()
        if server is None:  # If the URL is invalid, the HTTP library raises an error later.
            return None
        proxy = proxies.get(server.scheme) or proxies.get("all")
        if not proxy or _is_direct(server, proxies.get("no", "")):
            return None
        if "://" not in proxy:
            proxy = f"http://{proxy}"
        scheme, _, rest = proxy.partition("://")
        login, at, place = rest.rpartition("@")
        if _parse(proxy) is None or scheme.lower() not in self._schemes:
            raise unusable_proxy(
                f"{self._library} cannot use the proxy {scheme}://{place} from the environment: "
                "use a URL such as http://proxy:8080"
            )
        if scheme.lower().startswith("socks"):
            # A SOCKS proxy needs a further module. The extra `socks` of the HTTP library installs
            # this module, for example httpx[socks].
            module = "socksio" if self._library.startswith("httpx") else "socks"
            try:
                # Hold `fork_lock` during the import. If another thread forks during an import, the
                # child waits forever for the import locks that it inherits.
                with fork_lock:
                    import_module(module)
            except ImportError as error:
                raise unusable_proxy(
                    f"{self._library} needs a package for the proxy {scheme}://{place}: "
                    f"pip install '{self._library}[socks]'"
                ) from error
        # Some HTTP libraries omit a proxy's user name if there is no password, so add an empty
        # password.
        return f"{scheme}://{login}:@{place}" if at and ":" not in login else proxy


def _parse(url: str) -> SplitResult | None:
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.hostname and parts.port != 0:
            return parts
    return None


def _is_direct(server: SplitResult, exceptions: str) -> bool:
    host = (server.hostname or "").rstrip(".")
    place = host if server.port is None else f"{host}:{server.port}"
    if proxy_bypass(place):
        return True
    # Remove brackets and final dots from the hosts in `exceptions`, so that `[::1]` and
    # `example.org.` match, too.
    for exception in re.sub(r"[\[\]]", "", exceptions.lower()).split(","):
        name = exception.strip().strip(".")
        if name and (f".{host}".endswith(f".{name}") or place == name):
            return True
        # `ip_address` and `ip_network` raise ValueError if `host` or `name` is a host name.
        with suppress(ValueError):
            if ip_address(host) in ip_network(name, strict=False):
                return True
    return False
