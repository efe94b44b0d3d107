"""Conversations: one user talks to one agent in one session, one turn at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, final

from flux0.client.caller import Caller
from flux0.client.resources import SessionsResource
from flux0.client.unawaited import Unawaited, UnawaitedTurn
from flux0.domain import arguments
from flux0.domain.errors import InvalidArgument
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.messages.history import MESSAGE_TYPES, Reply, StoredTurn, joined_history
from flux0.domain.stored_models import Agent, Event, Participant, Session
from flux0.domain.uncopyable import Uncopyable
from flux0.turns.streams import AsyncEventStream, EventStream
from flux0.usecases.options import CallOptions, TurnOptions, check_options, kept, show_options
from flux0.usecases.stored_turns import find_turn, next_offset

if TYPE_CHECKING:
    from typing_extensions import Unpack


class _ConversationBase(Uncopyable):
    """The state of a conversation.

    Attributes:
        session_id: The session id.
        session: The new session, or the `Session` that you passed; None if you passed a session id.
    """

    def __init__(
        self, sessions: SessionsResource, session: Session | str, user: str | None
    ) -> None:
        self.sessions: SessionsResource = sessions
        self._user = user
        self.session: Session | None = session if isinstance(session, Session) else None
        session_id = session.id if isinstance(session, Session) else session
        self.session_id: str = arguments.identifier("session_id", session_id)

    def __repr__(self) -> str:
        user = "" if self._user is None else f", user={self._user!r}"
        return f"{type(self).__name__}(session={self.session_id!r}{user})"


@final
@show_options
class Conversation(_ConversationBase):
    """A dialog of one user with one agent, in one session. Create it with `Flux0.conversation`.

        conversation = client.conversation(agent=agent)
        print(conversation.ask("Hello").text)

    A session has one turn at a time: sending a message closes the session's open turn, which
    cancels the agent.
    """

    def send(self, content: str, **options: Unpack[TurnOptions]) -> EventStream:
        """Send a message and return the stream of its turn.

        The options and errors are the same as for `client.sessions.create_event`.
        """
        return self.sessions.create_event(session_id=self.session_id, content=content, **options)

    def ask(self, content: str, **options: Unpack[TurnOptions]) -> Reply:
        """Send a message, read the turn to its end, and return the agent's reply.

        Raises the errors of `send` and `EventStream.final_messages`.
        """
        with self.send(content, **options) as stream:
            return Reply(stream.final_messages(), stream.tool_calls, stream.finished)

    def history(
        self, live: Iterable[TurnMessage] = (), **options: Unpack[CallOptions]
    ) -> tuple[Event | TurnMessage, ...]:
        """Return the session's stored messages and tool results, in order.

        Args:
            live: The messages of an open turn, from `stream.messages`. Messages that the server has
                not stored yet are added at the end. No message is returned twice.
        """
        stored = self.sessions.list_events(
            session_id=self.session_id, types=MESSAGE_TYPES, **options
        )
        return joined_history(stored, live)

    def next_offset(self, **options: Unpack[CallOptions]) -> int:
        """Return the offset that the session's next event will have.

        It is the largest stored offset plus one; 0 if no event is stored. Call this method before
        you send a message, and keep the result: it is the argument `since` of `find_turn`. The
        method requests all stored events of the session.
        """
        return self.sessions.caller.run(next_offset, options, self.session_id)

    def find_turn(
        self,
        content: str | None = None,
        *,
        since: int | None = None,
        correlation_id: str | None = None,
        wait_ms: int = 1_000,
        **options: Unpack[CallOptions],
    ) -> StoredTurn | None:
        """Return a turn from the stored events, or None if the turn's message is not stored.

        Use this method after an error, after a restart, or in another process. Pass
        `correlation_id`, which identifies the turn exactly (see `StreamError.correlation_id`). If
        you have no correlation id, pass `content` and `since`: the result is the first turn, from
        the offset `since` on, whose message has the text `content`.

        If the result is None, the message may still be stored later, for example if a proxy queues
        requests. A stored message may stay without a reply, because the agent stops when its stream
        is closed. The stored events do not show whether a reply is complete.

        Args:
            content: The text of the turn's message.
            since: The offset from which to search, from `next_offset`. Required with `content`,
                because an older message may have the same text.
            correlation_id: The turn's id, as in the turn's events.
            wait_ms: The longest time in milliseconds to wait until the message is stored. If it is
                0, the events are listed only once.

        Raises the errors of `client.sessions.list_events`, such as `BadRequestError` if the server
        does not know the session. A server that stores sessions in memory loses them in a restart.
        """
        return self.sessions.caller.run(
            find_turn, options, self.session_id, content, since, correlation_id, wait_ms
        )

    def belongs_to_user(self, **options: Unpack[CallOptions]) -> bool:
        """Return whether the server lists the session as a session of the conversation's user.

        Call this method before you use a session id from a browser. The server does not check the
        user: everyone who knows a session id can read the session and send messages to it. If the
        conversation has no `user`, this method checks the anonymous user's sessions.
        """
        check_options(options, CallOptions)
        sessions = self.sessions.list(**options)
        return any(session.id == self.session_id for session in sessions)


@final
@show_options
class AsyncConversation(_ConversationBase):
    """The async version of `Conversation`. Create it with `Flux0.conversation_async`."""

    def send(self, content: str, **options: Unpack[TurnOptions]) -> UnawaitedTurn:
        """The async version of `Conversation.send`.

        Await the result to get the stream, or use the result directly in `async with`.
        """
        return self.sessions.create_event_async(
            session_id=self.session_id, content=content, **options
        )

    async def ask(self, content: str, **options: Unpack[TurnOptions]) -> Reply:
        """The async version of `Conversation.ask`."""
        stream: AsyncEventStream
        async with self.send(content, **options) as stream:
            return Reply(await stream.final_messages(), stream.tool_calls, stream.finished)

    async def history(
        self, live: Iterable[TurnMessage] = (), **options: Unpack[CallOptions]
    ) -> tuple[Event | TurnMessage, ...]:
        """The async version of `Conversation.history`."""
        stored = await self.sessions.list_events_async(
            session_id=self.session_id, types=MESSAGE_TYPES, **options
        )
        return joined_history(stored, live)

    async def next_offset(self, **options: Unpack[CallOptions]) -> int:
        """The async version of `Conversation.next_offset`."""
        return await self.sessions.caller.run_async(next_offset, options, self.session_id)

    async def find_turn(
        self,
        content: str | None = None,
        *,
        since: int | None = None,
        correlation_id: str | None = None,
        wait_ms: int = 1_000,
        **options: Unpack[CallOptions],
    ) -> StoredTurn | None:
        """The async version of `Conversation.find_turn`."""
        return await self.sessions.caller.run_async(
            find_turn, options, self.session_id, content, since, correlation_id, wait_ms
        )

    async def belongs_to_user(self, **options: Unpack[CallOptions]) -> bool:
        """The async version of `Conversation.belongs_to_user`."""
        check_options(options, CallOptions)
        sessions = await self.sessions.list_async(**options)
        return any(session.id == self.session_id for session in sessions)


@final
class UnawaitedConversation(Unawaited[AsyncConversation]):
    _problem = (
        "the conversation is not open: await it, "
        "as in `conversation = await client.conversation_async(...)`"
    )


def sessions_of_user(
    caller: Caller,
    agent: Any,
    session: Any,
    user: str | None,
    new: Mapping[str, object],
    options: CallOptions,
) -> tuple[SessionsResource, Participant]:
    """Check the arguments of `Flux0.conversation`, and return its sessions and its agent.

    The calls of the sessions send the user's cookie, and report the agent to the observers. The
    agent's id is None if `session` is a session id. `new` has the fields of a new session.
    """
    check_options(options, CallOptions)
    if (agent is None) is (session is None):
        raise InvalidArgument("agent", "or session must be passed, but not both")
    whole = kept(options)
    for argument, value in {**new, **options}.items():
        if session is not None and value is not None and argument not in whole:
            problem = "is for a new session: it cannot be passed together with session"
            raise InvalidArgument(argument, problem)
    for argument, value, kind in (("agent", agent, Agent), ("session", session, Session)):
        if value is not None and not isinstance(value, (kind, str)):
            problem = f"must be {kind.__name__} or str, not {type(value).__name__}"
            raise InvalidArgument(argument, problem)
    if isinstance(agent, Agent):
        known = Participant(agent.id, agent.name)
    else:
        known = Participant(session.agent_id if isinstance(session, Session) else agent)
    return SessionsResource(caller.with_options(known, user=user, **whole)), known
