"""The components of assistant-ui in Chromium, over the routes of `examples/usechat`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flux0.testing import FakeTransport, Say
from support.browser import Browser, Page
from support.fake_over_http import FakeOverHTTP
from support.programs import needs
from support.usechat_page import (
    alert,
    click,
    copied_example,
    delete_chats,
    second_tab,
    sent,
    served,
    wait_for,
)

pytestmark = [
    needs("chromium"),
    needs("npm"),
    # The first test installs the packages, and builds the page.
    pytest.mark.timeout(400),
]

PAGE = Path(__file__).parents[1] / "support/assistant_ui.jsx"
PACKAGES = {"@assistant-ui/react": "0.15.22", "@assistant-ui/react-ai-sdk": "1.4.12"}
BOTH_TURNS = ("1", "One.", "2", "Two.")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, with a page that uses assistant-ui."""
    program = copied_example(tmp_path_factory.mktemp("assistant-ui") / "usechat")
    shutil.copy(PAGE, program.with_name("src") / "main.jsx")
    package_file = program.with_name("package.json")
    package = json.loads(package_file.read_text())
    package["dependencies"].update(PACKAGES)
    package_file.write_text(json.dumps(package))
    return program


@pytest.fixture(scope="module")
def chat_url(server: FakeOverHTTP, program: Path) -> Iterator[str]:
    with served(server.url, program) as url:
        yield url


@pytest.fixture
def chat(browser: Browser, chat_url: str, program: Path, fake: FakeTransport) -> Iterator[Page]:
    """The page of a chat with two turns."""
    delete_chats(program)
    fake.script([Say("One.")], [Say("Two.")], [Say("Other.")])
    with browser.page() as page:
        page.open(chat_url)
        post(page, "/api/login", {"name": "ada"})
        chat_id = json.loads(post(page, "/api/chats", {"text": "1"}))["id"]
        # Wait until the turn has ended.
        page.evaluate(f"fetch('/api/chat/{chat_id}/stream').then((each) => each.text())")
        page.open(f"{chat_url}?id={chat_id}")
        wait_for(page, "1", "One.")
        write(page, "2")
        wait_for(page, *BOTH_TURNS)
        yield page


def post(page: Page, path: str, data: dict[str, Any]) -> str:
    headers = {"content-type": "application/json"}
    options = json.dumps({"method": "POST", "headers": headers, "body": json.dumps(data)})
    text = page.evaluate(f"fetch({path!r}, {options}).then((response) => response.text())")
    assert isinstance(text, str)
    return text


def write(page: Page, text: str) -> None:
    """Send a message with the form."""
    page.click("[name=text]")
    page.write(text)
    page.press_enter()


def reload(page: Page, parameters: str = "") -> None:
    page.open(page.evaluate("location.href") + parameters)
    page.wait_for("document.querySelector('article')")


def edit(page: Page, number: int, text: str) -> None:
    """Replace the text of a user's message, and send the message."""
    click(page, "Edit", number)
    page.wait_for("document.querySelector('[name=edited]')")
    page.click("[name=edited]")
    page.evaluate("document.querySelector('[name=edited]').select()")
    page.write(text)
    click(page, "Save")


def test_regenerate_replaces_the_reply_also_after_a_reload(chat: Page, fake: FakeTransport) -> None:
    click(chat, "Regenerate", 1)
    wait_for(chat, "1", "One.", "2", "Other.")
    reload(chat)
    wait_for(chat, "1", "One.", "2", "Other.")
    assert sent(fake) == ["1", "2", "2"]


@pytest.mark.parametrize(("number", "text"), [(0, "eins"), (1, "zwei"), (1, "2")])
def test_edit_without_a_mark_is_refused_and_sends_nothing(
    chat: Page, fake: FakeTransport, number: int, text: str
) -> None:
    edit(chat, number, text)
    assert "does not have all earlier messages" in alert(chat)
    assert sent(fake) == ["1", "2"]
    reload(chat)
    wait_for(chat, *BOTH_TURNS)


def test_edit_with_a_mark_replaces_the_later_messages(chat: Page, fake: FakeTransport) -> None:
    reload(chat, "&mark")
    edit(chat, 0, "eins")
    wait_for(chat, "eins", "Other.")
    reload(chat)
    wait_for(chat, "eins", "Other.")
    assert sent(fake) == ["1", "2", "eins"]


def test_marking_page_with_old_messages_hides_nothing(
    chat: Page, browser: Browser, fake: FakeTransport
) -> None:
    """A page that does not show the newest turn sends a new message, which is not an edit."""
    reload(chat, "&mark")
    with second_tab(chat, browser) as tab:
        wait_for(tab, *BOTH_TURNS)
        write(chat, "3")
        wait_for(chat, *BOTH_TURNS, "3", "Other.")
        write(tab, "4")
        assert "does not have all earlier messages" in alert(tab)
    assert sent(fake) == ["1", "2", "3"]
