"""The page of `examples/web`, in Chromium, with a fake server that these tests control."""

# redis has incomplete types.
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
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
from support.npm import is_npm_installed, npm_install
from support.redis_server import is_installed, redis_server
from support.relay import Relay
from support.web_example import restarted_example, web_example

pytestmark = [
    pytest.mark.skipif(find_browser() is None, reason="Chromium is not installed"),
]

IS_IDLE = "!document.getElementById('send').disabled"
ERROR = "document.getElementById('error').textContent"
RECORD_STATUS = """
window.statuses = [];
new MutationObserver((changes) => {
  for (const { addedNodes } of changes) {
    for (const { data } of addedNodes) window.statuses.push(data);
  }
}).observe(document.getElementById("status"), { childList: true });
"""


def send(page: Page, text: str) -> None:
    page.click("#text")
    page.write(text)
    page.press_enter()


def wait_for_text(page: Page, kind: str, text: str) -> None:
    texts = f"[...document.querySelectorAll('.{kind} > span')].map((part) => part.textContent)"
    page.wait_for(f"{texts}.includes({text!r})")


def piece(text: str) -> SendChunk:
    return SendChunk("m1", [{"op": "add", "path": "/-", "value": text}])


@contextmanager
def second_tab(page: Page, browser: Browser, url: str | None = None) -> Generator[Page, None, None]:
    """Open the chat of a page in another tab of the same visitor."""
    with browser.page() as tab:
        address = page.evaluate("location.href")
        cookies = page.call("Network.getCookies")["cookies"]
        tab.call("Network.setCookies", cookies=cookies)
        tab.open(address if url is None else f"{url}?{urlsplit(address).query}")  # pyright: ignore[reportUnknownMemberType]
        yield tab


def chat_of(page: Page) -> str:
    """Return the chat's lines, without the speakers' names."""
    texts = "[...document.querySelectorAll('#chat span')].map((part) => part.textContent)"
    return "\n".join(page.evaluate(texts))


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

    chat = "How is the weather?\nHm\nget_weather({'city':'SF'})\n16\nSunny <b>".replace("'", '"')
    assert chat_of(page) == chat
    assert page.evaluate("document.getElementById('text').value") == ""
    page.open(page.evaluate("location.href"))
    wait_for_text(page, "text", "Sunny <b>")
    assert chat_of(page) == chat
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
    page.wait_for(IS_IDLE)
    assert page.evaluate("document.activeElement.id") == "text"
    assert page.evaluate(ERROR) == ""
    send(page, "Hi")
    wait_for_text(page, "text", "Hello")


def test_reload_in_the_middle_of_a_reply_continues_it(page: Page, fake: FakeTransport) -> None:
    gate = Gate()
    steps: list[AgentStep] = [Reason("Hm"), Say("First."), piece("Once "), gate, piece("upon")]
    fake.script([*steps, Report("ready", event_id="m1")])
    send(page, "Tell me a story")
    wait_for_text(page, "text", "Once ")

    page.open(page.evaluate("location.href"))

    wait_for_text(page, "text", "Once ")
    assert not page.evaluate(IS_IDLE)
    gate.open()
    wait_for_text(page, "text", "Once upon")
    page.wait_for(IS_IDLE)
    assert chat_of(page) == "Tell me a story\nHm\nFirst.\nOnce upon"


@pytest.mark.parametrize("processes", [1, 2])
def test_two_tabs_show_the_same_turn_and_stop_ends_both(
    processes: int,
    fake: FakeTransport,
    server: FakeOverHTTP,
    browser: Browser,
    tmp_path: Path,
) -> None:
    if processes == 2 and not is_installed():
        pytest.skip("redis-server is not installed")
    fake.script([piece("Once upon"), Gate()])
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(tmp_path)).url if processes == 2 else None
        urls = [stack.enter_context(web_example(server.url, redis)) for _ in range(processes)]
        page = stack.enter_context(browser.page())
        page.open(urls[0])
        send(page, "Tell me a story")
        wait_for_text(page, "text", "Once upon")
        tab = stack.enter_context(second_tab(page, browser, urls[-1]))
        wait_for_text(tab, "text", "Once upon")

        tab.click("#stop")

        for each in (tab, page):
            wait_for_text(each, "stopped", "Stopped.")
            each.wait_for(IS_IDLE)
            assert chat_of(each) == "Tell me a story\nOnce upon\nStopped."
        assert server.no_open_streams.wait(10)


