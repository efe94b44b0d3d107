"""The page of `examples/web`, in Chromium, with a fake server that these tests control."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from flux0.testing import (
    AgentStep,
    CallTool,
    Fail,
    FakeTransport,
    Fault,
    Gate,
    GiveResult,
    Reason,
    Report,
    Respond,
    Say,
    SendChunk,
    Truncate,
)
from support.browser import Browser, Page, find_browser
from support.fake_over_http import FakeOverHTTP
from support.web_example import web_example

pytestmark = [
    pytest.mark.skipif(find_browser() is None, reason="Chromium is not installed"),
]

IS_IDLE = "!document.getElementById('send').disabled"
ERROR = "document.getElementById('error').textContent"


def send(page: Page, text: str) -> None:
    page.click("#text")
    page.write(text)
    page.press_enter()


def wait_for_text(page: Page, kind: str, text: str) -> None:
    page.wait_for(
        f"[...document.querySelectorAll('.{kind}')].some((part) => part.textContent === {text!r})"
    )


def piece(text: str) -> SendChunk:
    return SendChunk("m1", [{"op": "add", "path": "/-", "value": text}])


def test_text_streams_and_the_chat_continues_after_a_reload(
    page: Page, fake: FakeTransport, url: str
) -> None:
    gate, tool = Gate(), CallTool("get_weather", {"city": "SF"})
    steps: list[AgentStep] = [Reason("Hm"), tool, GiveResult(tool, 16), piece("Sun"), gate]
    fake.script([*steps, piece("ny <b>"), Report("ready", event_id="m1")])

    send(page, "How is the weather?")
    wait_for_text(page, "text", "Sun")
    assert page.evaluate("document.getElementById('send').disabled")
    gate.open()
    wait_for_text(page, "text", "Sunny <b>")
    page.wait_for(IS_IDLE)

    chat = "How is the weather?\nHm\nget_weather({'city': 'SF'})\n16\nSunny <b>".replace("'", '"')
    assert page.evaluate("document.getElementById('chat').innerText") == chat
    assert page.evaluate("document.getElementById('text').value") == ""
    page.open(page.evaluate("location.href"))
    wait_for_text(page, "text", "Sunny <b>")
    assert page.evaluate("document.getElementById('chat').innerText") == chat
    assert page.hosts == {urlsplit(url).netloc}


def test_stop_button_cancels_the_agent(
    page: Page, fake: FakeTransport, server: FakeOverHTTP
) -> None:
    fake.script([piece("Once upon"), Gate()])
    send(page, "Tell me a story")
    wait_for_text(page, "text", "Once upon")

    page.click("#stop")

    wait_for_text(page, "stopped", "Stopped.")
    assert server.no_open_streams.wait(10)
    send(page, "Hi")
    wait_for_text(page, "text", "Hello")


@pytest.mark.parametrize(
    ("faults", "steps", "shown"),
    [
        ((), [Say("I will try."), Fail("no model")], "The agent failed: no model"),
        ((), [Fail()], "The agent failed: no details"),
        ((Truncate(after_events=1),), [Say("Hello", pieces=2)], "closed"),
        ((Respond(503),), [], "503: Service Unavailable. Reload the page"),
        ((Respond(429),), [], "429: Too Many Requests."),
    ],
)
def test_errors_are_visible(
    page: Page, fake: FakeTransport, faults: tuple[Fault, ...], steps: list[AgentStep], shown: str
) -> None:
    fake.script(steps)
    if faults:
        fake.inject(*faults, operation="sessions.create_event", times=3)

    send(page, "Hi")

    assert shown in page.wait_for(ERROR)
    page.wait_for(IS_IDLE)
    # If no event was received, the message stays in the input.
    kept = page.evaluate("document.getElementById('text').value")
    assert kept == ("Hi" if not steps else "")


@pytest.mark.parametrize("whose", ["another user's", "unknown"])
def test_session_of_another_user_is_refused(
    whose: str, page: Page, fake: FakeTransport, browser: Browser, url: str
) -> None:
    session_id = "unknown-00"
    if whose == "another user's":
        send(page, "My secret")
        wait_for_text(page, "text", "Hello")
        page.wait_for(IS_IDLE)
        session_id = page.evaluate("new URLSearchParams(location.search).get('session')")
    calls = len(fake.calls)

    with browser.page() as other:
        other.open(f"{url}?session={session_id}")
        assert other.wait_for(ERROR) == f"You have no chat with the id {session_id}."
        send(other, "Let me in")
        other.wait_for(IS_IDLE)
        assert other.wait_for(ERROR) == f"You have no chat with the id {session_id}."
        assert "secret" not in other.text

    assert {call.operation for call in fake.calls[calls:]} == {"sessions.list"}


def test_page_works_without_a_server(browser: Browser) -> None:
    with web_example(None) as url, browser.page() as page:
        page.open(url)
        send(page, "What's the weather in Paris?")
        wait_for_text(page, "tool_call", 'get_weather({"city": "Paris"})')
        wait_for_text(page, "text", "It is 16 °C and foggy in Paris.")
