"""Which transports a client's calls go over."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from flux0.adapters.shared.misplaced import library_of, refuse_misplaced
from flux0.domain.errors import InvalidArgument
from flux0.ports import AsyncTransport, Shared, Time, Transport
from flux0.runtime.time import SystemTime

if TYPE_CHECKING:
    from flux0.adapters.httpx.family import (
        AsyncHttpClient,
        HttpClient,
        HttpxFamilyTransport,
    )

T = TypeVar("T")

# The transports of clients that are given none; the last one counts. They are those of the whole
# process, since code under test makes its clients in any thread and task.
_stand_ins: Final[list[Any]] = []


@contextmanager
def standing_in(transport: T) -> Generator[T, None, None]:
    """Have `transport` serve each client that is made without one, within a `with` block."""
    _stand_ins.append(transport)
    try:
        yield transport
    finally:
        _stand_ins.remove(transport)


def choose_transports(
    transport: Transport | AsyncTransport | None,
    async_transport: AsyncTransport | None,
    client: HttpClient | None,
    async_client: AsyncHttpClient | None,
) -> tuple[Transport | None, AsyncTransport]:
    """Return what synchronous calls go over, if they can, and what asynchronous calls do.

    What was given serves both kinds of calls, in worker threads where it must. What is asynchronous
    serves asynchronous calls alone.
    """
    given: tuple[object, ...] = (transport, async_transport, client, async_client)
    if _stand_ins and given == (None,) * len(given):
        transport = _stand_ins[-1]
    _check_transport("transport", transport, "send", "send_async")
    _check_transport("async_transport", async_transport, "send_async")
    if client is not None and transport is not None:
        raise InvalidArgument("client", "cannot be passed together with transport")
    if async_client is not None and async_transport is not None:
        raise InvalidArgument("async_client", "cannot be passed together with async_transport")
    given_async = async_transport is not None or async_client is not None
    if transport is not None and not hasattr(transport, "send") and given_async:
        problem = "is asynchronous, and cannot be passed together with another such transport"
        raise InvalidArgument("transport", problem)

    transport, async_transport = _own(transport), _own(async_transport)
    # A transport for both kinds of calls may have been given a client for one of them only.
    serves_sync = hasattr(transport, "send") and getattr(transport, "serves_sync", True)
    serves_async = hasattr(transport, "send_async") and getattr(transport, "serves_async", True)
    sync_side: Any = transport if serves_sync else None
    async_side: Any = async_transport
    if client is not None:
        sync_side = _over_httpx(client)
    if async_client is not None:
        async_side = _over_httpx(async_client, asynchronous=True)
    elif async_side is None and serves_async:
        async_side = transport
    if sync_side is None and async_side is None:
        from flux0.adapters.httpx import HttpxTransport  # noqa: PLC0415 - loads httpx

        sync_side = async_side = HttpxTransport()
    elif async_side is None:
        from flux0.runtime.threads import ThreadedTransport  # noqa: PLC0415 - loads anyio

        async_side = ThreadedTransport(cast("Transport", sync_side))
    return cast("Transport | None", sync_side), cast("AsyncTransport", async_side)


def time_of(transport: object) -> Time:
    """Return the time that a transport brings along, or else that of the machine."""
    own = getattr(transport, "time", None)
    return own if isinstance(own, Time) else SystemTime()


def _own(transport: T) -> T:
    """Return a client's own transport, if several clients share this one."""
    return cast("T", transport.for_client()) if isinstance(transport, Shared) else transport


def _over_httpx(client: Any, *, asynchronous: bool = False) -> HttpxFamilyTransport:
    """Return a transport over this client's library: httpx2 if it is of that, else httpx."""
    given = (None, client) if asynchronous else (client, None)
    if library_of(client) == "httpx2":
        from flux0.adapters.httpx import Httpx2Transport  # noqa: PLC0415 - loads httpx2

        return Httpx2Transport(*given)
    from flux0.adapters.httpx import HttpxTransport  # noqa: PLC0415 - loads httpx

    return HttpxTransport(*given)


def _check_transport(argument: str, value: object, *methods: str) -> None:
    if value is None:
        return
    refuse_misplaced(argument, value)
    if not any(hasattr(value, method) for method in methods):
        raise InvalidArgument(argument, f"must have a method {' or '.join(methods)}: {value!r}")
    if iscoroutinefunction(getattr(value, "send", None)):
        raise InvalidArgument(argument, "has an asynchronous send; that is called send_async")
