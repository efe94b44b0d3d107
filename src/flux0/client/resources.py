"""The resources `agents` and `sessions` of a client, with sync and async methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, final

from flux0.adapters.sse import SSEParser
from flux0.client.caller import Caller
from flux0.client.unawaited import UnawaitedTurn
from flux0.domain.enums import EventSource, EventType
from flux0.domain.messages.accumulator import MessageAccumulator
from flux0.domain.stored_models import Agent, Agents, Events, Session, Sessions
from flux0.domain.uncopyable import Uncopyable
from flux0.flows import Flow
from flux0.turns.running_calls import CLIENT_CLOSED
from flux0.turns.streams import AsyncEventStream, EventStream
from flux0.turns.turn import Turn
from flux0.turns.turn_report import TurnReport
from flux0.usecases import agents, sessions
from flux0.usecases.options import CallOptions, TurnOptions, UserOptions, kept, show_options

if TYPE_CHECKING:
    from typing_extensions import Unpack

S = TypeVar("S", EventStream, AsyncEventStream)


class _Resource(Uncopyable):
    def __init__(self, caller: Caller) -> None:
        self.caller: Caller = caller

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.caller.server_url!r})"


@show_options
class AgentsResource(_Resource):
    """The server's agents, available as `client.agents`.

    All methods accept the options of `flux0.usecases.options.CallOptions`, such as `timeout_ms` and
    `http_headers`. They change the client's settings for one call.

    All methods raise `APIError` if the server returns an error status, `TransportError` if the
    exchange fails, and `InvalidArgument` if an argument is wrong (then no request is sent).
    """

    def list(self, **options: Unpack[CallOptions]) -> Agents:
        """Return all agents as a sequence. The server has no paging."""
        return self.caller.run(agents.list_agents, options)

    async def list_async(self, **options: Unpack[CallOptions]) -> Agents:
        """The async version of `list`."""
        return await self.caller.run_async(agents.list_agents, options)

    def first(
        self, *, type_: str | None = None, name: str | None = None, **options: Unpack[CallOptions]
    ) -> Agent:
        """Return the first agent that has this type and this name.

        Args:
            type_: The agent's type; None means any type.
            name: The agent's name; None means any name.

        Raises:
            AgentNotFound: No agent matches. The message lists the existing agents.
        """
        return self.caller.run(agents.first_agent, options, type_, name)

    async def first_async(
        self, *, type_: str | None = None, name: str | None = None, **options: Unpack[CallOptions]
    ) -> Agent:
        """The async version of `first`."""
        return await self.caller.run_async(agents.first_agent, options, type_, name)

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
            name: The agent's name, 1 to 100 characters.
            type_: The agent's type, 1 to 100 characters. The server must have a runner for this
                type.
            description: A description for people.
        """
        return self.caller.run(agents.create_agent, options, name, type_, description)

    async def create_async(
        self,
        *,
        name: str,
        type_: str,
        description: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Agent:
        """The async version of `create`."""
        return await self.caller.run_async(agents.create_agent, options, name, type_, description)

    def retrieve(self, *, agent_id: str, **options: Unpack[CallOptions]) -> Agent:
        """Return the agent with this id. Raises `NotFoundError` if it does not exist."""
        return self.caller.run(agents.retrieve_agent, options, agent_id)

    async def retrieve_async(self, *, agent_id: str, **options: Unpack[CallOptions]) -> Agent:
        """The async version of `retrieve`."""
        return await self.caller.run_async(agents.retrieve_agent, options, agent_id)


@show_options
class SessionsResource(_Resource):
    """The server's sessions and their events, available as `client.sessions`.

    A session is one dialog with one agent. `Flux0.conversation` is the easier way to send messages
    and read replies.

    All methods accept the options of `flux0.usecases.options.CallOptions`, such as `timeout_ms` and
    `http_headers`. They change the client's settings for one call. `create` and `list` also accept
    `user`.

    All methods raise `APIError` if the server returns an error status, `TransportError` if the
    exchange fails, and `InvalidArgument` if an argument is wrong (then no request is sent).
    """

    def create(
        self,
        *,
        agent_id: str,
        allow_greeting: bool = False,
        id: str | None = None,
        title: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        mode: str | None = None,
        **options: Unpack[UserOptions],
    ) -> Session:
        """Create a session with an agent and return it.

        Args:
            agent_id: The agent's id. Raises `BadRequestError` if the agent does not exist.
            allow_greeting: Run the agent at once, so that it can greet the user. The server 0.1.0b4
                neither streams nor stores this greeting.
            id: The session id, exactly 10 characters. By default, the server chooses an id. If a
                session with this id exists, the server 0.1.0b4 creates a second session with the
                same id, and a newer server raises `ConflictError`.
            title: The session's title, at most 200 characters.
            metadata: Data to store with the session, as plain JSON.
            mode: The session's mode, such as `record`.

        The server 0.1.0b4 does not know `metadata` and `mode`: it returns a 422 response, and the
        call raises `HTTPValidationError`.
        """
        return self.caller.run(
            sessions.create_session, options, agent_id, allow_greeting, id, title, metadata, mode
        )

    async def create_async(
        self,
        *,
        agent_id: str,
        allow_greeting: bool = False,
        id: str | None = None,
        title: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        mode: str | None = None,
        **options: Unpack[UserOptions],
    ) -> Session:
        """The async version of `create`."""
        return await self.caller.run_async(
            sessions.create_session, options, agent_id, allow_greeting, id, title, metadata, mode
        )

    def list(self, *, agent_id: str | None = None, **options: Unpack[UserOptions]) -> Sessions:
        """Return the sessions of one user: the option `user`, or by default the anonymous user.

        Args:
            agent_id: Return only sessions with this agent; None means all agents.
        """
        return self.caller.run(sessions.list_sessions, options, agent_id)

    async def list_async(
        self, *, agent_id: str | None = None, **options: Unpack[UserOptions]
    ) -> Sessions:
        """The async version of `list`."""
        return await self.caller.run_async(sessions.list_sessions, options, agent_id)

    def retrieve(self, *, session_id: str, **options: Unpack[CallOptions]) -> Session:
        """Return the session with this id. Raises `NotFoundError` if it does not exist."""
        return self.caller.run(sessions.retrieve_session, options, session_id)

    async def retrieve_async(self, *, session_id: str, **options: Unpack[CallOptions]) -> Session:
        """The async version of `retrieve`."""
        return await self.caller.run_async(sessions.retrieve_session, options, session_id)

    def create_event(
        self,
        *,
        session_id: str,
        content: str,
        type_: EventType | str = EventType.MESSAGE,
        source: EventSource | str = EventSource.USER,
        **options: Unpack[TurnOptions],
    ) -> EventStream:
        """Send a message to the agent of a session, and return the stream of its turn.

        If the stream of the session's previous turn is open in this client, the client closes this
        stream first, because the server runs one turn per session. If sending fails, the client
        sends the message again only if the server cannot have acted on it.

        Two options limit the time. `timeout_ms` limits the time until the response headers are
        received. `stream_idle_timeout_ms` limits the time between two events.

        Args:
            session_id: The session id. Raises `BadRequestError` if it does not exist.
            content: The message's text, not empty.
            type_: The event's type. The server 0.1.0b4 accepts only messages.
            source: The event's author. The server 0.1.0b4 accepts only users.
        """
        return Message(self, session_id, content, options, type_, source).send()

    @UnawaitedTurn.returned_by
    async def create_event_async(
        self,
        *,
        session_id: str,
        content: str,
        type_: EventType | str = EventType.MESSAGE,
        source: EventSource | str = EventSource.USER,
        **options: Unpack[TurnOptions],
    ) -> AsyncEventStream:
        """The async version of `create_event`.

        Await the result to get the stream, or use the result directly in `async with`.
        """
        message = Message(self, session_id, content, options, type_, source, is_async=True)
        return await message.send_async()

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
        """Return the stored events of a session that match all filters, ordered by offset.

        Args:
            session_id: The session id. Raises `BadRequestError` if it does not exist.
            min_offset: Return only events with this offset or a larger offset.
            source: Return only events from this source; None means all sources.
            correlation_id: Return only events from the turn with this id; None means all turns.
            types: Return only events of these types; None means all types.
        """
        return self.caller.run(
            sessions.list_events, options, session_id, min_offset, source, correlation_id, types
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
        """The async version of `list_events`."""
        return await self.caller.run_async(
            sessions.list_events, options, session_id, min_offset, source, correlation_id, types
        )


@final
class Message:
    """A message to send. Creating the object checks all arguments and options."""

    def __init__(
        self,
        resource: SessionsResource,
        session_id: str,
        content: str,
        options: TurnOptions,
        type_: EventType | str = EventType.MESSAGE,
        source: EventSource | str = EventSource.USER,
        *,
        is_async: bool = False,
    ) -> None:
        self._caller = caller = resource.caller
        self._call = call = caller.call(options, TurnOptions)
        if not is_async:
            caller.sync_driver()
        self._session = call.server_url, session_id
        self._request = sessions.create_event(call, session_id, type_, source, content)
        list_events = resource.list_events_async if is_async else resource.list_events
        # `EventStream.stored_events` sends its request with the message's `server_url` and
        # `http_headers`.
        self._list_stored = partial(list_events, session_id=session_id, **kept(options))

    def send(self) -> EventStream:
        caller, call = self._caller, self._call
        with caller.open_turns.exclusive(self._session, call.deadline):
            stream = caller.sync_driver().run(self._open(EventStream), call.deadline)
        # If another thread called `Flux0.close` before `open_turns.add`, `Flux0.close` has not
        # closed `stream`.
        if caller.is_closed:
            stream.close(CLIENT_CLOSED)
        return stream

    async def send_async(self) -> AsyncEventStream:
        caller, call = self._caller, self._call
        async with caller.open_turns.exclusive_async(self._session, call.deadline):
            stream = await caller.async_driver.run(self._open(AsyncEventStream), call.deadline)
        # If another thread called `Flux0.close` before `open_turns.add`, `Flux0.close` has not
        # closed `stream`.
        if caller.is_closed:
            await stream.close_async(CLIENT_CLOSED)
        return stream

    def _open(self, kind: type[S]) -> Flow[S]:
        caller, call, request = self._caller, self._call, self._request
        report = TurnReport(caller.observers, caller.clock, request, self._session[1], call.agent)
        response = yield from call.perform(request, sessions.event_stream)
        parser = SSEParser(max_event_bytes=call.max_event_bytes)
        turn = Turn(parser, call.codec, request, call.idle_timeout)
        accumulator = MessageAccumulator(max_turn_bytes=call.max_turn_bytes)
        stream = kind(response, turn, accumulator, self._list_stored, report, caller.clock)
        caller.open_turns.add(self._session, stream)
        return stream
