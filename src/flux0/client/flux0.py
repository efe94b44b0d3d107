"""The composition root: wires adapters and middleware to the use cases."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from inspect import iscoroutinefunction
from time import monotonic, sleep
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast, final

from flux0._version import __version__
from flux0.adapters.sse import SSEParser
from flux0.adapters.support.event_loop import sleep as sleep_async
from flux0.client.caller import Caller, Defaults
from flux0.client.conversation import AsyncConversation, Conversation
from flux0.client.drivers import AsyncDriver, Clock, Driver
from flux0.client.resources import AgentsResource, SessionsResource
from flux0.domain import options
from flux0.domain.errors import InvalidArgument
from flux0.domain.headers import Headers
from flux0.domain.models import Agent, Session
from flux0.domain.retrying import DEFAULT_RETRIES, RetryConfig
from flux0.flows import Middleware, chain
from flux0.middleware.bodies import WholeBody
from flux0.middleware.errors import ErrorPolicy
from flux0.middleware.headers import ComputedHeaders
from flux0.middleware.retry import Clocks, Retry, RetryBudget, RetryDetails
from flux0.ports import AsyncTransport, Timeout, Transport
from flux0.usecases.turn import Turn

if TYPE_CHECKING:
    import httpx2

    from flux0.adapters.httpx import AsyncHttpClient, HttpClient
    from flux0.adapters.support.httpx_family import HttpxFamilyTransport
    from flux0.middleware.logging import DebugLogger

DEFAULT_SERVER_URL = "http://127.0.0.1:8080"
DEFAULT_MAX_EVENT_BYTES = 16 * 1024 * 1024
DEFAULT_MAX_BODY_BYTES = 64 * 1024 * 1024

_USER_AGENT = Headers((("user-agent", f"flux0-client/{__version__}"),))


@final
class Flux0:
    """A client of a flux0 server, for synchronous and asynchronous code.

    It may be shared by threads, and by event loops one after another. Use it as a context manager,
    or call `close`; what is forgotten is closed when the client is garbage collected or the
    process or event loop ends.

    Args:
        server_url: where the server is; by default `FLUX0_SERVER_URL`, else http://127.0.0.1:8080.
        transport: sends the requests of synchronous methods, and of the others too if it can.
        async_transport: sends the requests of asynchronous methods.
        client: an `httpx.Client` or `httpx2.Client`, or anything with the same `build_request` and
            `send`, to send synchronous requests with. It is never closed here.
        async_client: an `httpx.AsyncClient`, likewise.
        retry_config: what is tried again; by default a GET up to three times, and a POST only
            where the server surely did nothing with it.
        timeout_ms: how long a call may take with all its retries, in milliseconds; for a stream,
            until its headers. By default only single waits are limited, to a minute at most.
        stream_idle_timeout_ms: how long a stream may be silent, in milliseconds.
        headers: header fields to send with every request. A function as a value is called for
            each attempt, such as one that returns a token and refreshes it.
        middleware: layers of the user's own, the outermost first. They are around the retries: each
            sees a call once, however often it is tried.
        on_retry: is told of each retry before its wait.
        debug_logger: is told of every exchange; by default, if `FLUX0_DEBUG` is 1, the logger
            `flux0`.
        max_event_bytes: the largest event that a stream may have.
        max_body_bytes: the largest body that is read whole.
    """

    agents: AgentsResource
    sessions: SessionsResource

    def __init__(
        self,
        server_url: str | None = None,
        *,
        transport: Transport | AsyncTransport | None = None,
        async_transport: AsyncTransport | None = None,
        client: HttpClient | httpx2.Client | None = None,
        async_client: AsyncHttpClient | httpx2.AsyncClient | None = None,
        retry_config: RetryConfig | None = None,
        timeout_ms: int | None = None,
        stream_idle_timeout_ms: int | None = None,
        headers: Mapping[str, str | Callable[[], str]] | None = None,
        middleware: Iterable[Middleware] = (),
        on_retry: Callable[[RetryDetails], None] | None = None,
        debug_logger: DebugLogger | None = None,
        max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES,
        max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
    ) -> None:
        # Imported late: cattrs takes longer to import than all of this package.
        from flux0.adapters.json import JsonCodec  # noqa: PLC0415

        codec = JsonCodec()
        options.size("max_event_bytes", max_event_bytes)
        options.size("max_body_bytes", max_body_bytes)
        fixed, computed = _split({} if headers is None else headers)
        timeout = Timeout()
        if stream_idle_timeout_ms is not None:
            idle = options.seconds("stream_idle_timeout_ms", stream_idle_timeout_ms)
            timeout = Timeout(idle=idle)
        if server_url is None:
            server_url = os.environ.get("FLUX0_SERVER_URL") or DEFAULT_SERVER_URL
        defaults = Defaults(
            server_url=options.server_url(server_url),
            headers=fixed,
            timeout=timeout,
            call_timeout=None if timeout_ms is None else options.seconds("timeout_ms", timeout_ms),
            retries=(
                DEFAULT_RETRIES
                if retry_config is None
                else options.retries("retry_config", retry_config)
            ),
            max_body_bytes=max_body_bytes,
        )

        sync_side, async_side = _transports(transport, async_transport, client, async_client)
        # A transport that is not real keeps its own time, so that no test waits.
        clock: Clock = getattr(
            async_side if sync_side is None else sync_side, "monotonic", monotonic
        )
        layers: list[Middleware] = [*middleware, _retry(on_retry, clock)]
        if computed:
            layers.append(ComputedHeaders(computed))
        logger = debug_logger if debug_logger is not None else _environment_logger()
        if logger is not None:
            from flux0.middleware.logging import Logging  # noqa: PLC0415

            layers.append(Logging(logger, clock))
        layers += (WholeBody(max_body_bytes), ErrorPolicy(codec, max_body_bytes))
        driver = None
        if sync_side is not None:
            driver = Driver(sync_side, getattr(sync_side, "sleep", sleep), clock)
        async_driver = AsyncDriver(
            async_side, getattr(async_side, "sleep_async", sleep_async), clock
        )
        self._caller = Caller(chain(layers), codec, defaults, driver, async_driver, clock)
        self.agents = AgentsResource(self._caller)
        self.sessions = SessionsResource(
            self._caller, lambda: Turn(SSEParser(max_event_bytes=max_event_bytes), codec)
        )

    def conversation(
        self,
        *,
        agent: Agent | str | None = None,
        session: Session | str | None = None,
        user: str | None = None,
        title: str | None = None,
    ) -> Conversation:
        """Open a session with an agent, or take one up, and return the conversation.

        Args:
            agent: the agent to talk to, or its id.
            session: the session to go on with, or its id; in place of `agent`.
            user: who is talking, as the server's cookie `flux0_user_sub` names them; by default
                everybody is the one anonymous user.
            title: the new session's title, at most 200 characters.
        """
        return Conversation.open(
            self.sessions, agent=agent, session=session, user=user, title=title
        )

    async def conversation_async(
        self,
        *,
        agent: Agent | str | None = None,
        session: Session | str | None = None,
        user: str | None = None,
        title: str | None = None,
    ) -> AsyncConversation:
        """Do as `conversation` does."""
        return await AsyncConversation.open(
            self.sessions, agent=agent, session=session, user=user, title=title
        )

    def close(self) -> None:
        """Close the connections that synchronous calls opened, and refuse further calls.

        Those of asynchronous calls are closed by `close_async`, or when their event loop ends.
        """
        self._caller.close()

    async def close_async(self) -> None:
        """Close every connection of this client and refuse further calls."""
        await self._caller.close_async()

    def __enter__(self) -> Flux0:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Flux0:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close_async()


def _transports(
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


def _split(
    headers: Mapping[str, str | Callable[[], str]],
) -> tuple[Headers, dict[str, Callable[[], str]]]:
    """Return the header fields with fixed values, and those whose values are computed."""
    if not isinstance(headers, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - users pass what they like
        raise InvalidArgument(
            "headers", f"must be a mapping, and is of type {type(headers).__name__}"
        )
    fixed = {name: value for name, value in headers.items() if not callable(value)}
    computed = {name: value for name, value in headers.items() if callable(value)}
    names = Headers.checked(dict.fromkeys(computed, ""), "headers")
    # A computed value would lose against the one that is sent by default.
    own = Headers() if "user-agent" in names else _USER_AGENT
    return own.merge(Headers.checked(fixed, "headers")), computed


def _retry(on_retry: Callable[[RetryDetails], None] | None, clock: Clock) -> Retry:
    def tell(details: RetryDetails) -> None:
        from flux0.middleware.logging import log_retry  # noqa: PLC0415 - retries are rare

        log_retry(details)
        if on_retry is not None:
            on_retry(details)

    return Retry(RetryBudget(), Clocks(clock, _now, _random), tell)


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _random() -> float:
    from random import random  # noqa: PLC0415 - slow to import, and retries are rare

    return random()  # noqa: S311 - it spreads retries, and guards nothing


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


def _environment_logger() -> DebugLogger | None:
    if os.environ.get("FLUX0_DEBUG", "").lower() not in ("1", "true", "yes", "on"):
        return None
    import logging  # noqa: PLC0415 - only where it is asked for

    logger = logging.getLogger("flux0")
    logger.setLevel(logging.DEBUG)
    if not logger.hasHandlers():  # Asked for by the environment, so it must be seen.
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
        logger.addHandler(handler)
    return logger
