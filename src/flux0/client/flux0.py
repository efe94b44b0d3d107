"""The client that users make."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, final

from flux0.adapters.sse import SSEParser
from flux0.client.caller import Caller
from flux0.client.conversation import AsyncConversation, Conversation, check_beginning
from flux0.client.layers import HeaderFunction, build_chain, split_headers
from flux0.client.resources import AgentsResource, SessionsResource
from flux0.client.transports import choose_transports, time_of
from flux0.domain import arguments
from flux0.domain.messages.accumulator import DEFAULT_MAX_TURN_BYTES, MessageAccumulator
from flux0.domain.models import Agent, Session
from flux0.domain.retrying import DEFAULT_RETRIES, RetryConfig, RetryDetails
from flux0.flows import Middleware
from flux0.ports import AsyncTransport, Timeout, Transport
from flux0.usecases.call import ApiCall
from flux0.usecases.turn import Turn

if TYPE_CHECKING:
    from flux0.adapters.httpx.family import AsyncHttpClient, HttpClient
    from flux0.middleware.logging import DebugLogger

DEFAULT_SERVER_URL = "http://127.0.0.1:8080"
DEFAULT_MAX_EVENT_BYTES = 16 * 1024 * 1024
DEFAULT_MAX_BODY_BYTES = 64 * 1024 * 1024


@final
class Flux0:
    """A client of a flux0 server, for synchronous and asynchronous code.

    It may be shared by threads, and by event loops one after another. Use it as a context manager,
    or call `close`; what is forgotten is closed when the client is garbage collected or the
    process or event loop ends.

    Args:
        server_url: where the server is; by default `FLUX0_SERVER_URL`, else http://127.0.0.1:8080.
        transport: sends the requests of synchronous methods, and those of the others too, in worker
            threads if it is synchronous alone.
        async_transport: sends the requests of asynchronous methods.
        client: an `httpx.Client` or `httpx2.Client`, or anything with the same `build_request` and
            `send`, to send requests with. It serves asynchronous methods too, in worker threads,
            and is never closed here.
        async_client: an `httpx.AsyncClient`, likewise, for asynchronous methods.
        retry_config: what is tried again; by default a GET up to three times, and a POST only
            where the server surely did nothing with it.
        timeout_ms: how long a call may take with all its retries, in milliseconds; for a stream,
            until its headers. By default only single waits are limited, to a minute at most.
        stream_idle_timeout_ms: how long a stream may be silent, in milliseconds.
        headers: header fields to send with every request. A function as a value is called for
            each attempt, such as one that returns a token and refreshes it; one that is
            asynchronous serves asynchronous calls alone.
        middleware: layers of the user's own, the outermost first. They are around the retries: each
            sees a call once, however often it is tried.
        on_retry: is told of each retry before its wait.
        debug_logger: is told of every exchange; by default, if `FLUX0_DEBUG` is 1, the logger
            `flux0`.
        max_event_bytes: the largest event that a stream may have.
        max_turn_bytes: how much the rebuilt messages of a turn may hold, as `MessageAccumulator`
            counts it. The events are handed out all the same.
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
        client: HttpClient | None = None,
        async_client: AsyncHttpClient | None = None,
        retry_config: RetryConfig | None = None,
        timeout_ms: int | None = None,
        stream_idle_timeout_ms: int | None = None,
        headers: Mapping[str, str | HeaderFunction] | None = None,
        middleware: Iterable[Middleware] = (),
        on_retry: Callable[[RetryDetails], None] | None = None,
        debug_logger: DebugLogger | None = None,
        max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES,
        max_turn_bytes: int = DEFAULT_MAX_TURN_BYTES,
        max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
    ) -> None:
        # Imported late: a program that only imports this package needs no JSON.
        from flux0.adapters.json import JsonCodec  # noqa: PLC0415

        codec = JsonCodec()
        arguments.size("max_event_bytes", max_event_bytes)
        arguments.size("max_turn_bytes", max_turn_bytes)
        arguments.size("max_body_bytes", max_body_bytes)
        fixed, computed = split_headers({} if headers is None else headers)
        idle, whole = stream_idle_timeout_ms, timeout_ms
        if server_url is None:
            server_url = os.environ.get("FLUX0_SERVER_URL") or DEFAULT_SERVER_URL
        self._server_url, login = arguments.server_url(server_url)
        transports = choose_transports(transport, async_transport, client, async_client)
        time = time_of(transports[0] or transports[1])
        send = build_chain(
            codec,
            time,
            max_body_bytes,
            middleware=middleware,
            computed_headers=computed,
            on_retry=on_retry,
            debug_logger=debug_logger,
        )
        default_call = ApiCall(
            send=send,
            codec=codec,
            server_url=self._server_url,
            login=None if "authorization" in map(str.lower, computed) else login,
            headers=fixed,
            timeout=Timeout()
            if idle is None
            else Timeout(idle=arguments.seconds("stream_idle_timeout_ms", idle)),
            max_body_bytes=max_body_bytes,
            retries=(
                DEFAULT_RETRIES
                if retry_config is None
                else arguments.instance("retry_config", RetryConfig, retry_config)
            ),
        )
        call_timeout = None if whole is None else arguments.seconds("timeout_ms", whole)
        self._caller = Caller(default_call, call_timeout, *transports, time)
        self.agents = AgentsResource(self._caller)
        self.sessions = SessionsResource(
            self._caller,
            lambda request: Turn(SSEParser(max_event_bytes=max_event_bytes), codec, request),
            partial(MessageAccumulator, max_turn_bytes=max_turn_bytes),
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
        agent_id, headers = check_beginning(agent, session, user, title)
        if isinstance(session, str):
            session = self.sessions.retrieve(session_id=session, http_headers=headers)
        elif session is None:
            session = self.sessions.create(agent_id=agent_id, title=title, http_headers=headers)
        return Conversation(self.sessions, session, user)

    async def conversation_async(
        self,
        *,
        agent: Agent | str | None = None,
        session: Session | str | None = None,
        user: str | None = None,
        title: str | None = None,
    ) -> AsyncConversation:
        """Open a session with an agent, or take one up, and return the conversation.

        Args:
            agent: the agent to talk to, or its id.
            session: the session to go on with, or its id; in place of `agent`.
            user: who is talking, as the server's cookie `flux0_user_sub` names them; by default
                everybody is the one anonymous user.
            title: the new session's title, at most 200 characters.
        """
        agent_id, headers = check_beginning(agent, session, user, title)
        if isinstance(session, str):
            session = await self.sessions.retrieve_async(session_id=session, http_headers=headers)
        elif session is None:
            session = await self.sessions.create_async(
                agent_id=agent_id, title=title, http_headers=headers
            )
        return AsyncConversation(self.sessions, session, user)

    def close(self) -> None:
        """Close the connections that synchronous calls opened, and refuse further calls.

        Those of asynchronous calls are closed by `close_async`, or when their event loop ends.
        """
        self._caller.close()

    async def close_async(self) -> None:
        """Close every connection of this client and refuse further calls."""
        await self._caller.close_async()

    def __repr__(self) -> str:
        return f"Flux0({self._server_url!r})"

    def __enter__(self) -> Flux0:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Flux0:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close_async()
