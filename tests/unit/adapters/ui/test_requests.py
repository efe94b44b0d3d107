"""`user_text` and `new_message`: the messages that chat components send."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from flux0 import Conversation, Flux0, InvalidArgument
from flux0.adapters.ui import NewMessage, new_message, user_text
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.stored_models import Event
from flux0.testing import FakeTransport, Say

History = Iterable[Event | TurnMessage]
AI_SDK_MARKS = [
    {"trigger": "regenerate-message"},
    {"trigger": "regenerate-message", "messageId": "2"},
    {"trigger": "submit-message", "messageId": "1"},
]


@pytest.mark.parametrize(
    "message",
    [
        {"id": "1", "role": "user", "parts": [{"type": "text", "text": "Hé"}]},
        {"role": "user", "parts": [{"type": "text", "text": "H"}, {"type": "text", "text": "é"}]},
        {"id": "1", "role": "user", "content": "Hé"},
        {"id": "1", "role": "user", "content": [{"type": "text", "text": "Hé"}]},
    ],
)
def test_user_text_is_the_text_of_the_last_message(message: dict[str, Any]) -> None:
    first = {"role": "user", "parts": [{"type": "text", "text": "first"}]}
    assert user_text({"id": "chat", "messages": [first, message]}) == "Hé"


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "text",
        {},
        {"messages": None},
        {"messages": []},
        {"messages": ["Hi"]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "parts": None}]},
        {"messages": [{"role": "user", "parts": [{"type": "text"}]}]},
        {"messages": [{"role": "user", "parts": [{"type": "text", "text": 1}]}]},
        {"messages": [{"role": "user", "parts": [{"type": "file", "url": "data:,", "text": ""}]}]},
        {
            "messages": [
                {"role": "user", "parts": [{"type": "text", "text": ""}, {"type": "x", "text": ""}]}
            ]
        },
        {"messages": [{"role": "assistant", "parts": [{"type": "text", "text": "Hi"}]}]},
    ],
)
def test_body_of_another_shape_is_rejected(body: Any) -> None:
    with pytest.raises(InvalidArgument, match="body must end with a user message"):
        user_text(body)


def test_user_text_accepts_a_body_with_only_the_last_message() -> None:
    message = {"id": "1", "role": "user", "parts": [{"type": "text", "text": "Hé"}]}
    assert user_text({"id": "chat", "message": message, "trigger": "submit-message"}) == "Hé"


@pytest.mark.parametrize("members", AI_SDK_MARKS)
def test_message_that_would_replace_another_message_is_rejected(members: dict[str, Any]) -> None:
    message = {"id": "1", "role": "user", "parts": [{"type": "text", "text": "Hi"}]}
    with pytest.raises(InvalidArgument, match=f"replace a message .{members['trigger']}"):
        user_text({"id": "chat", "messages": [message], **members})


@pytest.mark.parametrize("members", [{"trigger": ""}, {"trigger": "", "messageId": "1"}])
def test_empty_trigger_is_rejected(members: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=r"asks to replace a message \(unnamed trigger\)"):
        user_text(body_of("Hi", **members))


def history_of(*messages: str) -> tuple[History, list[str]]:
    """Return the history of a chat in which the user has sent `messages`, and its turns' ids."""
    fake = FakeTransport([Say("A reply.")])
    with Flux0(transport=fake) as flux0:
        chat: Conversation = flux0.conversation(agent=fake.agent_id)
        for message in messages:
            chat.ask(message)
        history = chat.history()
    turns = list(dict.fromkeys(event.correlation_id for event in history))
    assert len(turns) == len(messages)
    return history, turns


def body_of(*messages: str, **members: Any) -> dict[str, Any]:
    """Return the body of a page that shows `messages`, each but the last with a reply."""
    shown: list[dict[str, Any]] = []
    for message in messages:
        shown += [{"role": "user", "parts": [{"type": "text", "text": message}]}]
        shown += [{"role": "assistant", "parts": [{"type": "text", "text": "A reply."}]}]
    return {"id": "chat", "messages": shown[:-1], **members}


