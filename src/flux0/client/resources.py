"""The methods that users call: each a sync and an async facade of one use case."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from flux0.client.caller import Caller
from flux0.client.open_turns import OpenTurns
from flux0.client.streams import AsyncEventStream, EventStream
from flux0.domain.enums import EventSource, EventType
from flux0.domain.models import Agent, Agents, Events, Session, Sessions
from flux0.domain.retrying import RetryConfig
from flux0.usecases import agents, sessions
from flux0.usecases.turn import Turn


class AgentsResource:
    """The agents of the server. Every method raises as `docs/errors.md` says.

    Each takes `retries`, `server_url`, `timeout_ms` and `http_headers` for that one call.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def list(
        self,
        *,
        retries: RetryConfig | None = None,
        server_url: str | None = None,
        timeout_ms: int | None = None,
        http_headers: Mapping[str, str] | None = None,
    ) -> Agents:
        """Return every agent of the server."""
        call = self._caller.call(retries, server_url, timeout_ms, http_headers)
        return self._caller.run(agents.list_agents(call))

    async def list_async(
        self,
        *,
        retries: RetryConfig | None = None,
        server_url: str | None = None,
        timeout_ms: int | None = None,
        http_headers: Mapping[str, str] | None = None,
    ) -> Agents:
        """Do as `list` does."""
        call = self._caller.call(retries, server_url, timeout_ms, http_headers)
        return await self._caller.run_async(agents.list_agents(call))

    def create(
        self,
        *,
        name: str,
        type_: str,
        description: str | None = None,
        retries: RetryConfig | None = None,
        server_url: str | None = None,
        timeout_ms: int | None = None,
        http_headers: Mapping[str, str] | None = None,
    ) -> Agent:
        """Create an agent and return it.

        Args:
            name: what people call it, at most 100 characters.
            type_: names the code that runs it; the server must have it.
            description: what it is for.
        """
        call = self._caller.call(retries, server_url, timeout_ms, http_headers)
        return self._caller.run(
            agents.create_agent(call, name=name, type_=type_, description=description)
        )

    async def create_async(
        self,
        *,
        name: str,
        type_: str,
        description: str | None = None,
        retries: RetryConfig | None = None,
        server_url: str | None = None,
        timeout_ms: int | None = None,
        http_headers: Mapping[str, str] | None = None,
    ) -> Agent:
        """Do as `create` does."""
        call = self._caller.call(retries, server_url, timeout_ms, http_headers)
        return await self._caller.run_async(
            agents.create_agent(call, name=name, type_=type_, description=description)
        )

    def retrieve(
        self,
        *,
        agent_id: str,
        retries: RetryConfig | None = None,
        server_url: str | None = None,
        timeout_ms: int | None = None,
        http_headers: Mapping[str, str] | None = None,
    ) -> Agent:
        """Return one agent; raises `NotFoundError` where there is none of that id."""
        call = self._caller.call(retries, server_url, timeout_ms, http_headers)
        return self._caller.run(agents.retrieve_agent(call, agent_id=agent_id))

    async def retrieve_async(
        self,
        *,
        agent_id: str,
        retries: RetryConfig | None = None,
        server_url: str | None = None,
        timeout_ms: int | None = None,
        http_headers: Mapping[str, str] | None = None,
    ) -> Agent:
        """Do as `retrieve` does."""
        call = self._caller.call(retries, server_url, timeout_ms, http_headers)
        return await self._caller.run_async(agents.retrieve_agent(call, agent_id=agent_id))


