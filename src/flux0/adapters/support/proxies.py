"""The proxies that the environment names, for libraries that do not look for them by themselves."""

from __future__ import annotations

from urllib.request import getproxies, proxy_bypass


def environment_proxy(scheme: str, host: str, port: int) -> str | None:
    """Return the URL of the proxy for requests to a server, or None.

    `HTTP_PROXY`, `HTTPS_PROXY` and `ALL_PROXY` name proxies, and `NO_PROXY` the servers that are
    reached without one; on macOS and Windows the system's settings count too.
    """
    proxies = getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    if not proxy or proxy_bypass(f"{host}:{port}"):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
