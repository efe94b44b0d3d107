"""The client class `Flux0`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn, final

from flux0._version import __version__
from flux0.client.caller import Caller
from flux0.client.conversation import (
    AsyncConversation,
    Conversation,
    UnawaitedConversation,
    sessions_of_user,
)
from flux0.client.default_transport import guarded
from flux0.client.layers import build_chain
from flux0.client.resources import AgentsResource, SessionsResource
from flux0.client.transports import choose_transports, time_source
from flux0.domain import arguments
from flux0.domain.headers import Headers
from flux0.domain.messages.accumulator import DEFAULT_MAX_TURN_BYTES
from flux0.domain.retrying import DEFAULT_RETRIES, RetryConfig, RetryDetails
from flux0.domain.stored_models import Agent, Session
from flux0.domain.uncopyable import Uncopyable
from flux0.flows import HeaderFunction, Middleware
from flux0.middleware.observing import Observers
from flux0.observers import Observer
from flux0.ports import AsyncTransport, Timeout, Transport
from flux0.usecases.call import ApiCall
from flux0.usecases.options import (
    CallOptions,
    TurnOptions,
    check_names,
    check_options,
    show_options,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from flux0.adapters.httpx.transport import AsyncHttpClient, HttpClient
    from flux0.middleware.logging import DebugLogger

_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_USER_AGENT = Headers((("user-agent", f"flux0-client/{__version__} Python/{_PYTHON}"),))
DEFAULT_SERVER_URL = "http://127.0.0.1:8080"
# The default of `stream_idle_timeout_ms`, converted to seconds. The default is long, because an
# agent can compute for minutes before it sends its next event.
DEFAULT_IDLE_TIMEOUT = 600.0
DEFAULT_MAX_EVENT_BYTES = 16 * 1024 * 1024
DEFAULT_MAX_BODY_BYTES = 64 * 1024 * 1024

# The modules that functions of flux0 import. The first client imports all of them: if one thread
# imports a module while another thread forks, the child process waits forever when it imports the
# same module.
_IMPORTED_IN_CALLS = (
    *("base64", "email.utils", "http", "json", "logging", "urllib.parse"),
    *("flux0.client.json_form", "flux0.turns.relay", "flux0.runtime.threads"),
)


@final
@show_options
class Flux0(Uncopyable):
    """A client of a flux0 server, for sync and async code.

        with Flux0() as client:
            agent = client.agents.first()
            print(client.conversation(agent=agent).ask("Hello").text)

    Each method that sends a request has an async version: `client.agents.list_async()`.

    Any number of threads, tasks and event loops can share a client.

    Use the client in a `with` or `async with` block, or call `close` or `close_async`. Otherwise,
    the connections are closed when the client is unreferenced, or when the process or the event
    loop ends. flux0 never closes an HTTP client that you passed in.

    Args:
        server_url: The server's URL. Default: the environment variable `FLUX0_SERVER_URL`, or
            `http://127.0.0.1:8080`. If the environment variable `FLUX0_TOKEN` is set, its value is
            sent to this server as a bearer token, unless the URL or `headers` contains credentials.
        transport: The transport of sync methods. Without an async transport, it also sends the
            requests of async methods, in worker threads if it has no method `send_async`.
        async_transport: The transport of async methods.
        client: Your `httpx.Client` or `httpx2.Client`, or an object with the same `build_request`
            and `send`, instead of `transport`.
        async_client: Your `httpx.AsyncClient` or `httpx2.AsyncClient`, instead of
            `async_transport`.
        retry_config: The retry policy. By default, a GET is sent up to three times. A POST is sent
            again only if the server cannot have acted on it.
        timeout_ms: The longest time in milliseconds that a call may take, with all its retries. For
            a stream, the longest time until the response headers are received. By default, the
            whole call has no limit; connecting is limited to 10 s, and each wait until data is sent
            or received is limited to 60 s.
        stream_idle_timeout_ms: The longest time in milliseconds between two events of a stream.
            Default: 600 s.
        headers: Header fields to send with each request. If a value is a function, the function is
            called for each attempt, for example to refresh a token. An async function works only in
            async calls.
        middleware: Generator functions `(request, send) -> Flow[Response]`, outermost first. They
            run once for each call, around all its retries.
        observers: Objects that are called when calls, attempts and turns start and end, such as
            `flux0.adapters.opentelemetry.OpenTelemetry`. See `flux0.observers`.
        on_retry: A function that is called before the wait for each retry.
        debug_logger: A logger for all requests and responses. Default: if the environment variable
            `FLUX0_DEBUG` is 1, the logger `flux0`; otherwise nothing is logged.
        max_event_bytes: The size limit of one event of a stream. Default: 16 MiB.
        max_turn_bytes: The size limit of all messages that a stream builds from its events. The
            docstring of `MessageAccumulator` says how the size is counted. Default: 64 MiB. When
            the limit is reached, events are still yielded, but no longer added to the messages.
        max_body_bytes: The size limit of a decoded response body that is not streamed. Default:
            64 MiB.

    Attributes:
        agents: The server's agents.
        sessions: The server's sessions and their events.
    """

    agents: AgentsResource
    sessions: SessionsResource

    def __init__(
        self,
        server_url: str | None = None,
        *,
        transport: Transport | AsyncTransport | None = None,
        async_transport: AsyncTransport | None = None,
        client: HttpClient | None = None,
        async_client: AsyncHttpClient | None = None,
        retry_config: RetryConfig | None = None,
        timeout_ms: int | None = None,
        stream_idle_timeout_ms: int | None = None,
        headers: Mapping[str, str | HeaderFunction] | None = None,
        middleware: Iterable[Middleware] = (),
        observers: Iterable[Observer] = (),
        on_retry: Callable[[RetryDetails], None] | None = None,
        debug_logger: DebugLogger | None = None,
        max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES,
        max_turn_bytes: int = DEFAULT_MAX_TURN_BYTES,
        max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
        **options: NoReturn,
    ) -> None:
        # The modules in `_IMPORTED_IN_CALLS`, and the codec, are slow to import. Therefore, the
        # first client imports them, and not `import flux0`.
        for module in _IMPORTED_IN_CALLS:
            import_module(module)
        from flux0.adapters.json import JsonCodec  # noqa: PLC0415

        check_names(options, of_call=False)
        codec = JsonCodec()
        fixed, functions = arguments.split_headers("headers", {} if headers is None else headers)
        idle = arguments.optional_seconds("stream_idle_timeout_ms", stream_idle_timeout_ms)
        retries = DEFAULT_RETRIES if retry_config is None else retry_config
        if server_url is None:
            server_url = os.environ.get("FLUX0_SERVER_URL") or DEFAULT_SERVER_URL
        server_url, login = arguments.server_url(server_url)
        if not login.pairs and (token := os.environ.get("FLUX0_TOKEN", "").strip()):
            login = arguments.headers("FLUX0_TOKEN", {"authorization": f"Bearer {token}"})
        transports = choose_transports(transport, async_transport, client, async_client)
        time = time_source(transports[0] or transports[1])
        observing = Observers(observers, time)
        max_body = arguments.integer("max_body_bytes", max_body_bytes, smallest=1)
        send = build_chain(codec, time, max_body, middleware, on_retry, debug_logger, observing)
        default_call = ApiCall(
            send=guarded(send, transports),
            codec=codec,
            server_url=server_url,
            login=login,
            headers=_USER_AGENT.merge(fixed),
            header_functions=functions,
            timeout=Timeout(),
            idle_timeout=DEFAULT_IDLE_TIMEOUT if idle is None else idle,
            limit=arguments.optional_seconds("timeout_ms", timeout_ms),
            max_event_bytes=arguments.integer("max_event_bytes", max_event_bytes, smallest=1),
            max_turn_bytes=arguments.integer("max_turn_bytes", max_turn_bytes, smallest=1),
            retries=arguments.instance("retry_config", RetryConfig, retries),
            observe=observing.observe_call if observing else None,
        )
        self._set_caller(Caller(default_call, *transports, time, observing))

    def _set_caller(self, caller: Caller) -> None:
        self._caller = caller
        self.agents = AgentsResource(caller)
        self.sessions = SessionsResource(caller)

    def with_options(self, **options: Unpack[TurnOptions]) -> Flux0:
        """Return a client with different default options and the same connections.

        The options are the same as for `client.sessions.create_event`. For each option that is
        None, the new client uses the setting of this client.

        Both clients share the transport, its connections and the open turns, so the new client is
        cheap. Closing the new client has no effect. Closing this client closes both clients.
        """
        check_options(options, TurnOptions)
        caller = self._caller.with_options(**options)
        client = Flux0.__new__(Flux0)
        client._set_caller(caller)  # noqa: SLF001 - a method of the same class
        return client

    @property
    def is_closed(self) -> bool:
        """Whether the client was closed. Calls of a closed client raise `ClientClosed`."""
        return self._caller.is_closed

    def conversation(
        self,
        *,
        agent: Agent | str | None = None,
        session: Session | str | None = None,
        user: str | None = None,
        title: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        mode: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Conversation:
        """Start a conversation with an agent, or continue an existing session.

        Pass either `agent`, to create a new session, or `session`, to continue an existing session.
        Continuing a session sends no request. `http_headers` and `server_url` apply to all requests
        of the conversation. The other options of `client.sessions.create`, such as `extra_body`,
        are accepted for a new session, and apply only to the request that creates it.

        Args:
            agent: The agent to talk to, or its id.
            session: The session to continue, or its id.
            user: A name or id that never changes for this user, sent as the cookie
                `flux0_user_sub`. Characters that a cookie cannot contain, such as spaces and `é`,
                and `%` are percent-encoded. By default, all clients share one anonymous user, whose
                name `anonymous` is rejected.
            title: The title of a new session, at most 200 characters.
            metadata: Data to store with a new session, as plain JSON. The server 0.1.0b4 rejects
                it.
            mode: The mode of a new session, such as `record`. The server 0.1.0b4 rejects it.

        Raises:
            BadRequestError: The agent does not exist. If the session does not exist, sending the
                first message raises this error.
        """
        new: dict[str, Any] = {"title": title, "metadata": metadata, "mode": mode}
        sessions, known = sessions_of_user(self._caller, agent, session, user, new, options)
        if session is None:
            session = sessions.create(agent_id=str(known.id), **new, **options)
        return Conversation(sessions, session, user)

    @UnawaitedConversation.returned_by
    async def conversation_async(
        self,
        *,
        agent: Agent | str | None = None,
        session: Session | str | None = None,
        user: str | None = None,
        title: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        mode: str | None = None,
        **options: Unpack[CallOptions],
    ) -> AsyncConversation:
        """The async version of `conversation`. The returned conversation has async methods."""
        new: dict[str, Any] = {"title": title, "metadata": metadata, "mode": mode}
        sessions, known = sessions_of_user(self._caller, agent, session, user, new, options)
        if session is None:
            session = await sessions.create_async(agent_id=str(known.id), **new, **options)
        return AsyncConversation(sessions, session, user)

    def close(self) -> None:
        """Close the connections of sync calls and all streams. Later calls raise `ClientClosed`.

        Calls in progress and readers of a stream get a `ClientClosed`, in all threads and event
        loops. Idle connections of async calls stay open until `close_async` is called, or until
        their event loop ends.
        """
        self._caller.close()

    async def close_async(self) -> None:
        """Close all connections and streams, even if the caller is cancelled.

        Later calls raise `ClientClosed`.
        """
        await self._caller.close_async()

    def __repr__(self) -> str:
        return f"Flux0({self._caller.server_url!r})"

    def __enter__(self) -> Flux0:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Flux0:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close_async()
