"""The routes of `examples/usechat`, and the excerpts of its files on a page."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Any

import httpx
import pytest

from flux0 import Flux0
from flux0.testing import Fail, FakeTransport, Gate, Refuse, Respond, Say
from support.samples import ROOT, USECHAT, chat_back_end

PAGE = ROOT / "docs/how-to/chat-components.md"


def user_message(text: str) -> dict[str, Any]:
    parts = [{"type": "text", "text": text}]
    return {"id": text, "role": "user", "content": text, "parts": parts}


def body_of(chat: str, *texts: str, **members: Any) -> dict[str, Any]:
    messages = [user_message(text) for text in texts]
    return {"id": chat, "threadId": chat, "messages": messages, **members}


def routes(chat: str) -> list[tuple[str, str]]:
    return [
        ("POST", "/api/chat"),
        ("GET", f"/api/chat/{chat}"),
        ("GET", f"/api/chat/{chat}/stream"),
        ("DELETE", f"/api/chat/{chat}"),
        ("POST", "/agent"),
        ("POST", "/agent/history"),
        ("DELETE", f"/agent/{chat}"),
        ("PUT", f"/api/chats/{chat}"),
        ("DELETE", f"/api/chats/{chat}"),
    ]


def test_page_shows_code_of_the_example() -> None:
    files = [*USECHAT.glob("*.py"), *(USECHAT / "src").glob("*.js*")]
    code = [path.read_text("utf-8") for path in files]
    page = PAGE.read_text("utf-8")
    excerpts: list[str] = re.findall(r"^```(?:py|jsx?)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(excerpts) == 4
    for excerpt in excerpts:
        assert any(excerpt in each for each in code), excerpt


@pytest.mark.parametrize("user", ["eve", ""])
def test_chat_of_another_user_is_not_found_and_the_server_gets_no_request(user: str) -> None:
    fake = FakeTransport("Secret.")
    with chat_back_end(fake, user=user) as (url, chat), httpx.Client(base_url=url) as page:
        calls = len(fake.calls)
        for method, path in routes(chat):
            body = body_of(chat, "Hi", text="Hi") if method in {"POST", "PUT"} else None
            response = page.request(method, path, json=body)
            assert (response.status_code, response.json()["detail"]) == (
                404,
                "You have no such chat.",
            )
        assert page.get("/api/chats").json() == []
    assert len(fake.calls) == calls


def test_request_without_a_login_is_rejected() -> None:
    fake = FakeTransport("Secret.")
    with chat_back_end(fake, user=None) as (url, chat), httpx.Client(base_url=url) as page:
        for method, path in routes(chat):
            body = body_of(chat, "Hi", text="Hi") if method in {"POST", "PUT"} else None
            assert page.request(method, path, json=body).status_code == 401
        assert page.get("/api/chats").status_code == 401

        page.post("/api/login", json={"name": "Anonymous"}).raise_for_status()
        created = page.post("/api/chats", json={"text": "Hi  there"})
        assert page.get("/api/chats").json() == [{"id": created.json()["id"], "title": "Hi there"}]
        page.delete("/api/login").raise_for_status()
        assert page.get("/api/chats").status_code == 401


@pytest.mark.parametrize(
    ("members", "status", "problem"),
    [
        ({"messages": []}, 422, "body must end with a user message"),
        ({"messages": [user_message("x" * 10_001)]}, 413, "at most 10000 characters"),
    ],
)
def test_message_that_cannot_be_sent_is_an_error(
    members: dict[str, Any], status: int, problem: str
) -> None:
    fake = FakeTransport()
    with chat_back_end(fake) as (url, chat):
        for path in ("/api/chat", "/agent"):
            response = httpx.post(f"{url}{path}", json=body_of(chat) | members)
            assert response.status_code == status
            assert problem in response.json()["detail"]
    assert "sessions.create_event" not in {call.operation for call in fake.calls}


@pytest.mark.parametrize(
    ("fault", "operation", "status", "sent"),
    [
        (Refuse(), "sessions.create_event", 503, "no"),
        (Respond(500), "sessions.create_event", 502, "maybe"),
        (Refuse(), "sessions.list_events", 502, None),
        (Respond(500), "sessions.list_events", 502, None),
    ],
)
def test_error_says_whether_the_message_was_sent(
    fault: Any, operation: str, status: int, sent: str | None
) -> None:
    """If reading the history fails, the message was not sent, but the page must load it again."""
    fake = FakeTransport()
    with chat_back_end(fake) as (url, chat):
        fake.inject(fault, operation=operation, times=3)
        response = httpx.post(f"{url}/api/chat", json=body_of(chat, "Hi"))
        assert (response.status_code, response.json()["sent"]) == (status, sent)
        assert ("message" in response.json()["detail"]) == (sent is not None)


def without_heartbeats(response: httpx.Response) -> Iterator[str]:
    return (line for line in response.iter_lines() if not line.startswith(":"))


def test_running_turn_is_read_from_its_beginning_also_if_it_ends_meanwhile() -> None:
    gate, fake = Gate(timeout=60), FakeTransport()
    fake.script([Say("Half"), gate, Say("Rest")])
    with chat_back_end(fake) as (url, chat), httpx.Client(base_url=url, timeout=60) as page:
        empty = page.get(f"/api/chat/{chat}")
        assert empty.json() == {"messages": [], "turn": None}
        without_turn = page.get(f"/api/chat/{chat}/stream")
        assert without_turn.status_code == 204
        for each in (empty, without_turn, page.get("/api/chat/unknown000")):
            assert each.headers["cache-control"] == "no-store"

        with page.stream("POST", "/api/chat", json=body_of(chat, "Hi")) as response:
            assert response.headers["x-vercel-ai-ui-message-stream"] == "v1"
            # Otherwise, nginx sends the events together, when the turn has ended.
            assert response.headers["x-accel-buffering"] == "no"
            lines = without_heartbeats(response)
            first = list(takewhile(lambda line: "Half" not in line, lines))
            running = page.get(f"/api/chat/{chat}").json()
            gate.open()
            rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""]
        assert [message["role"] for message in running["messages"]] == ["user"]

        headers = {"turn-id": running["turn"]}
        lines = without_heartbeats(page.get(f"/api/chat/{chat}/stream", headers=headers))
        assert list(takewhile(lambda line: "Half" not in line, lines)) == first
        assert list(lines) == rest
        assert page.get(f"/api/chat/{chat}/stream").status_code == 204
        ended = page.get(f"/api/chat/{chat}").json()
        assert [part["text"] for part in ended["messages"][1]["parts"]] == ["Half", "Rest"]


def test_failed_turn_is_read_again_with_its_error_unless_it_was_stopped() -> None:
    gate, fake = Gate(timeout=60), FakeTransport()
    fake.script([Say("Half"), Fail("no model")], [Say("More"), gate])
    with chat_back_end(fake) as (url, chat), httpx.Client(base_url=url, timeout=60) as page:
        failed = page.post("/api/chat", json=body_of(chat, "Hi"))
        assert "The agent reported an error" in failed.text
        loaded = page.get(f"/api/chat/{chat}").json()
        assert [message["role"] for message in loaded["messages"]] == ["user"]
        for headers in ({}, {"turn-id": loaded["turn"]}):
            assert page.get(f"/api/chat/{chat}/stream", headers=headers).text == failed.text
        history = page.post("/agent/history", json={"threadId": chat}).text
        assert ["Half" in history, "RUN_ERROR" in history] == [True, True]

        body = body_of(chat, "Hi", "Go on")
        with page.stream("POST", "/api/chat", json=body) as response:
            next(line for line in response.iter_lines() if "More" in line)
            page.delete(f"/api/chat/{chat}").raise_for_status()
        assert page.get(f"/api/chat/{chat}").json()["turn"] is None
        assert page.get(f"/api/chat/{chat}/stream").status_code == 204


def test_failed_turn_does_not_hide_a_newer_turn_of_another_program() -> None:
    fake = FakeTransport()
    fake.script([Say("Half"), Fail("no model")], [Say("Newer.")])
    with chat_back_end(fake) as (url, chat), httpx.Client(base_url=url) as page:
        page.post("/api/chat", json=body_of(chat, "One"))
        with Flux0() as client:
            client.conversation(session=chat).ask("Two")
        assert shown(page, chat) == ["One", "Half", "Two", "Newer."]
        assert page.get(f"/api/chat/{chat}").json()["turn"] is None
        assert "RUN_ERROR" not in page.post("/agent/history", json={"threadId": chat}).text


def loaded_by_use_chat(page: httpx.Client, chat: str) -> str:
    """Return the loaded messages, and the beginning of the joined turn."""
    loaded = page.get(f"/api/chat/{chat}").json()
    headers = {"turn-id": loaded["turn"]}
    with page.stream("GET", f"/api/chat/{chat}/stream", headers=headers) as response:
        return json.dumps(loaded["messages"]) + up_to_the_gate(response)


def loaded_by_ag_ui(page: httpx.Client, chat: str) -> str:
    with page.stream("POST", "/agent/history", json={"threadId": chat}) as response:
        return up_to_the_gate(response)


def up_to_the_gate(response: httpx.Response) -> str:
    return "".join(takewhile(lambda line: "er." not in line, response.iter_lines()))


@pytest.mark.parametrize("load", [loaded_by_use_chat, loaded_by_ag_ui])
def test_turn_that_begins_while_the_history_is_read_is_joined(
    load: Callable[[httpx.Client, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, fake = Gate(timeout=60), FakeTransport()
    fake.script([Say("Half"), gate], [Say("Newer.", pieces=2), gate])
    with chat_back_end(fake) as (url, chat), httpx.Client(base_url=url, timeout=60) as page:
        chats = sys.modules["chats"]
        read = chats.shown_history

        async def shown_history(request: Any, conversation: Any) -> Any:
            monkeypatch.setattr(chats, "shown_history", read)
            newer = await request.state.turns.start_async(conversation, "Two")
            async for piece in newer.relay_async():
                if b"er." in piece:
                    break
            return await read(request, conversation)

        with page.stream("POST", "/api/chat", json=body_of(chat, "One")) as response:
            next(line for line in response.iter_lines() if "Half" in line)
            monkeypatch.setattr(chats, "shown_history", shown_history)
            text = load(page, chat)
            gate.open()
        assert [text.count(each) for each in ("One", "Two", "New")] == [1, 1, 1]


def test_turn_that_another_turn_has_followed_cannot_be_joined() -> None:
    fake = FakeTransport()
    fake.script([Say("Half"), Fail("no model")], [Say("Newer."), gate := Gate(timeout=60)])
    with chat_back_end(fake) as (url, chat), httpx.Client(base_url=url, timeout=60) as page:
        page.post("/api/chat", json=body_of(chat, "One"))
        headers = {"turn-id": page.get(f"/api/chat/{chat}").json()["turn"]}
        with page.stream("POST", "/api/chat", json=body_of(chat, "One", "Two")) as response:
            next(line for line in response.iter_lines() if "Newer" in line)
            joined = page.get(f"/api/chat/{chat}/stream", headers=headers)
            assert (joined.status_code, joined.headers["cache-control"]) == (204, "no-store")
            gate.open()


def test_replaced_turns_are_hidden_from_both_components() -> None:
    fake = FakeTransport()
    fake.script(*([Say(text)] for text in "ABCDE"))
    replaces = {"forwardedProps": {"replaces": True}}
    with chat_back_end(fake) as (url, chat), httpx.Client(base_url=url) as page:
        page.post("/api/chat", json=body_of(chat, "One"))
        page.post("/api/chat", json=body_of(chat, "One", "Two"))
        again = body_of(chat, "One", "Two", trigger="regenerate-message")
        page.post("/api/chat", json=again)
        assert shown(page, chat) == ["One", "A", "Two", "C"]
        page.post("/agent", json=body_of(chat, "One", "Two", **replaces))
        assert shown(page, chat) == ["One", "A", "Two", "D"]

        refused = page.post("/agent", json=body_of(chat, "One", "Two"))
        assert refused.status_code == 422
        page.post("/api/chat", json=body_of(chat, "Uno", messageId="1"))
        assert shown(page, chat) == ["Uno", "E"]


def shown(page: httpx.Client, chat: str) -> list[str]:
    """Return the lines that both pages show."""
    messages = page.get(f"/api/chat/{chat}").json()["messages"]
    texts = [message["parts"][0]["text"] for message in messages]
    lines = page.post("/agent/history", json={"threadId": chat}).text.splitlines()
    (snapshot,) = (json.loads(line[6:]) for line in lines if "MESSAGES_SNAPSHOT" in line)
    assert [message["content"] for message in snapshot["messages"]] == texts
    return texts
