"""Conversations: one user talks to one agent in one session, one turn at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, final

from flux0.client.opening import AsyncOpening
from flux0.client.options import TurnOptions, show_options
from flux0.client.resources import SessionsResource
from flux0.client.streams import AsyncEventStream, EventStream
from flux0.client.uncopyable import Uncopyable
from flux0.domain import arguments
from flux0.domain.errors import InvalidArgument
from flux0.domain.headers import Headers
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.messages.history import MESSAGE_TYPES, Reply, joined_history
from flux0.domain.models import Agent, Event, Session

if TYPE_CHECKING:
    from typing_extensions import Unpack

_COOKIE = "flux0_user_sub"


class _ConversationBase(Uncopyable):
    """The state that `Conversation` and `AsyncConversation` share.

    Attributes:
        session_id: The id of the session.
        session: The new session, or the `Session` that you passed; None if you passed an id.
    """

    def __init__(
        self, sessions: SessionsResource, session: Session | str, user: str | None
    ) -> None:
        self._sessions = sessions
        self._user = user
        self.session: Session | None = session if isinstance(session, Session) else None
        self.session_id: str = arguments.identifier(
            "session_id", session.id if isinstance(session, Session) else session
        )

    def __repr__(self) -> str:
        user = "" if self._user is None else f", user={self._user!r}"
        return f"{type(self).__name__}(session={self.session_id!r}{user})"

    def _options(self, options: TurnOptions) -> TurnOptions:
        """Return the options with the user's cookie added to the headers."""
        headers = user_headers(self._user, options.get("http_headers"))
        return {**options, "http_headers": headers}


@final
@show_options
class Conversation(_ConversationBase):
    """A dialog of one user with one agent, in one session. Create it with `Flux0.conversation`.

        conversation = client.conversation(agent=agent)
        print(conversation.ask("Hello").text)

    A session has one turn at a time: sending a message closes the open turn of the session, which
    cancels the agent.

    Attributes:
        session_id: The id of the session.
        session: The new session, or the `Session` that you passed; None if you passed an id.
    """

    def send(self, content: str, **options: Unpack[TurnOptions]) -> EventStream:
        """Send a message and return the stream of the agent's turn.

        The options and errors are the ones of `client.sessions.create_event`.
        """
        return self._sessions.create_event(
            session_id=self.session_id, content=content, **self._options(options)
        )

    def ask(self, content: str, **options: Unpack[TurnOptions]) -> Reply:
        """Send a message, read the turn to its end, and return the reply of the agent.

        Raises the errors of `send` and `EventStream.final_messages`.
        """
        with self.send(content, **options) as stream:
            return Reply(stream.final_messages(), stream.tool_calls, stream.finished)

    def history(self, live: Iterable[TurnMessage] = ()) -> tuple[Event | TurnMessage, ...]:
        """Return the stored messages and tool results of the session, in order.

        Args:
            live: Messages of an open turn (`stream.messages`). Messages that are not stored yet are
                added at the end; no message is returned twice.
        """
        stored = self._sessions.list_events(
            session_id=self.session_id, types=MESSAGE_TYPES, http_headers=user_headers(self._user)
        )
        return joined_history(stored, live)


@final
@show_options
class AsyncConversation(_ConversationBase):
    """The async version of `Conversation`. Create it with `Flux0.conversation_async`."""

    def send(self, content: str, **options: Unpack[TurnOptions]) -> AsyncOpening:
        """The async version of `Conversation.send`.

        Await the result to get the stream, or use it in `async with` directly.
        """
        return self._sessions.create_event_async(
            session_id=self.session_id, content=content, **self._options(options)
        )

    async def ask(self, content: str, **options: Unpack[TurnOptions]) -> Reply:
        """The async version of `Conversation.ask`."""
        stream: AsyncEventStream
        async with self.send(content, **options) as stream:
            return Reply(await stream.final_messages(), stream.tool_calls, stream.finished)

    async def history(self, live: Iterable[TurnMessage] = ()) -> tuple[Event | TurnMessage, ...]:
        """The async version of `Conversation.history`."""
        stored = await self._sessions.list_events_async(
            session_id=self.session_id, types=MESSAGE_TYPES, http_headers=user_headers(self._user)
        )
        return joined_history(stored, live)


def user_headers(
    user: str | None, others: Mapping[str, str] | None = None
) -> Mapping[str, str] | None:
    """Return `others` with the cookie of the user added. No cookie means the anonymous user.

    Raises:
        InvalidArgument: The name is empty or has characters that a cookie cannot contain.
    """
    if user is None:
        return others
    own = Headers((("cookie", f"{_COOKIE}={arguments.user('user', user)}"),))
    return own if others is None else arguments.headers("http_headers", others).merge(own)


def check_arguments(
    agent: object, session: object, user: str | None, title: object
) -> tuple[str, Mapping[str, str] | None]:
    """Check the arguments of `Flux0.conversation`; return the agent's id and the user's headers."""
    if (agent is None) is (session is None):
        raise InvalidArgument("agent", "or session must be passed, but not both")
    if session is not None and title is not None:
        problem = "is for a new session: it cannot be passed together with session"
        raise InvalidArgument("title", problem)
    for argument, value, kind in (("agent", agent, Agent), ("session", session, Session)):
        if value is not None and not isinstance(value, (kind, str)):
            problem = f"must be {kind.__name__} or str, not {type(value).__name__}"
            raise InvalidArgument(argument, problem)
    return agent.id if isinstance(agent, Agent) else str(agent), user_headers(user)
