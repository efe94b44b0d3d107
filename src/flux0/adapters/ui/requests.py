"""The requests of chat components: the user's new message, and the turns that it replaces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

from attrs import frozen

from flux0.domain.enums import EventSource
from flux0.domain.errors import InvalidArgument
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.stored_models import Event, MessageData

_SUBMIT: Final = "submit-message"
_NO_TEXT: Final = "must end with a user message that contains only text parts"
_NOT_SHOWN: Final = (
    "does not have all earlier messages of the user: reload the page, which replaces a message or"
    " does not show the newest messages"
)


@frozen
class NewMessage:
    """The user's new message in a request of a chat component.

    Attributes:
        text: The text to send.
        replaced: The `correlation_id` of each stored turn that the page no longer shows, because
            the user has regenerated a reply or edited a message. It is empty if the request only
            adds a message to the chat.
    """

    text: str
    replaced: tuple[str, ...] = ()


def user_text(body: Any, history: Iterable[Event | TurnMessage] | None = None) -> str:
    """Return the text of the user's new message.

    Args:
        body: The body of a request of `useChat` or of an AG-UI client, as plain JSON. It has all
            messages in `messages`, or only the new message in `message`.
        history: The result of `Conversation.history`, to reject requests that would send an old
            message again. `useChat` marks a request that regenerates a reply or edits a message, so
            the request is rejected even without `history`. AG-UI clients, and assistant-ui for
            edits, send no mark: `messages` then lacks messages that are in `history`.

    Raises:
        InvalidArgument: The body does not end with a user message that contains only text; or the
            page asks to replace a message, which the flux0 server cannot do; or `messages` does not
            have all of the user's messages in `history` before the new message.
    """
    if trigger := _trigger(body):
        raise InvalidArgument("body", f"asks to replace a message ({trigger}): send a new one")
    return _last_text(body) if history is None else new_message(body, history).text


def new_message(
    body: Any, history: Iterable[Event | TurnMessage], *, accept_unmarked: bool = False
) -> NewMessage:
    """Return the user's new message, and the stored turns that it replaces on the page.

    The flux0 server cannot replace a message. Therefore send the text as a new turn, store the ids
    in `replaced`, and show the history without the events whose `correlation_id` is stored. The
    agent can still read the replaced turns, because the server keeps them.

    Args:
        body: The body of a request of `useChat` or of an AG-UI client, as plain JSON.
        history: The result of `Conversation.history`, without the turns that were replaced earlier.
        accept_unmarked: True to accept a request that replaces turns without a mark. Only `useChat`
            marks such requests, in `trigger` and `messageId`; AG-UI clients, and assistant-ui for
            edits, send no mark. A tab that does not show the newest turns sends the same request
            for a new message: then `replaced` has these turns.

    Raises:
        InvalidArgument: The body does not end with a user message that contains only text; or the
            request replaces turns without a mark, and `accept_unmarked` is False; or the request
            replaces turns, but has only the new message.
    """
    text, trigger = _last_text(body), _trigger(body)
    if "message" in body:
        if trigger:
            problem = "but has only the new message: send all messages"
            raise InvalidArgument("body", f"asks to replace a message ({trigger}), {problem}")
        return NewMessage(text)
    # The page may also show messages that the server has not stored, because sending them failed.
    shown = _texts(body["messages"][:-1])
    turns = (
        (event.correlation_id, event.text)
        for event in history
        if event.source == EventSource.USER and isinstance(event.data, MessageData)
    )
    # `in` advances `shown` to the next message with the same text.
    replaced = tuple(turn_id for turn_id, stored in turns if stored not in shown)
    if replaced and not (trigger or accept_unmarked):
        raise InvalidArgument("body", _NOT_SHOWN)
    return NewMessage(text, replaced)


def _trigger(body: Any) -> str:
    """Return the member `trigger` if the body marks that it replaces a message, or else ""."""
    with suppress(AttributeError):
        trigger = body.get("trigger", _SUBMIT)
        if trigger != _SUBMIT or body.get("messageId"):
            return str(trigger) or "unnamed trigger"
    return ""


def _last_text(body: Any) -> str:
    with suppress(LookupError, TypeError):
        text = _text(body["message"] if "message" in body else body["messages"][-1])
        if text is not None:
            return text
    raise InvalidArgument("body", _NO_TEXT)


def _texts(messages: Iterable[Any]) -> Iterator[str]:
    for message in messages:
        with suppress(LookupError, TypeError):
            if (text := _text(message)) is not None:
                yield text


def _text(message: Any) -> str | None:
    """Return the text of a user message; None if it is another message, or has other parts."""
    parts = message["parts"] if "parts" in message else message["content"]
    parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
    if message["role"] == "user" and all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return None
