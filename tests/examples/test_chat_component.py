"""The component of docs/how-to/chat-components.md in Chromium, with the page's application."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from flux0.testing import (
    AgentStep,
    CallTool,
    Fail,
    FakeTransport,
    Gate,
    GiveResult,
    Reason,
    Report,
    Respond,
    Say,
)
from support.browser import Browser, Page
from support.npm import npm_install
from support.programs import needs
from support.relay import Relay
from support.samples import (
    CHAT_COMPONENTS,
    TurnsOfTwoProcesses,
    chat_back_end,
    code_of,
    new_chat,
)

pytestmark = [
    needs("chromium"),
    needs("npm"),
]

PACKAGES = ("esbuild@0.28.2", "react@19.3.1", "react-dom@19.3.1")
VERSIONS = {
    "AI SDK 7": ("ai@7.0.173", "@ai-sdk/react@4.0.177"),
    "AI SDK 6": ("ai@6.0.326", "@ai-sdk/react@3.0.328"),
}
MAIN = """
import { createRoot } from "react-dom/client";
import { Chat } from "./Chat.jsx";
"""
TOOL = CallTool("weather", {"city": "SF"})
TURN: list[AgentStep] = [Reason("Hm"), TOOL, GiveResult(TOOL, "clear"), Say("Sunny.", pieces=3)]
SHOWN = [
    ["user text", "Hi"],
    ["assistant reasoning", "Hm"],
    ["assistant dynamic-tool", '[{"city":"SF"},"clear",null]'],
    ["assistant text", "Sunny."],
]


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """The version of the component's packages."""
    return str(request.param)


