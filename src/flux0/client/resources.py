"""The methods that users call: each a sync and an async facade of one use case."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from flux0.client.caller import Caller
from flux0.client.open_turns import OpenTurns
from flux0.client.options import CallOptions, TurnOptions, show_options
from flux0.client.streams import AsyncEventStream, AsyncOpening, EventStream
from flux0.domain.enums import EventSource, EventType
from flux0.domain.messages.accumulator import MessageAccumulator
from flux0.domain.models import Agent, Agents, Events, Session, Sessions
from flux0.ports import Request
from flux0.usecases import agents, sessions
from flux0.usecases.call import ApiCall
from flux0.usecases.turn import Turn

if TYPE_CHECKING:
    from typing_extensions import Unpack


@show_options
class AgentsResource:
    """The agents of the server. Every method raises as `docs/errors.md` says.

    Each takes `retries`, `server_url`, `timeout_ms` and `http_headers` for that one call.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def list(self, **options: Unpack[CallOptions]) -> Agents:
        """Return every agent of the server."""
        return self._caller.run(agents.list_agents, options)

    async def list_async(self, **options: Unpack[CallOptions]) -> Agents:
        """Return every agent of the server."""
        return await self._caller.run_async(agents.list_agents, options)

    def first(
        self, *, type_: str | None = None, name: str | None = None, **options: Unpack[CallOptions]
    ) -> Agent:
        """Return the first agent, of this type and of this name where they are given.

        Raises:
            AgentNotFound: there is none; the message names those that there are.
        """
        return self._caller.run(agents.first_agent, options, type_=type_, name=name)

    async def first_async(
        self, *, type_: str | None = None, name: str | None = None, **options: Unpack[CallOptions]
    ) -> Agent:
        """Return the first agent, of this type and of this name where they are given.

        Raises:
            AgentNotFound: there is none; the message names those that there are.
        """
        return await self._caller.run_async(agents.first_agent, options, type_=type_, name=name)

    def create(
        self,
        *,
        name: str,
        type_: str,
        description: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Agent:
        """Create an agent and return it.

        Args:
            name: what people call it, at most 100 characters.
            type_: names the code that runs it; the server must have it.
            description: what it is for.
        """
        return self._caller.run(
            agents.create_agent, options, name=name, type_=type_, description=description
        )

    async def create_async(
        self,
        *,
        name: str,
        type_: str,
        description: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Agent:
        """Create an agent and return it.

        Args:
            name: what people call it, at most 100 characters.
            type_: names the code that runs it; the server must have it.
            description: what it is for.
        """
        return await self._caller.run_async(
            agents.create_agent, options, name=name, type_=type_, description=description
        )

    def retrieve(self, *, agent_id: str, **options: Unpack[CallOptions]) -> Agent:
        """Return one agent; raises `NotFoundError` where there is none of that id."""
        return self._caller.run(agents.retrieve_agent, options, agent_id=agent_id)

    async def retrieve_async(self, *, agent_id: str, **options: Unpack[CallOptions]) -> Agent:
        """Return one agent; raises `NotFoundError` where there is none of that id."""
        return await self._caller.run_async(agents.retrieve_agent, options, agent_id=agent_id)


@show_options
class SessionsResource:
    """Sessions and their events. Every method raises as `docs/errors.md` says.

    Each takes `retries`, `server_url`, `timeout_ms` and `http_headers` for that one call.
    """

    def __init__(
        self,
        caller: Caller,
        new_turn: Callable[[Request], Turn],
        new_accumulator: Callable[[], MessageAccumulator],
    ) -> None:
        self._caller = caller
        self._new_turn = new_turn
        self._new_accumulator = new_accumulator
        self._open_turns = OpenTurns()

    def create(
        self,
        *,
        agent_id: str,
        allow_greeting: bool = False,
        id: str | None = None,
        title: str | None = None,
        **options: Unpack[CallOptions],
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
        return self._caller.run(
            sessions.create_session,
            options,
            agent_id=agent_id,
            allow_greeting=allow_greeting,
            id=id,
            title=title,
        )

    async def create_async(
        self,
        *,
        agent_id: str,
        allow_greeting: bool = False,
        id: str | None = None,
        title: str | None = None,
        **options: Unpack[CallOptions],
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
        return await self._caller.run_async(
            sessions.create_session,
            options,
            agent_id=agent_id,
            allow_greeting=allow_greeting,
            id=id,
            title=title,
        )

    def list(self, *, agent_id: str | None = None, **options: Unpack[CallOptions]) -> Sessions:
        """Return the sessions of the user whom the cookie `flux0_user_sub` names."""
        return self._caller.run(sessions.list_sessions, options, agent_id=agent_id)

    async def list_async(
        self, *, agent_id: str | None = None, **options: Unpack[CallOptions]
    ) -> Sessions:
        """Return the sessions of the user whom the cookie `flux0_user_sub` names."""
        return await self._caller.run_async(sessions.list_sessions, options, agent_id=agent_id)

    def retrieve(self, *, session_id: str, **options: Unpack[CallOptions]) -> Session:
        """Return one session; raises `NotFoundError` where there is none of that id."""
        return self._caller.run(sessions.retrieve_session, options, session_id=session_id)

    async def retrieve_async(self, *, session_id: str, **options: Unpack[CallOptions]) -> Session:
        """Return one session; raises `NotFoundError` where there is none of that id."""
        return await self._caller.run_async(
            sessions.retrieve_session, options, session_id=session_id
        )

    def create_event(
        self,
        *,
        session_id: str,
        content: str,
        type_: EventType | str = EventType.MESSAGE,
        source: EventSource | str = EventSource.USER,
        **options: Unpack[TurnOptions],
    ) -> EventStream:
        """Send a message and return the stream of the turn that answers it.

        A turn that this client still has open on the session is closed first. The server takes
        messages of users alone, and answers an unknown session with 400, that is
        `BadRequestError`. `timeout_ms` is the time until the answer's headers, and
        `stream_idle_timeout_ms` the longest silence after them.
        """
        call, request, stored = self._prepare(session_id, type_, source, content, options)
        session = call.server_url, session_id
        list_stored = partial(self.list_events, **stored)
        clock = self._caller.time.monotonic
        with self._open_turns.exclusive(session, call.deadline, clock()):
            response = self._caller.drive(sessions.open_stream(call, request))
            turn, accumulator = self._new_turn(request), self._new_accumulator()
            stream = EventStream(response, turn, accumulator, list_stored, clock)
            self._open_turns.add(session, stream)
        return stream

    def create_event_async(
        self,
        *,
        session_id: str,
        content: str,
        type_: EventType | str = EventType.MESSAGE,
        source: EventSource | str = EventSource.USER,
        **options: Unpack[TurnOptions],
    ) -> AsyncOpening:
        """Send a message and return the stream of the turn that answers it.

        A turn that this client still has open on the session is closed first. The server takes
        messages of users alone, and answers an unknown session with 400, that is
        `BadRequestError`. `timeout_ms` is the time until the answer's headers, and
        `stream_idle_timeout_ms` the longest silence after them.
        """
        return AsyncOpening(self._open(session_id, type_, source, content, options))

    async def _open(
        self,
        session_id: str,
        type_: EventType | str,
        source: EventSource | str,
        content: str,
        options: TurnOptions,
    ) -> AsyncEventStream:
        call, request, stored = self._prepare(session_id, type_, source, content, options)
        session = call.server_url, session_id
        list_stored = partial(self.list_events_async, **stored)
        clock = self._caller.time.monotonic
        async with self._open_turns.exclusive_async(session, call.deadline, clock()):
            response = await self._caller.drive_async(sessions.open_stream(call, request))
            turn, accumulator = self._new_turn(request), self._new_accumulator()
            stream = AsyncEventStream(response, turn, accumulator, list_stored, clock)
            self._open_turns.add(session, stream)
        return stream

    def _prepare(
        self,
        session_id: str,
        type_: EventType | str,
        source: EventSource | str,
        content: str,
        options: TurnOptions,
    ) -> tuple[ApiCall, Request, dict[str, Any]]:
        """Return a turn's call, the request that begins it, and how its events are listed."""
        call = self._caller.call(**options)
        request = sessions.create_event(
            call, session_id=session_id, type_=type_, source=source, content=content
        )
        kept = {name: options.get(name) for name in ("server_url", "http_headers")}
        return call, request, {"session_id": session_id, **kept}

    def list_events(
        self,
        *,
        session_id: str,
        min_offset: int | None = None,
        source: EventSource | str | None = None,
        correlation_id: str | None = None,
        types: Iterable[EventType | str] | None = None,
        **options: Unpack[CallOptions],
    ) -> Events:
        """Return a session's stored events by offset, those that pass every filter given.

        Args:
            session_id: the session; `BadRequestError` where there is none of that id.
            min_offset: leave out events before this offset.
            source: who caused the event.
            correlation_id: the turn that the event belongs to.
            types: any of these types.
        """
        return self._caller.run(
            sessions.list_events,
            options,
            session_id=session_id,
            min_offset=min_offset,
            source=source,
            correlation_id=correlation_id,
            types=types,
        )

    async def list_events_async(
        self,
        *,
        session_id: str,
        min_offset: int | None = None,
        source: EventSource | str | None = None,
        correlation_id: str | None = None,
        types: Iterable[EventType | str] | None = None,
        **options: Unpack[CallOptions],
    ) -> Events:
        """Return a session's stored events by offset, those that pass every filter given.

        Args:
            session_id: the session; `BadRequestError` where there is none of that id.
            min_offset: leave out events before this offset.
            source: who caused the event.
            correlation_id: the turn that the event belongs to.
            types: any of these types.
        """
        return await self._caller.run_async(
            sessions.list_events,
            options,
            session_id=session_id,
            min_offset=min_offset,
            source=source,
            correlation_id=correlation_id,
            types=types,
        )