def test_page_continues_the_reply_after_a_lost_connection(
    browser: Browser, fake: FakeTransport, url: str
) -> None:
    gate = Gate()
    fake.script([piece("Once "), gate, piece("upon"), Report("ready", event_id="m1")])
    with Relay(urlsplit(url).port or 0) as relay, browser.page() as page:
        page.open(relay.url)
        send(page, "Tell me a story")
        wait_for_text(page, "text", "Once ")
        page.evaluate(RECORD_STATUS)

        relay.cut_before(b"upon")
        gate.open()

        wait_for_text(page, "text", "Once upon")
        page.wait_for(IS_IDLE)
        assert "Reconnecting…" in page.evaluate("window.statuses")
        assert chat_of(page) == "Tell me a story\nOnce upon"
        assert page.evaluate(ERROR) == ""
    assert [call.operation for call in fake.calls].count("sessions.create_event") == 1


def test_page_continues_the_reply_in_another_process_if_its_process_gets_sigterm(
    browser: Browser, fake: FakeTransport, server: FakeOverHTTP, tmp_path: Path
) -> None:
    if not is_installed():
        pytest.skip("redis-server is not installed")
    gate = Gate()
    fake.script([piece("Once "), gate, piece("upon"), Report("ready", event_id="m1")])
    with restarted_example(server.url, tmp_path) as (url, restart), browser.page() as page:
        page.open(url)
        send(page, "Tell me a story")
        wait_for_text(page, "text", "Once ")
        page.evaluate(RECORD_STATUS)

        restart()

        page.wait_for("window.statuses.includes('Reconnecting…')")
        gate.open()
        wait_for_text(page, "text", "Once upon")
        page.wait_for(IS_IDLE)
        assert chat_of(page) == "Tell me a story\nOnce upon"
        assert page.evaluate(ERROR) == ""
    assert [call.operation for call in fake.calls].count("sessions.create_event") == 1


def test_blank_messages_are_not_sent_and_text_typed_meanwhile_is_kept(
    page: Page, fake: FakeTransport
) -> None:
    send(page, "  ")
    assert chat_of(page) == ""
    assert "sessions.create_event" not in {call.operation for call in fake.calls}

    gate = Gate()
    fake.script([gate, piece("Hello")])
    page.evaluate("document.getElementById('text').value = ''")
    send(page, "Hi")
    page.write("Next")
    gate.open()
    wait_for_text(page, "text", "Hello")
    assert page.evaluate("document.getElementById('text').value") == "Next"


def test_newest_text_is_visible_unless_the_user_has_scrolled_up(
    page: Page, fake: FakeTransport
) -> None:
    page.resize(390, 500)
    gates = Gate(), Gate()
    lines = "line\n" * 40
    fake.script([piece(lines), gates[0], piece(lines), gates[1], piece("End")])
    send(page, "Hi")
    wait_for_text(page, "text", lines)
    hidden = (
        "(({scrollHeight, scrollTop, clientHeight}) => scrollHeight - scrollTop - clientHeight)"
    )
    hidden += "(document.getElementById('chat'))"
    assert page.evaluate(hidden) < 2
    assert page.evaluate("document.getElementById('stop').getBoundingClientRect().bottom") <= 500
    gates[0].open()
    wait_for_text(page, "text", lines * 2)
    assert page.evaluate(hidden) < 2

    page.evaluate("document.getElementById('chat').scrollTop = 100")
    gates[1].open()
    wait_for_text(page, "text", lines * 2 + "End")
    assert page.evaluate("document.getElementById('chat').scrollTop") == 100


