"""Conversations: one session, one turn at a time, one user."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, final

from flux0.client.options import TurnOptions, show_options
from flux0.client.resources import SessionsResource
from flux0.client.streams import AsyncEventStream, AsyncOpening, EventStream
from flux0.domain import arguments
from flux0.domain.errors import InvalidArgument
from flux0.domain.headers import Headers
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.messages.history import MESSAGE_TYPES, Reply, joined_history
from flux0.domain.models import Agent, Event, Session

if TYPE_CHECKING:
    from typing_extensions import Unpack

_COOKIE = "flux0_user_sub"


class _AnyConversation:
    """What both kinds of conversation know.

    Attributes:
        session: the session as it was when the conversation began.
    """

    def __init__(self, sessions: SessionsResource, session: Session, user: str | None) -> None:
        self._sessions = sessions
        self._user = user
        self.session = session

    def __repr__(self) -> str:
        user = "" if self._user is None else f", user={self._user!r}"
        return f"{type(self).__name__}(session={self.session.id!r}{user})"

    def _options(self, options: TurnOptions) -> TurnOptions:
        """Return options of a call with the user in them."""
        headers = user_headers(self._user, options.get("http_headers"))
        return {**options, "http_headers": headers}


@final
@show_options
class Conversation(_AnyConversation):
    """A session as a user has it: send a message, read the turn, look back.

    Sending closes a turn that is still open, which cancels the agent. Get one from
    `Flux0.conversation`.
    """

    def send(self, content: str, **options: Unpack[TurnOptions]) -> EventStream:
        """Send a message and return the stream of the turn that answers it."""
        return self._sessions.create_event(
            session_id=self.session.id, content=content, **self._options(options)
        )

    def ask(self, content: str, **options: Unpack[TurnOptions]) -> Reply:
        """Send a message, read the turn to its end, and return what the agent said.

        Raises as `EventStream.final_messages` does.
        """
        with self.send(content, **options) as stream:
            return Reply(stream.final_messages(), stream.tool_calls)

    def history(self, live: Iterable[TurnMessage] = ()) -> tuple[Event | TurnMessage, ...]:
        """Return the session's messages and tool results, in order.

        `live` are messages of a turn that still streams in (`stream.messages`); those of them that
        are not stored yet come last.
        """
        stored = self._sessions.list_events(
            session_id=self.session.id, types=MESSAGE_TYPES, http_headers=user_headers(self._user)
        )
        return joined_history(stored, live)


@final
@show_options
class AsyncConversation(_AnyConversation):
    """A `Conversation` for asynchronous code. Get one from `Flux0.conversation_async`."""

    def send(self, content: str, **options: Unpack[TurnOptions]) -> AsyncOpening:
        """Send a message and return the stream of the turn that answers it.

        Await it for the stream, or use it in `async with` as it is.
        """
        return self._sessions.create_event_async(
            session_id=self.session.id, content=content, **self._options(options)
        )

    async def ask(self, content: str, **options: Unpack[TurnOptions]) -> Reply:
        """Send a message, read the turn to its end, and return what the agent said.

        Raises as `EventStream.final_messages` does.
        """
        stream: AsyncEventStream
        async with self.send(content, **options) as stream:
            return Reply(await stream.final_messages(), stream.tool_calls)

    async def history(self, live: Iterable[TurnMessage] = ()) -> tuple[Event | TurnMessage, ...]:
        """Return the session's messages and tool results, in order.

        `live` are messages of a turn that still streams in (`stream.messages`); those of them that
        are not stored yet come last.
        """
        stored = await self._sessions.list_events_async(
            session_id=self.session.id, types=MESSAGE_TYPES, http_headers=user_headers(self._user)
        )
        return joined_history(stored, live)


def user_headers(
    user: str | None, others: Mapping[str, str] | None = None
) -> Mapping[str, str] | None:
    """Return header fields with the cookie that names a user; the anonymous one has none.

    Raises:
        InvalidArgument: the name is empty, or no cookie can carry it.
    """
    if user is None:
        return others
    own = Headers((("cookie", f"{_COOKIE}={arguments.user('user', user)}"),))
    return own if others is None else arguments.headers("http_headers", others).merge(own)


def check_beginning(
    agent: object, session: object, user: str | None, title: object
) -> tuple[str, Mapping[str, str] | None]:
    """Check what a conversation is to begin with; return the agent's id and the user's headers."""
    if (agent is None) is (session is None):
        raise InvalidArgument("agent", "or else session must be passed, and not both")
    if session is not None and title is not None:
        raise InvalidArgument("title", "is for a new session, and cannot be passed with session")
    for argument, value, kind in (("agent", agent, Agent), ("session", session, Session)):
        if value is not None and not isinstance(value, (kind, str)):
            problem = f"must be {kind.__name__} or str, not {type(value).__name__}"
            raise InvalidArgument(argument, problem)
    return agent.id if isinstance(agent, Agent) else str(agent), user_headers(user)
