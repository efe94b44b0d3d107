"""`examples/usechat` in Chromium, with the packages of npm, and a fake server."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
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
    Respond,
    Say,
)
from support.browser import Browser, Page
from support.fake_over_http import FakeOverHTTP
from support.programs import REDIS, needs, skip_without
from support.redis_server import redis_server
from support.relay import Relay
from support.reverse_proxies import reverse_proxy
from support.usechat_page import (
    HOLD_TIMERS,
    READY,
    alert,
    ask,
    click,
    copied_example,
    delete_chats,
    hold_timers,
    in_chromium,
    record_stop,
    second_tab,
    send,
    sent,
    served,
    texts,
    timers,
    titles,
    wait_for,
    wait_for_stop,
)
from support.web_example import restarted_example, web_example, web_example_process

pytestmark = [
    needs("chromium"),
    needs("npm"),
    # The first test installs the packages, and builds the page.
    pytest.mark.timeout(400),
]

DRAFT = "document.querySelector('.composer textarea').value"
INTERRUPTED = "The answer was interrupted"
TOOL = CallTool("weather", {"city": "SF"})


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied_example(tmp_path_factory.mktemp("example") / "usechat")


@pytest.fixture(scope="module")
def chat_url(server: FakeOverHTTP, program: Path) -> Iterator[str]:
    with served(server.url, program) as url:
        yield url


@pytest.fixture(autouse=True)
def empty_database(chat_url: str, fake: FakeTransport, program: Path) -> None:
    delete_chats(program)


@pytest.fixture
def chat(browser: Browser, chat_url: str, empty_database: None) -> Iterator[Page]:
    """The page of a user without chats."""
    with in_chromium(browser, chat_url) as page:
        yield page


def reload(page: Page) -> None:
    page.open(page.evaluate("location.href"))
    page.wait_for("document.querySelector('article')")


def test_one_command_starts_the_application_with_an_agent_in_memory(
    browser: Browser, program: Path
) -> None:
    with served(None, program) as url, in_chromium(browser, url) as page:
        send(page, "How is the weather in Paris?")
        page.wait_for("document.body.innerText.includes('and foggy in Paris.')")
        page.wait_for(READY)
        assert page.evaluate("document.querySelector('.assistant strong').textContent") == "16 °C"
        assert page.hosts == {urlsplit(url).netloc}


def test_page_shows_markdown_thoughts_and_tools_also_after_a_reload(
    chat: Page, fake: FakeTransport
) -> None:
    markdown = Say("# Fog\n\n| a |\n| - |\n| b |\n\n![x](https://example.com/x.png) <b>", pieces=5)
    fake.script([Reason("Hm"), TOOL, GiveResult(TOOL, "clear"), markdown])
    send(chat, "Hi")
    for _ in range(2):
        chat.wait_for("document.querySelector('.assistant table')")
        chat.wait_for(READY)
        assert chat.evaluate("document.querySelector('.assistant h1').textContent") == "Fog"
        assert chat.evaluate("document.querySelectorAll('details').length") == 2
        assert '"output": "clear"' in chat.evaluate("document.querySelector('pre').textContent")
        assert chat.evaluate("document.querySelector('img, b')") is None
        reload(chat)
    assert sent(fake) == ["Hi"]


def test_reload_and_second_tab_continue_the_turn(
    chat: Page, browser: Browser, fake: FakeTransport
) -> None:
    gate = Gate(timeout=60)
    fake.script([Say("Half"), gate, Say("Rest")])
    send(chat, "Hi")
    wait_for(chat, "Hi", "Half")
    reload(chat)
    wait_for(chat, "Hi", "Half")
    with second_tab(chat, browser) as tab:
        wait_for(tab, "Hi", "Half")
        gate.open()
        for page in (chat, tab):
            wait_for(page, "Hi", "Half|Rest")
            page.wait_for(READY)
    assert sent(fake) == ["Hi"]


def test_reload_of_an_ended_turn_reads_no_relay(chat: Page, fake: FakeTransport) -> None:
    fake.script([Say("Sunny.")])
    ask(chat, "Hi", "Hi", "Sunny.")
    path = "`/api/chat/${new URLSearchParams(location.search).get('id')}/stream`"
    assert chat.evaluate(f"fetch({path}).then((response) => response.status)") == 204
    chat.evaluate("performance.clearResourceTimings()")
    reload(chat)
    requests = "performance.getEntriesByType('resource').map(({ name }) => name)"
    assert not [url for url in chat.evaluate(requests) if url.endswith("/stream")]


@contextmanager
def tab_with_old_messages(
    chat: Page, browser: Browser, fake: FakeTransport
) -> Generator[Page, None, None]:
    """Open a second tab, and then send a message in the first tab."""
    fake.script([Say("One.")], [Say("Two.")])
    ask(chat, "1", "1", "One.")
    with second_tab(chat, browser) as tab:
        wait_for(tab, "1", "One.")
        ask(chat, "2", "1", "One.", "2", "Two.")
        yield tab


def test_second_tab_shows_the_messages_of_the_first_tab_when_it_becomes_visible(
    chat: Page, browser: Browser, fake: FakeTransport
) -> None:
    with tab_with_old_messages(chat, browser, fake) as tab:
        show_again(tab)
        wait_for(tab, "1", "One.", "2", "Two.")


def test_message_of_a_tab_with_old_messages_is_refused_and_hides_nothing(
    chat: Page, browser: Browser, fake: FakeTransport
) -> None:
    with tab_with_old_messages(chat, browser, fake) as tab:
        send(tab, "3")
        assert "does not have all earlier messages" in alert(tab)
        tab.wait_for(f"{DRAFT} === '3'")
        assert sent(fake) == ["1", "2"]
        reload(tab)
        wait_for(tab, "1", "One.", "2", "Two.")


def test_stop_reaches_the_agent_and_shows_no_alert(chat: Page, fake: FakeTransport) -> None:
    fake.script([Say("Done.")], [Say("Half"), Gate(timeout=60), Say("never sent")], [Say("Bye.")])
    ask(chat, "Hi", "Hi", "Done.")
    send(chat, "Story")
    wait_for(chat, "Hi", "Done.", "Story", "Half")
    click(chat, "Stop")
    chat.wait_for(READY)
    fake.assert_no_open_streams()
    assert chat.evaluate("document.querySelector('[role=alert]').textContent").strip() == ""
    reload(chat)
    chat.wait_for(READY)
    assert chat.evaluate("document.querySelector('[role=alert]').textContent").strip() == ""
    ask(chat, "Go on", "Hi", "Done.", "Story", "Half", "Go on", "Bye.")


def test_stop_right_after_send_stops_the_agent(chat: Page, fake: FakeTransport) -> None:
    """The first DELETE request arrives before the message has reached the application."""
    fake.script([Say("Done.")], [Say("Half"), Gate(timeout=60), Say("never sent")])
    ask(chat, "Hi", "Hi", "Done.")
    chat.hold_requests("*/api/chat")
    record_stop(chat)
    send(chat, "Story")
    held = chat.wait_for_held_request()
    click(chat, "Stop")
    wait_for_stop(chat)
    chat.release_request(held)
    chat.wait_for(READY)
    fake.assert_no_open_streams()


@pytest.mark.parametrize("is_cut", [False, True])
def test_stop_does_not_stop_the_next_turn_which_another_tab_has_started(
    chat: Page, browser: Browser, fake: FakeTransport, is_cut: bool
) -> None:
    gate = Gate(timeout=60)
    fake.script([Say("Half"), Gate(timeout=60)], [Say("More"), gate, Say("Rest")])
    send(chat, "1")
    wait_for(chat, "1", "Half")
    click(chat, "Stop")
    chat.wait_for(READY)
    with second_tab(chat, browser) as tab:
        wait_for(tab, "1", "Half")
        send(tab, "2")
        wait_for(tab, "1", "Half", "2", "More")
        if is_cut:
            chat.hold_requests("*/stream")
        show_again(chat)
        if is_cut:  # As from a proxy that hides a lost connection.
            chat.end_request(chat.wait_for_held_request(), "text/event-stream")
        wait_for(chat, "1", "Half", "2", "More")
        gate.open()
        for page in (chat, tab):
            wait_for(page, "1", "Half", "2", "More|Rest")
            page.wait_for(READY)


def test_turn_that_follows_while_the_page_is_loaded_is_shown(
    chat: Page, browser: Browser, fake: FakeTransport
) -> None:
    gate, last = Gate(timeout=60), Gate(timeout=60)
    fake.script([Say("Half"), gate, Say("Rest")], [Say("More"), last])
    send(chat, "1")
    wait_for(chat, "1", "Half")
    with browser.page() as tab:
        tab.call("Network.setCookies", cookies=chat.call("Network.getCookies")["cookies"])
        tab.hold_requests("*/stream")
        tab.open(chat.evaluate("location.href"))
        held = tab.wait_for_held_request()
        gate.open()
        wait_for(chat, "1", "Half|Rest")
        chat.wait_for(READY)
        send(chat, "2")
        wait_for(chat, "1", "Half|Rest", "2", "More")
        tab.release_request(held)
        wait_for(tab, "1", "Half|Rest", "2", "More")
        last.open()


def test_pauses_grow_while_another_process_does_not_know_the_turn(
    chat: Page, browser: Browser, fake: FakeTransport
) -> None:
    """Without Redis, each request may reach another process, which responds with 204."""
    gate = Gate(timeout=60)
    fake.script([Say("Half"), gate, Say("Rest")])
    send(chat, "1")
    wait_for(chat, "1", "Half")
    with browser.page() as tab:
        tab.call("Network.setCookies", cookies=chat.call("Network.getCookies")["cookies"])
        tab.call("Page.addScriptToEvaluateOnNewDocument", source=HOLD_TIMERS)
        tab.hold_requests("*/stream")
        tab.open(chat.evaluate("location.href"))
        for _ in range(5):
            tab.respond_without_content(tab.wait_for_held_request())
            tab.evaluate(
                "new Promise((resolve) => setInterval(() => timers.size && resolve(), 20))"
            )
            tab.evaluate("[...timers].map(([id, run]) => { clearTimeout(id); run(); }) && null")
        assert tab.evaluate("pauses") == [1000, 2000, 4000, 8000, 8000]
        tab.release_request(tab.wait_for_held_request())
        gate.open()
        wait_for(tab, "1", "Half|Rest")


def test_chat_that_was_left_does_not_connect_again(chat: Page, fake: FakeTransport) -> None:
    gate = Gate(timeout=60)
    fake.script([Say("Half"), gate], [Say("One.")])
    send(chat, "1")
    wait_for(chat, "1", "Half")
    hold_timers(chat)
    click(chat, "New chat")
    ask(chat, "2", "2", "One.")
    assert timers(chat) == 0
    gate.open()


def test_regenerate_replaces_the_reply_also_after_a_reload(chat: Page, fake: FakeTransport) -> None:
    fake.script([Say("One.")], [Say("Two.")], [Say("Other.")], [Say("Third.")])
    ask(chat, "1", "1", "One.")
    ask(chat, "2", "1", "One.", "2", "Two.")
    click(chat, "Regenerate", 1)
    wait_for(chat, "1", "One.", "2", "Other.")
    chat.wait_for(READY)
    reload(chat)
    wait_for(chat, "1", "One.", "2", "Other.")
    click(chat, "Regenerate", 0)
    wait_for(chat, "1", "Third.")
    reload(chat)
    wait_for(chat, "1", "Third.")
    assert sent(fake) == ["1", "2", "2", "1"]


def edit(page: Page, text: str) -> None:
    """Replace the text of the first message, and send the message."""
    click(page, "Edit")
    page.wait_for("document.querySelector('[name=text]')")
    page.evaluate("document.querySelector('[name=text]').select()")
    page.write(text)
    click(page, "Send")


def test_edited_message_replaces_the_later_messages(chat: Page, fake: FakeTransport) -> None:
    fake.script([Say("One.")], [Say("Two.")], [Say("Eins.")])
    ask(chat, "1", "1", "One.")
    ask(chat, "2", "1", "One.", "2", "Two.")
    edit(chat, "eins")
    wait_for(chat, "eins", "Eins.")
    chat.wait_for(READY)
    reload(chat)
    wait_for(chat, "eins", "Eins.")
    assert sent(fake) == ["1", "2", "eins"]


def test_chats_are_listed_renamed_and_deleted(chat: Page, fake: FakeTransport) -> None:
    fake.script([Say("One.")], [Say("Two.")])
    ask(chat, "First chat", "First chat", "One.")
    click(chat, "New chat")
    ask(chat, "Second chat", "Second chat", "Two.")
    chat.wait_for("document.querySelectorAll('nav .title').length === 2")
    assert titles(chat) == ["Second chat", "First chat"]

    click(chat, "Rename First chat")
    chat.wait_for("document.querySelector('[name=title]')")
    chat.evaluate("document.querySelector('[name=title]').select()")
    chat.write("Weather")
    chat.press_enter()
    chat.wait_for("document.querySelectorAll('nav .title')[1]?.textContent === 'Weather'")
    click(chat, "Weather")
    wait_for(chat, "First chat", "One.")

    chat.evaluate("window.confirm = () => true; null")
    click(chat, "Delete Weather")
    chat.wait_for("document.querySelectorAll('nav .title').length === 1")
    assert titles(chat) == ["Second chat"]
    chat.open(chat.evaluate("location.href"))
    chat.wait_for("document.querySelector('nav .title')")
    assert titles(chat) == ["Second chat"]


def show_again(page: Page) -> None:
    """Report to the page that its tab is visible again."""
    page.evaluate("document.dispatchEvent(new Event('visibilitychange')) && null")


def test_page_load_creates_no_session(chat: Page, fake: FakeTransport) -> None:
    chat.open(chat.evaluate("location.href"))
    chat.wait_for("document.querySelector('nav')")
    assert [call.operation for call in fake.calls] == []


def test_other_user_sees_neither_the_list_nor_the_chat(
    chat: Page, browser: Browser, chat_url: str, fake: FakeTransport
) -> None:
    fake.script([Say("One.")])
    ask(chat, "Hi", "Hi", "One.")
    with in_chromium(browser, chat_url, user="eve") as page:
        assert titles(page) == []
        page.open(chat.evaluate("location.href"))
        assert alert(page) == "You have no such chat."
        assert texts(page) == []


def test_error_of_the_agent_is_a_general_sentence_after_its_text_also_after_a_reload(
    chat: Page, fake: FakeTransport
) -> None:
    fake.script([Say("Half"), Fail("the key sk-123 is not valid")])
    send(chat, "Hi")
    for _ in range(2):
        assert alert(chat) == "The agent reported an error"
        wait_for(chat, "Hi", "Half")
        reload(chat)


@pytest.mark.parametrize("is_new", [True, False])
def test_message_that_was_not_sent_stays_in_the_form_and_can_be_sent_again(
    chat: Page, fake: FakeTransport, is_new: bool
) -> None:
    fake.script(*([] if is_new else [[Say("One.")]]), [Say("Two.")])
    earlier = [] if is_new else ["1", "One."]
    if earlier:
        ask(chat, "1", *earlier)
    fake.inject(Respond(400), operation="sessions.create_event")
    send(chat, "2")
    assert "The agent cannot be reached. Your message was not sent." in alert(chat)
    chat.wait_for(f"{DRAFT} === '2'")
    assert texts(chat) == earlier
    if is_new:
        chat.press_enter()
    else:
        click(chat, "Send again")
    wait_for(chat, *earlier, "2", "Two.")
    chat.wait_for(READY)
    assert chat.evaluate(DRAFT) == ""


def test_message_that_may_have_been_sent_is_loaded_before_it_is_sent_again(
    chat: Page, fake: FakeTransport
) -> None:
    fake.script([Say("One.")])
    ask(chat, "1", "1", "One.")
    fake.inject(Respond(500), operation="sessions.create_event")
    send(chat, "2")
    assert "Your message may have been sent." in alert(chat)
    chat.wait_for(f"{DRAFT} === '2'")
    click(chat, "Reload messages")
    chat.wait_for("document.querySelector('[role=alert]').textContent.trim() === ''")
    wait_for(chat, "1", "One.")
    assert chat.evaluate(DRAFT) == "2"


@pytest.mark.parametrize("begin", [[], [Say("Half")]])
def test_lost_connection_continues_without_the_user(
    chat: Page, browser: Browser, chat_url: str, fake: FakeTransport, begin: list[AgentStep]
) -> None:
    gate = Gate(timeout=60)
    fake.script([Say("One.")], [*begin, gate, Say("Rest")])
    ask(chat, "1", "1", "One.")
    port = urlsplit(chat_url).port or 0
    with Relay(port) as relay:
        url = chat.evaluate("location.href").replace(chat_url.rstrip("/"), relay.url)
        with second_tab(chat, browser, url) as page:
            wait_for(page, "1", "One.")
            relay.cut_before(b"Rest" if begin else b"data: ")
            send(page, "2")
            if begin:
                wait_for(page, "1", "One.", "2", "Half")
            gate.open()
            reply = "Half|Rest" if begin else "Rest"
            wait_for(page, "1", "One.", "2", reply)
            page.wait_for(READY)
    assert sent(fake) == ["1", "2"]


def test_message_that_arrived_before_the_connection_was_lost_does_not_return_to_the_form(
    chat: Page, browser: Browser, chat_url: str, fake: FakeTransport
) -> None:
    gate = Gate(timeout=60)
    fake.script([Say("One.")], [Say("Half"), gate, Say("Rest")], [Say("Three.")], [Say("Four.")])
    ask(chat, "1", "1", "One.")
    with Relay(urlsplit(chat_url).port or 0) as relay:
        url = chat.evaluate("location.href").replace(chat_url.rstrip("/"), relay.url)
        with second_tab(chat, browser, url) as page:
            wait_for(page, "1", "One.")
            relay.cut_before(b"Rest")
            send(page, "2")
            wait_for(page, "1", "One.", "2", "Half")
            page.hold_requests("*/api/chat/*")
            gate.open()
            held = page.wait_for_held_request()
            show_again(chat)
            wait_for(chat, "1", "One.", "2", "Half|Rest")
            ask(chat, "3", "1", "One.", "2", "Half|Rest", "3", "Three.")
            page.release_request(held)
            wait_for(page, "1", "One.", "2", "Half|Rest", "3", "Three.")
            page.wait_for(READY)
            ask(page, "4", "1", "One.", "2", "Half|Rest", "3", "Three.", "4", "Four.")


@contextmanager
def disconnected_page(chat: Page, browser: Browser, chat_url: str) -> Generator[Page, None, None]:
    """Send a message in a second tab whose connection is lost, and hold the timer of this tab."""
    ask(chat, "1", "1", "One.")
    with Relay(urlsplit(chat_url).port or 0) as relay:
        url = chat.evaluate("location.href").replace(chat_url.rstrip("/"), relay.url)
        with second_tab(chat, browser, url) as page:
            wait_for(page, "1", "One.")
            hold_timers(page)
            relay.cut_before(b"data: ")
            send(page, "2")
            page.wait_for("timers.size")
            page.wait_for(READY)
            yield page


def test_disconnected_page_that_becomes_visible_connects_once(
    chat: Page, browser: Browser, chat_url: str, fake: FakeTransport
) -> None:
    fake.script([Say("One.")], [Say("Two.")])
    with disconnected_page(chat, browser, chat_url) as page:
        show_again(page)
        wait_for(page, "1", "One.", "2", "Two.")
        page.wait_for(READY)
        assert timers(page) == 0


def test_disconnected_page_connects_again_after_the_message_that_the_user_sends_meanwhile(
    chat: Page, browser: Browser, chat_url: str, fake: FakeTransport
) -> None:
    gate = Gate(timeout=60)
    fake.script([Say("One.")], [Say("Two.")], [Say("Half"), gate, Say("Rest")])
    with disconnected_page(chat, browser, chat_url) as page:
        send(page, "3")
        wait_for(page, "1", "One.", "2", "3", "Half")
        assert timers(page) == 0
        gate.open()
        wait_for(page, "1", "One.", "2", "3", "Half|Rest")
        page.wait_for("timers.size")
        page.evaluate("[...timers.values()].map((refresh) => refresh()) && null")
        wait_for(page, "1", "One.", "2", "Two.", "3", "Half|Rest")
        assert timers(page) == 0


@pytest.mark.parametrize("text", ["2", "1"])
def test_request_that_never_arrives_returns_its_text_to_the_form(
    chat: Page, fake: FakeTransport, text: str
) -> None:
    fake.script([Say("One.")])
    ask(chat, "1", "1", "One.")
    chat.hold_requests("*/api/chat")
    send(chat, text)
    request = chat.wait_for_held_request()
    chat.call("Fetch.failRequest", requestId=request, errorReason="ConnectionReset")
    chat.call("Fetch.disable")
    chat.wait_for(f"{DRAFT} === {text!r}")
    wait_for(chat, "1", "One.")
    chat.wait_for(READY)
    assert sent(fake) == ["1"]


def test_requests_that_never_arrive_return_before_the_text_that_the_user_has_written_since(
    chat: Page, fake: FakeTransport
) -> None:
    fake.script([Say("One.")], [Say("Two.")])
    ask(chat, "1", "1", "One.")
    hold_timers(chat)
    chat.hold_requests("*/api/chat")
    for text in ("2", "3"):
        send(chat, text)
        request = chat.wait_for_held_request()
        chat.call("Fetch.failRequest", requestId=request, errorReason="ConnectionReset")
        chat.wait_for("timers.size")
        chat.wait_for(READY)
    chat.call("Fetch.disable")
    chat.click(".composer textarea")
    chat.write("4")
    chat.evaluate("[...timers.values()].map((refresh) => refresh()) && null")
    chat.wait_for(f"{DRAFT} === '2\\n\\n3\\n\\n4'")
    wait_for(chat, "1", "One.")
    chat.press_enter()
    wait_for(chat, "1", "One.", "2\n\n3\n\n4", "Two.")
    assert sent(fake) == ["1", "2\n\n3\n\n4"]


def test_texts_of_a_lost_and_of_a_refused_message_stay_in_the_form_during_another_turn(
    chat: Page, fake: FakeTransport
) -> None:
    fake.script([Say("One.")], [Say("Other.")])
    ask(chat, "1", "1", "One.")
    hold_timers(chat)
    chat.hold_requests("*/api/chat")
    send(chat, "2")
    request = chat.wait_for_held_request()
    chat.call("Fetch.failRequest", requestId=request, errorReason="ConnectionReset")
    chat.wait_for("timers.size")
    chat.wait_for(READY)
    chat.call("Fetch.disable")
    fake.inject(Respond(400), operation="sessions.create_event")
    send(chat, "3")
    assert "Your message was not sent." in alert(chat)
    chat.wait_for("timers.size")
    chat.evaluate("[...timers.values()].map((refresh) => refresh()) && null")
    chat.wait_for(f"{DRAFT} === '2\\n\\n3'")
    wait_for(chat, "1", "One.")
    click(chat, "Regenerate")
    wait_for(chat, "1", "Other.")
    chat.wait_for(READY)
    assert chat.evaluate(DRAFT) == "2\n\n3"


def test_edit_that_never_arrives_returns_its_text_to_the_form(
    chat: Page, fake: FakeTransport
) -> None:
    """A later message has the same text."""
    fake.script([Say("One.")], [Say("Two.")])
    ask(chat, "1", "1", "One.")
    ask(chat, "2", "1", "One.", "2", "Two.")
    chat.hold_requests("*/api/chat")
    edit(chat, "2")
    request = chat.wait_for_held_request()
    chat.call("Fetch.failRequest", requestId=request, errorReason="ConnectionReset")
    chat.call("Fetch.disable")
    chat.wait_for(f"{DRAFT} === '2'")
    wait_for(chat, "1", "One.", "2", "Two.")
    assert sent(fake) == ["1", "2"]


def test_restarted_application_continues_the_reply_in_another_process(
    browser: Browser, server: FakeOverHTTP, fake: FakeTransport, program: Path, tmp_path: Path
) -> None:
    skip_without(REDIS)
    gate = Gate(timeout=60)
    fake.script([Say("Half"), gate, Say("Rest")])
    with (
        restarted_example(server.url, tmp_path, program) as (url, restart),
        in_chromium(browser, url) as page,
    ):
        send(page, "Hi")
        wait_for(page, "Hi", "Half")
        restart()
        gate.open()
        wait_for(page, "Hi", "Half|Rest")
        page.wait_for(READY)
    assert sent(fake) == ["Hi"]


@needs("nginx")
def test_half_a_reply_is_not_complete_if_the_application_is_killed_behind_nginx(
    browser: Browser, server: FakeOverHTTP, fake: FakeTransport, program: Path, tmp_path: Path
) -> None:
    """With its default settings, nginx ends the response as if it was complete."""
    skip_without(REDIS)
    fake.script([Say("Half"), Gate(timeout=60), Say("never sent")])
    with (
        redis_server(tmp_path) as redis,
        web_example_process(server.url, redis.url, program) as (url, process),
        Relay(urlsplit(url).port or 0) as relay,
        reverse_proxy("nginx", "", urlsplit(relay.url).port or 0, tmp_path) as proxy,
        in_chromium(browser, proxy) as page,
    ):
        send(page, "Hi")
        wait_for(page, "Hi", "Half")
        ag_ui = page.evaluate("`${location.origin}/ag-ui${location.search}`")
        with second_tab(page, browser, ag_ui) as tab:
            ag_ui_shown(tab, "Hi", "Half")
            process.kill()
            assert alert(page) == "The application cannot be reached."
            assert texts(page) == ["Hi", "Half"]
            assert tab.evaluate("document.getElementById('send').disabled")
            with web_example(server.url, redis.url, program) as other:
                relay.forward_to(urlsplit(other).port or 0)
                for each in (page, tab):
                    each.wait_for(f"document.body.innerText.includes({INTERRUPTED!r})")
                wait_for(page, "Hi", "Half")
                ag_ui_shown(tab, "Hi", "Half")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_in_light_and_dark(chat: Page, fake: FakeTransport, scheme: str) -> None:
    chat.resize(360, 640)
    chat.prefer(scheme)
    fake.script([Say("word" * 100 + "\n\n```\n" + "code " * 100 + "\n```")])
    send(chat, "Hi " * 100)
    chat.wait_for("document.querySelector('pre')")
    chat.wait_for(READY)
    assert chat.evaluate("document.documentElement.scrollWidth") <= 360
    box = chat.evaluate("document.querySelector('.composer').getBoundingClientRect().bottom")
    assert box <= 640
    shade = chat.evaluate(
        "Math.min(...getComputedStyle(document.querySelector('.user')).backgroundColor"
        ".match(/\\d+/g).map(Number))"
    )
    assert (shade < 128) == (scheme == "dark")


def ag_ui_shown(page: Page, *messages: str) -> None:
    """Wait until the page of AG-UI shows these messages, and is ready."""
    items = "[...document.querySelectorAll('#chat li')].map((item) => item.textContent)"
    page.wait_for(f"{items}.join('|') === {'|'.join(messages)!r}")


def ag_ui_ask(page: Page, text: str) -> None:
    page.wait_for("!document.getElementById('send').disabled")
    page.click("#text")
    page.write(text)
    page.click("#send")


def test_ag_ui_page_reloads_stops_regenerates_and_reconnects(
    chat: Page, browser: Browser, chat_url: str, fake: FakeTransport
) -> None:
    gate = Gate(timeout=60)
    fake.script(
        [Say("One.")],
        [Reason("Hm"), Say("Half"), gate, Say("Rest")],
        [Say("Other."), Gate(timeout=60)],
        [Say("Two.")],
        Fail("the key sk-123 is not valid"),
    )
    ask(chat, "1", "1", "One.")
    with Relay(urlsplit(chat_url).port or 0) as relay:
        url = f"{relay.url}/ag-ui{chat.evaluate('location.search')}"
        with second_tab(chat, browser, url) as page:
            ag_ui_shown(page, "1", "One.")
            ag_ui_ask(page, "2")
            ag_ui_shown(page, "1", "One.", "2", "Hm", "Half")
            page.open(url)
            ag_ui_shown(page, "1", "One.", "2", "Hm", "Half")
            relay.cut_before(b"Rest")
            gate.open()
            ag_ui_shown(page, "1", "One.", "2", "Hm", "Half", "Rest")

            page.wait_for("!document.getElementById('regenerate').disabled")
            page.click("#regenerate")
            ag_ui_shown(page, "1", "One.", "2", "Other.")
            page.click("#stop")
            page.wait_for("!document.getElementById('send').disabled")
            fake.assert_no_open_streams()
            assert page.evaluate("document.getElementById('problem').textContent") == ""
            page.click("#regenerate")
            ag_ui_shown(page, "1", "One.", "2", "Two.")
            page.wait_for("!document.getElementById('send').disabled")
            page.open(url)
            ag_ui_shown(page, "1", "One.", "2", "Two.")

            ag_ui_ask(page, "3")
            assert alert(page) == "The agent reported an error"
            page.open(url)
            assert alert(page) == "The agent reported an error"
    assert sent(fake) == ["1", "2", "2", "2", "3"]


def ag_ui_is_ready(page: Page) -> None:
    page.wait_for("!document.getElementById('send').disabled")


def test_ag_ui_stop_before_the_run_has_started_stops_the_agent(
    chat: Page, browser: Browser, fake: FakeTransport
) -> None:
    fake.script([Say("One.")], [Say("Half"), Gate(timeout=60), Say("never sent")])
    ask(chat, "1", "1", "One.")
    url = chat.evaluate("`${location.origin}/ag-ui${location.search}`")
    with second_tab(chat, browser, url) as page:
        ag_ui_shown(page, "1", "One.")
        page.hold_requests("*/agent")
        record_stop(page)
        ag_ui_ask(page, "2")
        held = page.wait_for_held_request()
        page.click("#stop")
        wait_for_stop(page)
        page.release_request(held)
        ag_ui_is_ready(page)
        fake.assert_no_open_streams()


def test_ag_ui_message_that_never_arrives_returns_to_the_form(
    chat: Page, browser: Browser, fake: FakeTransport
) -> None:
    fake.script([Say("One.")])
    ask(chat, "Hi", "Hi", "One.")
    url = chat.evaluate("`${location.origin}/ag-ui${location.search}`")
    with second_tab(chat, browser, url) as page:
        ag_ui_shown(page, "Hi", "One.")
        page.hold_requests("*/agent")
        ag_ui_ask(page, "Hi")  # The same text as the message before.
        request = page.wait_for_held_request()
        page.call("Fetch.failRequest", requestId=request, errorReason="ConnectionReset")
        page.call("Fetch.disable")
        ag_ui_is_ready(page)
        ag_ui_shown(page, "Hi", "One.")
        assert page.evaluate("document.getElementById('text').value") == "Hi"
    assert sent(fake) == ["Hi"]
