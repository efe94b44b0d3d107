"""Conversations: one session, one turn at a time, one user."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast, final

from flux0.client.resources import SessionsResource
from flux0.client.streams import AsyncEventStream, EventStream
from flux0.domain import arguments
from flux0.domain.errors import InvalidArgument
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.messages.history import MESSAGE_TYPES, joined_history
from flux0.domain.models import Agent, Event, Session

_COOKIE = "flux0_user_sub"


@final
class Conversation:
    """A session as a user has it: send a message, read the turn, look back.

    Sending closes a turn that is still open, which cancels the agent. Get one from
    `Flux0.conversation`.
    """

    def __init__(self, sessions: SessionsResource, session: Session, user: str | None) -> None:
        self._sessions = sessions
        self._headers = user_headers(user)
        self.session = session

    @classmethod
    def open(
        cls,
        sessions: SessionsResource,
        *,
        agent: Agent | str | None,
        session: Session | str | None,
        user: str | None,
        title: str | None,
    ) -> Conversation:
        """Open a session with `agent`, or take up `session`."""
        _check(agent, session, title)
        if isinstance(session, str):
            session = sessions.retrieve(session_id=session, http_headers=user_headers(user))
        elif session is None:
            session = sessions.create(
                agent_id=_agent_id(agent), title=title, http_headers=user_headers(user)
            )
        return cls(sessions, session, user)

    def send(self, content: str) -> EventStream:
        """Send a message and return the stream of the turn that answers it."""
        return self._sessions.create_event(
            session_id=self.session.id, content=content, http_headers=self._headers
        )

    def history(self, live: Iterable[TurnMessage] = ()) -> tuple[Event | TurnMessage, ...]:
        """Return the session's messages and tool results, in order.

        `live` are messages of a turn that still streams in (`stream.messages`); those of them that
        are not stored yet come last.
        """
        stored = self._sessions.list_events(
            session_id=self.session.id, types=MESSAGE_TYPES, http_headers=self._headers
        )
        return joined_history(stored, live)


@final
class AsyncConversation:
    """A `Conversation` for asynchronous code. Get one from `Flux0.conversation_async`."""

    def __init__(self, sessions: SessionsResource, session: Session, user: str | None) -> None:
        self._sessions = sessions
        self._headers = user_headers(user)
        self.session = session

    @classmethod
    async def open(
        cls,
        sessions: SessionsResource,
        *,
        agent: Agent | str | None,
        session: Session | str | None,
        user: str | None,
        title: str | None,
    ) -> AsyncConversation:
        """Open a session with `agent`, or take up `session`."""
        _check(agent, session, title)
        if isinstance(session, str):
            session = await sessions.retrieve_async(
                session_id=session, http_headers=user_headers(user)
            )
        elif session is None:
            session = await sessions.create_async(
                agent_id=_agent_id(agent), title=title, http_headers=user_headers(user)
            )
        return cls(sessions, session, user)

    async def send(self, content: str) -> AsyncEventStream:
        """Send a message and return the stream of the turn that answers it."""
        return await self._sessions.create_event_async(
            session_id=self.session.id, content=content, http_headers=self._headers
        )

    async def history(self, live: Iterable[TurnMessage] = ()) -> tuple[Event | TurnMessage, ...]:
        """Do as `Conversation.history` does."""
        stored = await self._sessions.list_events_async(
            session_id=self.session.id, types=MESSAGE_TYPES, http_headers=self._headers
        )
        return joined_history(stored, live)


def user_headers(user: str | None) -> dict[str, str] | None:
    """Return the header field that names a user to the server, or None for the anonymous one.

    Raises:
        InvalidArgument: the name is empty or no cookie can carry it.
    """
    if user is None:
        return None
    return {"cookie": f"{_COOKIE}={arguments.user('user', user)}"}


def _check(agent: object, session: object, title: object) -> None:
    if (agent is None) is (session is None):
        raise InvalidArgument("agent", "or else session must be passed, and not both")
    if session is not None and title is not None:
        raise InvalidArgument("title", "is for a new session, and cannot be passed with session")
    for argument, value, kind in (("agent", agent, Agent), ("session", session, Session)):
        if value is not None and not isinstance(value, (kind, str)):
            wanted, given = kind.__name__, type(value).__name__
            raise InvalidArgument(argument, f"must be of type {wanted} or str, and is {given}")


def _agent_id(agent: Agent | str | None) -> str:
    return agent.id if isinstance(agent, Agent) else cast("str", agent)