@pytest.mark.parametrize(
    ("faults", "steps", "shown"),
    [
        ((), [Say("I will try."), Fail("no model")], "The agent could not finish its reply."),
        ((), [Fail()], "The agent could not finish its reply."),
        ((Truncate(after_events=1),), [Say("Hello", pieces=2)], "Reload the page"),
        ((Respond(503),), [], "The connection to the agent failed. Reload the page"),
        ((Respond(429),), [], "The agent cannot be reached. Try again in a few minutes."),
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
    assert page.evaluate("document.querySelector('.user.failed') !== null") == (not steps)


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
        assert other.wait_for(ERROR) == "You have no such chat. Start a new chat."
        send(other, "Let me in")
        other.wait_for(IS_IDLE)
        assert other.wait_for(ERROR) == "You have no such chat. Start a new chat."
        assert "secret" not in other.text

    assert {call.operation for call in fake.calls[calls:]} == {"sessions.list"}


def test_page_works_without_a_server_and_shows_that_it_was_stopped(browser: Browser) -> None:
    with browser.page() as page:
        with web_example(None) as url:
            page.open(url)
            assert "Tell me a story" in page.text
            send(page, "What's the weather in Paris?")
            wait_for_text(page, "tool_call", 'get_weather({"city":"Paris"})')
            wait_for_text(page, "text", "It is 16 °C and foggy in Paris.")
            page.wait_for(IS_IDLE)
            send(page, "Tell me a story")
            page.wait_for("document.querySelector('#chat').innerText.includes('Once upon a')")
        # Ctrl-C has stopped the application during the reply.
        assert page.wait_for(ERROR) == "The application was stopped. Reload the page in a minute."


def test_json_contents_and_lines_are_the_same_after_a_reload(
    page: Page, fake: FakeTransport
) -> None:
    tool = CallTool("search", {"for": ["a", "b"]})
    table = SendChunk("m1", [{"op": "add", "path": "/table", "value": [1, None]}])
    ready = Report("ready", event_id="m1")
    result = GiveResult(tool, {"found": ["é", 2]})
    fake.script([tool, result, table, ready, Say("a\nb")])
    page.click("#text")
    page.write("One")
    page.press_enter(shift=True)
    page.write("Two")
    page.press_enter()
    wait_for_text(page, "text", "a\nb")
    page.wait_for(IS_IDLE)
    chat = chat_of(page)
    assert chat.startswith("One\nTwo\n")
    assert '{"table":[1,null]}' in chat

    page.open(page.evaluate("location.href"))

    wait_for_text(page, "text", "a\nb")
    assert chat_of(page) == chat


def test_screen_readers_announce_each_finished_piece_once(page: Page, fake: FakeTransport) -> None:
    gate = Gate()
    story = SendChunk("m2", [{"op": "add", "path": "/-", "value": "Once upon"}])
    ready = Report("ready", event_id="m2")
    fake.script([Reason("Hm"), Say("First.", pieces=3), story, gate, story, ready])
    announced = "document.getElementById('finished').innerText.split(/\\n+/)"
    send(page, "Tell me a story")
    wait_for_text(page, "text", "Once upon")
    assert page.evaluate(announced) == ["Agent, thinking: Hm", "Agent: First."]
    gate.open()
    page.wait_for(IS_IDLE)
    assert page.evaluate(announced)[2:] == ["Agent: Once uponOnce upon"]


@pytest.mark.skipif(not is_npm_installed(), reason="Node.js is not installed")
def test_axe_finds_no_barrier(page: Page, fake: FakeTransport, tmp_path: Path) -> None:
    npm_install("axe-core@4", folder=tmp_path)
    tool = CallTool("search", {})
    fake.script([Reason("Hm"), tool, GiveResult(tool, 1), Say("Hello"), Fail()])
    send(page, "Hi")
    page.wait_for(ERROR)
    page.wait_for(IS_IDLE)
    page.evaluate((tmp_path / "node_modules/axe-core/axe.min.js").read_text("utf-8"))
    violations = page.evaluate("axe.run().then(({ violations }) => violations)")
    assert [(each["id"], each["nodes"][0]["html"]) for each in violations] == []
