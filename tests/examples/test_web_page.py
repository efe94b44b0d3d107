"""The page of `examples/web`, in Chromium, with a fake server that these tests control."""

# redis has incomplete types.
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from flux0.testing import (
    AgentStep,
    CallTool,
    Drop,
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
from support.browser import Browser, Page
from support.chat_page import (
    ERROR,
    IS_IDLE,
    ask,
    chat_of,
    piece,
    reload,
    second_tab,
    send,
    wait_for_text,
)
from support.fake_over_http import FakeOverHTTP
from support.npm import npm_install
from support.programs import REDIS, needs, skip_without
from support.redis_server import redis_server
from support.relay import Relay
from support.web_example import restarted_example, web_example

pytestmark = [
    needs("chromium"),
]

MARKDOWN = [
    "### Plan\n\n# One\n- [x] `a`\n\n[x](https://example.com)",
    "```\ncode\n```\n\n| a |\n| - |\n| b |",
]
RECORD_STATUS = """
window.statuses = [];
new MutationObserver((changes) => {
  for (const { addedNodes } of changes) {
    for (const { data } of addedNodes) window.statuses.push(data);
  }
}).observe(document.getElementById("status"), { childList: true });
"""


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

    chat = chat_of(page)
    call = 'get_weather({\n  "city": "SF"\n})'
    assert chat == f"How is the weather?\nHm\n{call}\n16\nSunny <b>"
    assert page.evaluate("document.getElementById('text').value") == ""
    reload(page)
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
    reload(page)
    page.wait_for(IS_IDLE)
    assert chat_of(page) == "Tell me a story\nStopped."
    send(page, "Hi")
    wait_for_text(page, "text", "Hello")


@pytest.mark.parametrize("key", ["button", "Escape"])
def test_stop_works_while_the_first_message_creates_the_session(
    key: str, page: Page, fake: FakeTransport
) -> None:
    page.hold_requests("*/sessions")
    send(page, "Tell me a story")
    request = page.wait_for_held_request()

    if key == "button":
        page.click("#stop")
    else:
        page.press_escape()

    page.wait_for(IS_IDLE)
    assert page.evaluate(ERROR) == "Stopped. The message was not sent."
    assert page.evaluate("document.getElementById('text').value") == "Tell me a story"
    assert chat_of(page) == "Tell me a story"
    page.click("#retry")
    page.release_request(request)
    wait_for_text(page, "text", "Hello")
    page.wait_for(IS_IDLE)
    operations = [call.operation for call in fake.calls]
    assert operations.count("sessions.create") == 1
    assert operations.count("sessions.create_event") == 1
    assert chat_of(page) == "Tell me a story\nHello"


def test_stop_works_before_the_application_knows_the_turn(
    page: Page, fake: FakeTransport, server: FakeOverHTTP
) -> None:
    ask(page, "Hi")
    fake.script([piece("Once upon"), Gate()])
    page.hold_requests("*/messages")
    send(page, "Tell me a story")
    request = page.wait_for_held_request()

    page.press_escape()
    page.release_request(request)

    wait_for_text(page, "stopped", "Stopped.")
    page.wait_for(IS_IDLE)
    assert server.no_open_streams.wait(10)


@pytest.mark.parametrize(
    ("faults", "steps", "stored", "mark"),
    [
        ((), [Say("I try."), Fail("no model")], ["I try."], "This reply is incomplete."),
        ((Truncate(after_events=1),), [piece("A"), piece("B")], [], "This reply is incomplete."),
        ((Respond(503),), [], [], None),
        ((), [Report("processing")], [], "No reply is stored."),
    ],
)
def test_turn_without_a_complete_reply_is_marked_after_a_reload(
    faults: tuple[Fault, ...],
    steps: list[AgentStep],
    stored: list[str],
    mark: str | None,
    page: Page,
    fake: FakeTransport,
) -> None:
    ask(page, "Hi")
    fake.script(steps)
    if faults:
        fake.inject(*faults, operation="sessions.create_event")
    ask(page, "Tell me a story")
    for _ in range(2):
        reload(page)
        page.wait_for(IS_IDLE)
        marked = ["Tell me a story", *stored, mark] if mark else []
        assert chat_of(page).split("\n") == ["Hi", "Hello", *marked]


def test_error_of_the_agent_is_marked_in_each_browser(page: Page, fake: FakeTransport) -> None:
    fake.script([Say("I try."), Fail()])
    ask(page, "Hi")
    page.evaluate("localStorage.clear()")
    reload(page)
    page.wait_for(IS_IDLE)
    assert chat_of(page) == "Hi\nI try.\nThis reply is incomplete."


def test_idle_tab_shows_new_messages_when_it_is_shown(
    page: Page, browser: Browser, fake: FakeTransport
) -> None:
    ask(page, "Hi")
    with second_tab(page, browser) as tab:
        wait_for_text(tab, "text", "Hello")
        tab.wait_for(IS_IDLE)
        tab.hide()
        ask(page, "And now?")
        gate = Gate()
        tab.unhide()
        wait_for_text(tab, "user", "And now?")
        tab.hide()
        fake.script([piece("Once"), gate, piece(" upon")])
        send(page, "Tell me a story")
        wait_for_text(page, "text", "Once")

        tab.unhide()

        wait_for_text(tab, "text", "Once")
        gate.open()
        wait_for_text(tab, "text", "Once upon")
        assert chat_of(tab) == "Hi\nHello\nAnd now?\nHello\nTell me a story\nOnce upon"


def test_messages_of_another_tab_do_not_replace_a_new_message(
    page: Page, fake: FakeTransport
) -> None:
    ask(page, "Hi")
    page.hide()
    page.hold_requests("*/turn")
    page.unhide()
    request = page.wait_for_held_request()
    gate = Gate()
    fake.script([piece("Once"), gate, piece(" upon")])
    send(page, "Tell me a story")
    wait_for_text(page, "text", "Once")
    page.evaluate(
        "window.loaded = new Promise((resolve) => {"
        " const get = fetch; window.fetch = async (path, ...rest) => {"
        "  const response = await get(path, ...rest);"
        "  if (/^.sessions.[^/]+$/.test(path)) setTimeout(resolve);"
        "  return response; } }); null"
    )
    page.release_request(request)
    page.evaluate("loaded")
    gate.open()
    wait_for_text(page, "text", "Once upon")
    page.wait_for(IS_IDLE)
    assert chat_of(page) == "Hi\nHello\nTell me a story\nOnce upon"


def test_enter_during_a_reply_says_why_nothing_is_sent(page: Page, fake: FakeTransport) -> None:
    gate = Gate()
    fake.script([piece("Once"), gate])
    send(page, "Tell me a story")
    wait_for_text(page, "text", "Once")
    send(page, "Next")
    hint = "document.getElementById('hint').textContent"
    assert page.wait_for(hint).startswith("The agent is replying.")
    assert page.evaluate("document.getElementById('text').value") == "Next"
    gate.open()
    page.wait_for(IS_IDLE)
    assert page.evaluate(hint) == ""
    assert [call.operation for call in fake.calls].count("sessions.create_event") == 1


def test_buttons_are_large_enough_for_a_finger(page: Page, fake: FakeTransport) -> None:
    page.resize(390, 500)
    page.call("Emulation.setTouchEmulationEnabled", enabled=True)
    fake.script([Reason("Hm"), Say("line\n" * 40 + "```\ncode\n```"), Fail()])
    ask(page, "Hi")
    page.evaluate("document.getElementById('chat').scrollTop = 0")
    page.wait_for("!document.getElementById('jump').hidden")
    sizes = page.evaluate(
        "[...document.querySelectorAll('button, summary, textarea, nav a')].map((each) => {"
        " const {width, height} = each.getBoundingClientRect();"
        " return [each.outerHTML, Math.min(width, height)]; })"
    )
    assert len(sizes) == 10
    assert [html for html, size in sizes if size < 44] == []
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_button_jumps_to_the_end(page: Page, fake: FakeTransport) -> None:
    fake.script([Say("line\n" * 80)])
    ask(page, "Hi")
    is_hidden = "document.getElementById('jump').hidden"
    assert page.evaluate(is_hidden)
    page.evaluate("document.getElementById('chat').scrollTop = 0")
    page.wait_for(f"!{is_hidden}")

    page.click("#jump")

    page.wait_for(is_hidden)
    chat = "document.getElementById('chat')"
    hidden = f"{chat}.scrollHeight - {chat}.clientHeight - {chat}.scrollTop"
    assert page.evaluate(hidden) < 2


@pytest.mark.parametrize(
    ("faults", "steps", "label", "messages"),
    [
        ((Respond(429),), [], "Send again", ["Hi", "Hello"]),
        ((Respond(503),), [], "Reload messages", []),
        (
            (Drop(after_acting=True),),
            [piece("A")],
            "Reload messages",
            ["Hi", "No reply is stored."],
        ),
        (
            (Truncate(after_events=1),),
            [piece("A"), piece("B")],
            "Reload messages",
            ["Hi", "This reply is incomplete."],
        ),
        ((), [Fail()], "Send again", ["Hi", "This reply is incomplete.", "Hi", "Hello"]),
    ],
)
def test_button_repeats_what_has_failed_but_sends_no_message_twice(
    page: Page,
    fake: FakeTransport,
    faults: tuple[Fault, ...],
    steps: list[AgentStep],
    label: str,
    messages: list[str],
) -> None:
    if steps:
        fake.script(steps)
    if faults:
        fake.inject(
            *faults, operation="sessions.create_event", times=4 if label == "Send again" else 1
        )
    ask(page, "Hi")
    assert page.wait_for("document.getElementById('retry').textContent") == label

    page.click("#retry")

    page.wait_for(f"{IS_IDLE} && document.getElementById('retry').hidden")
    assert chat_of(page).split("\n") == (messages or [""])
    assert page.evaluate(ERROR) == ""
    if label == "Send again":
        assert page.evaluate("document.getElementById('text').value") == ""


def test_error_of_another_operation_is_not_about_the_message(
    page: Page, fake: FakeTransport
) -> None:
    ask(page, "Hi")
    fake.inject(Respond(404), operation="sessions.list")
    ask(page, "And now?")
    assert page.evaluate(ERROR) == "The agent cannot be reached."
    assert page.evaluate("document.getElementById('retry').textContent") == "Send again"
    page.click("#retry")
    wait_for_text(page, "user", "And now?")
    page.wait_for(IS_IDLE)
    assert chat_of(page) == "Hi\nHello\nAnd now?\nHello"


def test_lost_message_and_typed_text_stay_in_the_form_also_after_a_reload(
    page: Page, fake: FakeTransport
) -> None:
    text = "document.getElementById('text').value"
    ask(page, "Hi")
    page.hold_requests("*/messages")
    send(page, "And now?")
    request = page.wait_for_held_request()
    page.call("Fetch.failRequest", requestId=request, errorReason="ConnectionReset")
    page.call("Fetch.disable")
    assert page.wait_for(ERROR).startswith("The application cannot be reached.")
    assert page.evaluate("document.getElementById('retry').textContent") == "Reload messages"
    for _ in range(2):
        reload(page)
        assert page.evaluate(text) == "And now?"
    page.press_enter()
    wait_for_text(page, "user", "And now?")
    page.wait_for(IS_IDLE)
    reload(page)
    assert page.evaluate(text) == ""
    assert chat_of(page) == "Hi\nHello\nAnd now?\nHello"


def test_list_shows_the_chats_of_the_user(
    page: Page, fake: FakeTransport, browser: Browser, url: str
) -> None:
    titles = "[...document.querySelectorAll('#chats a')].map((each) => each.firstChild.data)"
    current = "document.querySelector('[aria-current=page]')?.firstChild.data"
    ask(page, "My  first\tquestion")
    assert page.wait_for(current) == "My first question"
    page.follow("nav a")
    page.wait_for(f"{titles}.length === 1 && location.search === ''")
    assert page.evaluate(current) is None
    ask(page, "Second")
    page.wait_for(f"{titles}.length === 2")
    assert page.evaluate(titles) == ["Second", "My first question"]
    assert page.evaluate("document.getElementById('title').innerText") == "Second"

    page.follow("#chats li:last-child a")

    page.wait_for(f"{current} === 'My first question'")
    wait_for_text(page, "user", "My  first\tquestion")
    with browser.page() as other:
        other.open(url)
        ask(other, "Mine")
        other.wait_for(f"{titles}.length === 1")
        assert other.evaluate(titles) == ["Mine"]


def test_reload_in_the_middle_of_a_reply_continues_it(page: Page, fake: FakeTransport) -> None:
    gate = Gate()
    steps: list[AgentStep] = [Reason("Hm"), Say("First."), piece("Once"), gate, piece(" upon")]
    fake.script([*steps, Report("ready", event_id="m1")])
    send(page, "Tell me a story")
    wait_for_text(page, "text", "Once")

    page.open(page.evaluate("location.href"))

    wait_for_text(page, "text", "Once")
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
    if processes == 2:
        skip_without(REDIS)
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
    fake.script([piece("Once"), gate, piece(" upon"), Report("ready", event_id="m1")])
    with Relay(urlsplit(url).port or 0) as relay, browser.page() as page:
        page.open(relay.url)
        send(page, "Tell me a story")
        wait_for_text(page, "text", "Once")
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
    skip_without(REDIS)
    gate = Gate()
    fake.script([piece("Once"), gate, piece(" upon"), Report("ready", event_id="m1")])
    with restarted_example(server.url, tmp_path) as (url, restart), browser.page() as page:
        page.open(url)
        send(page, "Tell me a story")
        wait_for_text(page, "text", "Once")
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
    wait_for_text(page, "text", lines.strip())
    hidden = (
        "(({scrollHeight, scrollTop, clientHeight}) => scrollHeight - scrollTop - clientHeight)"
    )
    hidden += "(document.getElementById('chat'))"
    assert page.evaluate(hidden) < 2
    assert page.evaluate("document.getElementById('stop').getBoundingClientRect().bottom") <= 500
    gates[0].open()
    wait_for_text(page, "text", (lines * 2).strip())
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
        ((Truncate(after_events=1),), [Say("Hello", pieces=2)], "Reload the messages"),
        ((Respond(503),), [], "The connection to the agent failed. Your message may have been"),
        ((Respond(429),), [], "The agent cannot be reached. Your message was not sent."),
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
            wait_for_text(page, "tool_call", 'get_weather({\n  "city": "Paris"\n})')
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
    assert page.evaluate(announced) == ["Thinking: Hm", "Fake: First."]
    gate.open()
    page.wait_for(IS_IDLE)
    assert page.evaluate(announced)[2:] == ["Fake: Once uponOnce upon"]


@needs("npm")
@pytest.mark.parametrize(("color_scheme", "width"), [("light", 800), ("dark", 390)])
def test_axe_finds_no_barrier(
    color_scheme: str, width: int, page: Page, fake: FakeTransport, tmp_path: Path
) -> None:
    npm_install("axe-core@4", folder=tmp_path)
    page.resize(width, 600)
    page.prefer(color_scheme)
    tool = CallTool("search", {})
    says = [Say(text) for text in MARKDOWN]
    steps: list[AgentStep] = [Reason("Hm"), tool, GiveResult(tool, 1), *says, Fail()]
    fake.script(steps)
    send(page, "Hi")
    page.wait_for(ERROR)
    page.wait_for(IS_IDLE)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.evaluate((tmp_path / "node_modules/axe-core/axe.min.js").read_text("utf-8"))
    violations = page.evaluate("axe.run().then(({ violations }) => violations)")
    assert [(each["id"], each["nodes"][0]["html"]) for each in violations] == [], violations