class SessionsResource:
    """Sessions and their events. Every method raises as `docs/errors.md` says.

    Each takes `retries`, `server_url`, `timeout_ms` and `http_headers` for that one call.
    """

    def __init__(self, caller: Caller, new_turn: Callable[[], Turn]) -> None:
        self._caller = caller
        self._new_turn = new_turn
        self._open_turns = OpenTurns()

    def create(
        self,
        *,
        agent_id: str,
        allow_greeting: bool = False,
        id: str | None = None,
        title: str | None = None,
        retries: RetryConfig | None = None,
        server_url: str | None = None,
        timeout_ms: int | None = None,
        http_headers: Mapping[str, str] | None = None,
    ) -> Session:
        """Open a session with an agent and return it.

        Calling it twice with one `id` makes two sessions; the server does not mind.

        Args:
            agent_id: the agent to talk to; `BadRequestError` where there is none of that id.
            allow_greeting: whether the agent runs at once. The released server (0.1.0b4) neither
                streams nor stores what it then says.
            id: exactly 10 characters; the server makes one up by default.
            title: at most 200 characters.
        """
        call = self._caller.call(retries, server_url, timeout_ms, http_headers)
        return self._caller.run(
            sessions.create_session(
                call, agent_id=agent_id, allow_greeting=allow_greeting, id=id, title=title
            )
        )

    async def create_async(
        self,
        *,
        agent_id: str,
        allow_greeting: bool = False,
        id: str | None = None,
        title: str | None = None,
        retries: RetryConfig | None = None,
        server_url: str | None = None,
        timeout_ms: int | None = None,
        http_headers: Mapping[str, str] | None = None,
    ) -> Session:
        """Do as `create` does."""
        call = self._caller.call(retries, server_url, timeout_ms, http_headers)
        return await self._caller.run_async(
            sessions.create_session(
                call, agent_id=agent_id, allow_greeting=allow_greeting, id=id, title=title
            )
        )

    def list(
        self,
        *,
        agent_id: str | None = None,
        retries: RetryConfig | None = None,
        server_url: str | None = None,
        timeout_ms: int | None = None,
        http_headers: Mapping[str, str] | None = None,
    ) -> Sessions:
        """Return the sessions of the user whom the cookie `flux0_user_sub` names."""
        call = self._caller.call(retries, server_url, timeout_ms, http_headers)
        return self._caller.run(sessions.list_sessions(call, agent_id=agent_id))

    async def list_async(
        self,
        *,
        agent_id: str | None = None,
        retries: RetryConfig | None = None,
        server_url: str | None = None,
        timeout_ms: int | None = None,
        http_headers: Mapping[str, str] | None = None,
    ) -> Sessions:
        """Do as `list` does."""
        call = self._caller.call(retries, server_url, timeout_ms, http_headers)
        return await self._caller.run_async(sessions.list_sessions(call, agent_id=agent_id))

    def retrieve(
        self,
        *,
        session_id: str,
        retries: RetryConfig | None = None,
        server_url: str | None = None,
        timeout_ms: int | None = None,
        http_headers: Mapping[str, str] | None = None,
    ) -> Session:
        """Return one session; raises `NotFoundError` where there is none of that id."""
        call = self._caller.call(retries, server_url, timeout_ms, http_headers)
        return self._caller.run(sessions.retrieve_session(call, session_id=session_id))

    async def retrieve_async(
        self,
        *,
        session_id: str,
        retries: RetryConfig | None = None,
        server_url: str | None = None,
        timeout_ms: int | None = None,
        http_headers: Mapping[str, str] | None = None,
    ) -> Session:
        """Do as `retrieve` does."""
        call = self._caller.call(retries, server_url, timeout_ms, http_headers)
        return await self._caller.run_async(sessions.retrieve_session(call, session_id=session_id))

    def create_event(
        self,
        *,
        session_id: str,
        content: str,
        type_: EventType | str = EventType.MESSAGE,
        source: EventSource | str = EventSource.USER,
        retries: RetryConfig | None = None,
        server_url: str | None = None,
        timeout_ms: int | None = None,
        http_headers: Mapping[str, str] | None = None,
        stream_idle_timeout_ms: int | None = None,
    ) -> EventStream:
        """Send a message and return the stream of the turn that answers it.

        A turn that this client still has open on the session is closed first. The server takes
        messages of users alone, and answers an unknown session with 400, that is
        `BadRequestError`. `timeout_ms` is the time until the answer's headers, and
        `stream_idle_timeout_ms` the longest silence after them.
        """
        call = self._caller.call(
            retries, server_url, timeout_ms, http_headers, stream_idle_timeout_ms
        )
        flow = sessions.create_event(
            call, session_id=session_id, type_=type_, source=source, content=content
        )
        session = (call.server_url, session_id)

        def list_stored(correlation_id: str) -> Events:
            return self.list_events(
                session_id=session_id,
                correlation_id=correlation_id,
                server_url=server_url,
                http_headers=http_headers,
            )

        self._open_turns.close(session)
        stream = EventStream(self._caller.run(flow), self._new_turn(), list_stored)
        self._open_turns.add(session, stream)
        return stream

    async def create_event_async(
        self,
        *,
        session_id: str,
        content: str,
        type_: EventType | str = EventType.MESSAGE,
        source: EventSource | str = EventSource.USER,
        retries: RetryConfig | None = None,
        server_url: str | None = None,
        timeout_ms: int | None = None,
        http_headers: Mapping[str, str] | None = None,
        stream_idle_timeout_ms: int | None = None,
    ) -> AsyncEventStream:
        """Do as `create_event` does."""
        call = self._caller.call(
            retries, server_url, timeout_ms, http_headers, stream_idle_timeout_ms
        )
        flow = sessions.create_event(
            call, session_id=session_id, type_=type_, source=source, content=content
        )
        session = (call.server_url, session_id)

        async def list_stored(correlation_id: str) -> Events:
            return await self.list_events_async(
                session_id=session_id,
                correlation_id=correlation_id,
                server_url=server_url,
                http_headers=http_headers,
            )

        await self._open_turns.close_async(session)
        response = await self._caller.run_async(flow)
        stream = AsyncEventStream(response, self._new_turn(), list_stored)
        self._open_turns.add(session, stream)
        return stream

    def list_events(
        self,
        *,
        session_id: str,
        min_offset: int | None = None,
        source: EventSource | str | None = None,
        correlation_id: str | None = None,
        types: Iterable[EventType | str] | None = None,
        retries: RetryConfig | None = None,
        server_url: str | None = None,
        timeout_ms: int | None = None,
        http_headers: Mapping[str, str] | None = None,
    ) -> Events:
        """Return a session's stored events by offset, those that pass every filter given.

        Args:
            session_id: the session; `BadRequestError` where there is none of that id.
            min_offset: leave out events before this offset.
            source: who caused the event.
            correlation_id: the turn that the event belongs to.
            types: any of these types.
        """
        call = self._caller.call(retries, server_url, timeout_ms, http_headers)
        return self._caller.run(
            sessions.list_events(
                call,
                session_id=session_id,
                min_offset=min_offset,
                source=source,
                correlation_id=correlation_id,
                types=types,
            )
        )

    async def list_events_async(
        self,
        *,
        session_id: str,
        min_offset: int | None = None,
        source: EventSource | str | None = None,
        correlation_id: str | None = None,
        types: Iterable[EventType | str] | None = None,
        retries: RetryConfig | None = None,
        server_url: str | None = None,
        timeout_ms: int | None = None,
        http_headers: Mapping[str, str] | None = None,
    ) -> Events:
        """Do as `list_events` does."""
        call = self._caller.call(retries, server_url, timeout_ms, http_headers)
        return await self._caller.run_async(
            sessions.list_events(
                call,
                session_id=session_id,
                min_offset=min_offset,
                source=source,
                correlation_id=correlation_id,
                types=types,
            )
        )
