"""Which transports a client's calls go over."""

from __future__ import annotations

from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, cast

from flux0.domain.errors import InvalidArgument
from flux0.ports import AsyncTransport, Transport

if TYPE_CHECKING:
    import httpx2

    from flux0.adapters.httpx import AsyncHttpClient, HttpClient
    from flux0.adapters.support.httpx_family import HttpxFamilyTransport


def choose_transports(
    transport: Transport | AsyncTransport | None,
    async_transport: AsyncTransport | None,
    client: HttpClient | httpx2.Client | None,
    async_client: AsyncHttpClient | httpx2.AsyncClient | None,
) -> tuple[Transport | None, AsyncTransport]:
    """Return what synchronous calls go over, if they can, and what asynchronous calls do."""
    if client is not None:
        _refuse_both("client", "transport", transport)
        _require_method("client", client, "build_request")
        _require_method("client", client, "send", asynchronous=False)
    if async_client is not None:
        _refuse_both("async_client", "async_transport", async_transport)
        _require_method("async_client", async_client, "build_request")
        _require_method("async_client", async_client, "send", asynchronous=True)
    if transport is not None and not hasattr(transport, "send_async"):
        _require_method("transport", transport, "send", asynchronous=False)
    elif transport is not None and not hasattr(transport, "send"):  # It would serve nothing.
        _refuse_both("transport", "async_client, being asynchronous", async_client)
        _refuse_both("transport", "async_transport, being asynchronous", async_transport)
    if async_transport is not None:
        _require_method("async_transport", async_transport, "send_async")

    sync_side: Any = transport if hasattr(transport, "send") else None
    async_side: Any = async_transport
    if async_side is None and hasattr(transport, "send_async"):
        async_side = transport
    nothing_given = transport is None and async_transport is None
    if client is not None and async_client is not None:  # They may be of two libraries.
        sync_side, async_side = _over_httpx(client, None), _over_httpx(None, async_client)
    elif nothing_given or client is not None or async_client is not None:
        over_httpx = _over_httpx(client, async_client)
        if client is not None or nothing_given:
            sync_side = over_httpx
        if async_client is not None or (async_side is None and transport is None):
            async_side = over_httpx
    if async_side is None:
        from flux0.adapters.threads import ThreadedTransport  # noqa: PLC0415 - loads anyio

        async_side = ThreadedTransport(sync_side)
    return cast("Transport | None", sync_side), cast("AsyncTransport", async_side)


def _over_httpx(
    client: HttpClient | httpx2.Client | None,
    async_client: AsyncHttpClient | httpx2.AsyncClient | None,
) -> HttpxFamilyTransport:
    """Return a transport over these clients' library: httpx2 if they are of that, else httpx."""
    classes = (*type(client).__mro__, *type(async_client).__mro__)
    if any(given.__module__.partition(".")[0] == "httpx2" for given in classes):
        from flux0.adapters.httpx2 import Httpx2Transport  # noqa: PLC0415 - loads httpx2

        return Httpx2Transport(cast("Any", client), cast("Any", async_client))
    from flux0.adapters.httpx import HttpxTransport  # noqa: PLC0415 - loads httpx

    return HttpxTransport(cast("Any", client), cast("Any", async_client))


def _refuse_both(argument: str, other: str, value: object) -> None:
    if value is not None:
        raise InvalidArgument(argument, f"cannot be passed together with {other}")


def _require_method(
    argument: str, value: object, name: str, *, asynchronous: bool | None = None
) -> None:
    method = getattr(value, name, None)
    if method is None:
        raise InvalidArgument(argument, f"has no method {name}: {value!r}")
    if asynchronous is not None and iscoroutinefunction(method) is not asynchronous:
        kind = "asynchronous" if asynchronous else "synchronous"
        raise InvalidArgument(argument, f"must be {kind}, and {name} of {value!r} is not")