def ag_ui_body_of(*messages: str) -> dict[str, Any]:
    """Return the body of an AG-UI client that shows `messages`, each but the last with a reply."""
    shown: list[dict[str, Any]] = [{"role": "system", "content": "Be kind."}]
    for message in messages:
        shown += [{"role": "user", "content": message}]
        shown += [{"role": "assistant", "content": "A reply."}, {"role": "assistant"}]
    return {"threadId": "chat", "runId": "run", "messages": shown[:-2]}


@pytest.mark.parametrize("body_of", [body_of, ag_ui_body_of])
def test_message_after_all_stored_messages_is_accepted(body_of: Any) -> None:
    history, _ = history_of("One", "Two", "Two")
    body = body_of("One", "Two", "Two", "Two")
    assert user_text(body, history) == "Two"
    assert new_message(body, history) == NewMessage("Two")
    assert user_text(body_of("One"), history=()) == "One"


def test_message_that_was_shown_but_not_stored_does_not_reject_the_next_message() -> None:
    history, turns = history_of("One", "Two")
    shown = ("One", "not sent", "Two", "not sent", "Three")
    assert user_text(body_of(*shown), history) == "Three"
    again = body_of("One", "Two", "not sent", trigger="regenerate-message")
    assert new_message(again, history) == NewMessage("not sent")
    edited = body_of("One", "not sent", "Two again", messageId="1")
    assert new_message(edited, history) == NewMessage("Two again", (turns[1],))


@pytest.mark.parametrize("body_of", [body_of, ag_ui_body_of])
@pytest.mark.parametrize(
    ("shown", "number"),
    [
        (("One", "Two"), 1),  # The reply to "Two" is regenerated, or another tab has sent "Two".
        (("One", "Two, edited"), 1),
        (("One",), 0),
        (("One, edited",), 0),
        (("One, edited", "Three"), 0),
    ],
)
def test_message_that_replaces_stored_messages_without_a_mark_is_rejected_by_default(
    body_of: Any, shown: tuple[str, ...], number: int
) -> None:
    history, turns = history_of("One", "Two")
    body = body_of(*shown)
    for refuse in (user_text, new_message):
        with pytest.raises(InvalidArgument, match="does not have all earlier messages"):
            refuse(body, history)
    expected = NewMessage(shown[-1], tuple(turns[number:]))
    assert new_message(body, history, accept_unmarked=True) == expected


@pytest.mark.parametrize("mark", AI_SDK_MARKS)
def test_message_with_a_mark_replaces_the_turn_and_all_later_turns(mark: dict[str, str]) -> None:
    history, turns = history_of("One", "Two", "Three")
    for shown, number in ((("One", "Two", "Three"), 2), (("One", "Two!"), 1), (("One",), 0)):
        replaced = tuple(turns[number:])
        assert new_message(body_of(*shown, **mark), history) == NewMessage(shown[-1], replaced)
    with pytest.raises(InvalidArgument, match="asks to replace a message"):
        user_text(body_of("One", "Two", "Three", **mark), history)


def test_turn_that_was_replaced_earlier_is_not_replaced_again() -> None:
    history, (first, second) = history_of("One", "One, edited")
    shown = [event for event in history if event.correlation_id != first]
    assert user_text(body_of("One, edited", "Two"), shown) == "Two"
    again = body_of("One, edited", trigger="regenerate-message")
    assert new_message(again, shown) == NewMessage("One, edited", (second,))
    old_tab = body_of("One", "Two")
    with pytest.raises(InvalidArgument, match="reload"):
        user_text(old_tab, shown)


def test_body_with_only_the_new_message_cannot_replace_a_turn() -> None:
    history, _ = history_of("One")
    body: dict[str, Any] = {"message": body_of("Two")["messages"][-1]}
    assert user_text(body, history) == "Two"
    assert new_message(body, history) == NewMessage("Two")
    with pytest.raises(InvalidArgument, match="send all messages"):
        new_message({**body, "trigger": "regenerate-message"}, history)


def test_earlier_messages_of_another_shape_are_ignored() -> None:
    history, _ = history_of("One")
    body = body_of("One", "Two")
    file = {"role": "user", "parts": [{"type": "file", "url": "data:,"}]}
    body["messages"][:0] = [None, 1, {}, {"role": "user"}, file]
    assert user_text(body, history) == "Two"