@pytest.fixture(scope="module")
def html(version: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with the component and its packages, in one script."""
    folder = tmp_path_factory.mktemp("chat")
    npm_install(*PACKAGES, *VERSIONS[version], folder=folder)
    (component,), (load, *_) = code_of(CHAT_COMPONENTS, "jsx"), code_of(CHAT_COMPONENTS, "js")
    (folder / "Chat.jsx").write_text(component, "utf-8")
    (folder / "main.jsx").write_text(MAIN + load, "utf-8")
    options = ("--bundle", "--jsx=automatic", "--format=esm", "--minify", "--outfile=main.js")
    subprocess.run(
        [folder / "node_modules/.bin/esbuild", "main.jsx", *options],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    script = (folder / "main.js").read_text("utf-8").replace("</script", "<\\/script")
    return f'<!doctype html><meta charset="utf-8"><body><script type="module">{script}</script>'


@pytest.fixture
def fake() -> FakeTransport:
    return FakeTransport()


@pytest.fixture
def turns() -> TurnsOfTwoProcesses:
    return TurnsOfTwoProcesses()


@pytest.fixture
def chat_url(fake: FakeTransport, html: str, turns: TurnsOfTwoProcesses) -> Iterator[str]:
    """The page's URL, with a new chat."""
    with chat_back_end(fake, '@app.post("/api/chat")', html, turns) as url:
        yield f"{url}/?id={new_chat(fake)}"


@pytest.fixture
def chat(browser: Browser, chat_url: str) -> Iterator[Page]:
    with browser.page() as page:
        show(page, chat_url)
        yield page


def show(page: Page, url: str) -> None:
    page.open(url)
    page.wait_for("document.querySelector('input') !== null")


def send(page: Page, text: str) -> None:
    page.click("input")
    page.write(text)
    page.press_enter()


def wait_for_text(page: Page, text: str) -> None:
    page.wait_for(f"document.querySelector('.assistant.text')?.textContent === {json.dumps(text)}")


def alert(page: Page) -> str:
    text = page.wait_for("document.querySelector('[role=alert]')?.textContent")
    assert isinstance(text, str)
    return text


def shown(page: Page) -> list[list[str]]:
    """Return the class and the text of each part of a message."""
    each = "[...document.querySelectorAll('p[class]')].map((p) => [p.className, p.textContent])"
    parts: list[list[str]] = page.evaluate(each)
    return parts


def messages_sent(fake: FakeTransport) -> int:
    return [call.operation for call in fake.calls].count("sessions.create_event")


def test_component_shows_text_reasoning_and_a_tool_call_also_after_a_reload(
    chat: Page, chat_url: str, fake: FakeTransport
) -> None:
    fake.script(TURN)
    send(chat, "Hi")
    wait_for_text(chat, "Sunny.")
    assert shown(chat) == SHOWN
    chat.wait_for("document.querySelector('[role=alert]').textContent === ''")
    assert messages_sent(fake) == 1

    show(chat, chat_url)
    assert shown(chat) == SHOWN
    assert messages_sent(fake) == 1


def test_component_shows_an_error_of_the_agent_after_its_text(
    chat: Page, fake: FakeTransport
) -> None:
    fake.script([Say("Half"), Fail("no model")])
    send(chat, "Hi")
    assert alert(chat) == "The agent reported an error"
    assert shown(chat) == [["user text", "Hi"], ["assistant text", "Half"]]


def test_component_stops_the_agent_and_sends_the_next_message(
    chat: Page, fake: FakeTransport
) -> None:
    fake.script([Say("Half"), Gate(timeout=60), Say("never sent")], [Say("Sunny.")])
    send(chat, "Hi")
    wait_for_text(chat, "Half")
    chat.click("button[type=button]")
    stopped = [["user text", "Hi"], ["assistant text", "Half"]]
    assert shown(chat) == stopped
    send(chat, "Again")  # The component keeps the text while its status is "streaming".
    submit = "document.querySelector('form').requestSubmit()"
    chat.wait_for(f"document.body.textContent.includes('Sunny.') || ({submit}, false)")
    expected = [*stopped, ["user text", "Again"], ["assistant text", "Sunny."]]
    assert shown(chat) == expected
    assert chat.evaluate("document.querySelector('[role=alert]').textContent") == ""


def test_reload_in_the_middle_of_a_turn_continues_the_turn(
    chat: Page, chat_url: str, fake: FakeTransport
) -> None:
    gate = Gate(timeout=60)
    fake.script([*TURN, gate, Say("Bye.")])
    send(chat, "Hi")
    wait_for_text(chat, "Sunny.")

    show(chat, chat_url)
    wait_for_text(chat, "Sunny.")
    assert shown(chat) == SHOWN
    gate.open()
    chat.wait_for("document.body.innerText.includes('Bye.')")
    assert shown(chat) == [*SHOWN, ["assistant text", "Bye."]]
    assert messages_sent(fake) == 1


def test_back_button_shows_the_newest_messages(chat: Page, fake: FakeTransport) -> None:
    fake.script([Say("Sunny.")])
    send(chat, "Hi")
    wait_for_text(chat, "Sunny.")
    chat.open("about:blank")
    chat.evaluate("history.back()")
    wait_for_text(chat, "Sunny.")


def test_chat_is_created_if_the_page_has_no_id(
    browser: Browser, chat_url: str, fake: FakeTransport
) -> None:
    fake.script([Say("Sunny.")])
    with browser.page() as page:
        show(page, chat_url.partition("?")[0])
        send(page, "Hi")
        wait_for_text(page, "Sunny.")
        show(page, page.evaluate("location.href"))
        wait_for_text(page, "Sunny.")


@pytest.mark.parametrize("chat_id", ["unknown000", "x"])
def test_unknown_chat_is_a_sentence(browser: Browser, chat_url: str, chat_id: str) -> None:
    with browser.page() as page:
        page.open(f"{chat_url.partition('?')[0]}?id={chat_id}")
        assert alert(page) == "You have no such chat."
        assert page.evaluate("document.querySelector('input')") is None


def test_error_of_the_server_is_a_sentence(chat: Page, fake: FakeTransport) -> None:
    fake.inject(Respond(500), operation="sessions.create_event")
    send(chat, "Hi")
    assert alert(chat) == "The agent cannot be reached. Reload the page, and try again."
    assert shown(chat) == [["user text", "Hi"]]


def test_double_click_and_empty_enter_send_nothing_more(chat: Page, fake: FakeTransport) -> None:
    fake.script([Say("Sunny.")])
    chat.press_enter()
    send(chat, "  ")
    chat.write("Hi")
    for _ in range(2):
        chat.click("button")
    assert chat.evaluate("document.querySelector('input').value") == ""
    wait_for_text(chat, "Sunny.")
    assert messages_sent(fake) == 1


def test_regenerate_sends_nothing(chat: Page, chat_url: str, fake: FakeTransport) -> None:
    fake.script([Say("Sunny.")])
    send(chat, "Hi")
    wait_for_text(chat, "Sunny.")
    chat_id = chat_url.partition("=")[2]
    message = {"id": "1", "role": "user", "parts": [{"type": "text", "text": "Hi"}]}
    body = {"id": chat_id, "messages": [message], "trigger": "regenerate-message"}
    request = f"{{method: 'POST', body: {json.dumps(json.dumps(body))}, headers}}"
    headers = "const headers = {'content-type': 'application/json'};"
    script = f"(async () => {{ {headers} return (await fetch('/api/chat', {request})).status }})()"
    assert chat.evaluate(script) == 422
    assert messages_sent(fake) == 1


def test_statuses_alone_show_no_message(chat: Page, fake: FakeTransport) -> None:
    fake.script([Report("typing"), Report("ready")], [Say("Sunny.")])
    send(chat, "Hi")
    chat.wait_for("document.querySelector('.user') !== null")
    chat.click("input")
    chat.write("Bye")
    while messages_sent(fake) < 2:  # The component is busy until it has read the first turn.
        chat.press_enter()
    wait_for_text(chat, "Sunny.")
    assert shown(chat) == [["user text", "Hi"], ["user text", "Bye"], ["assistant text", "Sunny."]]
    assert chat.evaluate("document.querySelectorAll('form > div').length") == 3


@pytest.mark.parametrize("begin", [[], TURN])
def test_relay_that_the_application_has_ended_continues_in_another_process(
    chat: Page, fake: FakeTransport, turns: TurnsOfTwoProcesses, begin: list[AgentStep]
) -> None:
    gate = Gate(timeout=60)
    fake.script([*begin, gate, Say("Bye.")])
    send(chat, "Hi")
    if begin:
        wait_for_text(chat, "Sunny.")
    while not gate.reached:
        chat.wait_for("true")
    turns.restart()
    gate.open()
    chat.wait_for("document.body.innerText.includes('Bye.')")
    chat.wait_for("document.querySelector('[role=alert]').textContent === ''")
    expected = SHOWN if begin else SHOWN[:1]
    assert shown(chat) == [*expected, ["assistant text", "Bye."]]
    assert messages_sent(fake) == 1


def test_lost_connection_continues_when_the_network_returns(
    browser: Browser, chat_url: str, fake: FakeTransport, version: str
) -> None:
    """Version 6 of the AI SDK adds the reply to the text that it has, until the next reload."""
    gate = Gate(timeout=60)
    fake.script([*TURN, gate, Say("Bye.")])
    port = urlsplit(chat_url).port or 0
    with Relay(port) as relay, browser.page() as page:
        url = chat_url.replace(f":{port}", f":{urlsplit(relay.url).port}")
        show(page, url)
        send(page, "Hi")
        wait_for_text(page, "Sunny.")
        relay.cut_before(b"Bye")
        gate.open()
        assert "error" in alert(page)

        page.evaluate("window.dispatchEvent(new Event('online')) && null")
        page.wait_for("document.body.innerText.includes('Bye.')")
        page.wait_for("document.querySelector('[role=alert]').textContent === ''")
        if version == "AI SDK 6":
            assert [part[1] for part in shown(page)].count("Bye.") == 1
            show(page, url)
            page.wait_for("document.body.innerText.includes('Bye.')")
        assert shown(page) == [*SHOWN, ["assistant text", "Bye."]]
    assert messages_sent(fake) == 1
