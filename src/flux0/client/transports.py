"""Chooses the sync and the async transport of a client from its arguments."""

from __future__ import annotations

import sys
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, TypeVar, cast

from flux0.adapters.shared.misplaced import library_of, refuse_misplaced
from flux0.client.default_transport import DefaultTransport
from flux0.domain.errors import Flux0Error, InvalidArgument
from flux0.ports import AsyncTransport, Shared, Time, Transport
from flux0.runtime.time import SystemTime

if TYPE_CHECKING:
    from flux0.adapters.httpx.transport import AsyncHttpClient, HttpClient, HttpxFamilyTransport

T = TypeVar("T")


def _refuse_eventlet() -> None:
    eventlet: Any = sys.modules.get("eventlet")
    if eventlet is not None and eventlet.patcher.is_monkey_patched("socket"):
        problem = "eventlet has replaced the sockets with its own, which flux0 does not support"
        advice = "use threads or asyncio, or do not patch the module socket"
        raise Flux0Error(f"{problem}: {advice}")


def choose_transports(
    transport: Transport | AsyncTransport | None,
    async_transport: AsyncTransport | None,
    client: HttpClient | None,
    async_client: AsyncHttpClient | None,
) -> tuple[Transport | None, AsyncTransport]:
    """Return the transport of sync calls, which may be None, and the transport of async calls.

    Without an async transport or client, async calls use the sync transport, in worker threads if
    it has no method `send_async`. Sync calls never use an async transport or client.
    """
    _refuse_eventlet()
    if client is not None and transport is not None:
        raise InvalidArgument("client", "cannot be passed together with transport")
    if async_client is not None and async_transport is not None:
        raise InvalidArgument("async_client", "cannot be passed together with async_transport")
    _check_transport("transport", transport, "send", "send_async")
    _check_transport("async_transport", async_transport, "send_async")
    base: Any = transport if client is None else _httpx_transport(client)
    own: Any = async_transport if async_client is None else _httpx_transport(None, async_client)
    if base is None and own is None:
        base = DefaultTransport(_httpx_transport)
    if base is not None and not hasattr(base, "send") and own is not None:
        problem = "is async and cannot be passed together with async_transport or async_client"
        raise InvalidArgument("transport", problem)
    base, own = _for_client(base), _for_client(own)
    # An `HttpxTransport` has `send` and `send_async`. If the user passed only an httpx.AsyncClient,
    # `serves_sync` is False; if the user passed only an httpx.Client, `serves_async` is False.
    serves_sync = hasattr(base, "send") and getattr(base, "serves_sync", True)
    serves_async = hasattr(base, "send_async") and getattr(base, "serves_async", True)
    if own is None and not serves_async:
        from flux0.runtime.threads import ThreadedTransport  # noqa: PLC0415 - rarely needed

        own = ThreadedTransport(base)
    return (base if serves_sync else None), (base if own is None else own)


def time_source(transport: object) -> Time:
    own = getattr(transport, "time", None)
    return own if isinstance(own, Time) else SystemTime()


def _for_client(transport: T) -> T:
    return cast("T", transport.for_client()) if isinstance(transport, Shared) else transport


def _httpx_transport(client: Any = None, async_client: Any = None) -> HttpxFamilyTransport:
    from flux0.adapters.httpx import Httpx2Transport, HttpxTransport  # noqa: PLC0415 - loads httpx

    is_httpx2 = "httpx2" in (library_of(client), library_of(async_client))
    return (Httpx2Transport if is_httpx2 else HttpxTransport)(client, async_client)


def _check_transport(argument: str, value: object, *methods: str) -> None:
    if value is None:
        return
    refuse_misplaced(argument, value)
    if not any(hasattr(value, method) for method in methods):
        problem = f"must have a method {' or '.join(methods)}, but {value!r} has none"
        raise InvalidArgument(argument, problem)
    if iscoroutinefunction(getattr(value, "send", None)):
        raise InvalidArgument(argument, "has an async method send: rename it to send_async")
