"""`examples/usechat`, as its user operates it in Chromium."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from flux0.testing import FakeTransport
from support.browser import Browser, Page
from support.web_example import web_example

FOLDER = Path(__file__).parents[2] / "examples/usechat"
READY = "document.querySelector('[role=status]')?.textContent === ''"
# The text of each message, without its buttons.
_TEXTS = """[...document.querySelectorAll('article')].map((message) => {
  const parts = [...message.children].filter((part) => part.tagName !== 'BUTTON');
  return parts.map((part) => (part.innerText || part.textContent).trim()).join('|');
})"""

# `await stopped` waits for the response to the first DELETE request.
_RECORD_STOP = """window.stopped = new Promise((resolve) => {
  const { fetch } = window;
  window.fetch = async (url, options) => {
    const response = await fetch(url, options);
    if (options?.method === "DELETE") resolve(response.status);
    return response;
  };
}); null"""
# Keep the timers that connect again in a map, and never run them. `pauses` has their milliseconds.
HOLD_TIMERS = """(({ setTimeout, clearTimeout }) => {
  [window.timers, window.pauses] = [new Map(), []];
  window.setTimeout = (run, milliseconds, ...rest) => {
    const isHeld = [1000, 2000, 4000, 8000].includes(milliseconds);
    const id = setTimeout(isHeld ? () => {} : run, milliseconds, ...rest);
    if (!isHeld) return id;
    timers.set(id, run);
    pauses.push(milliseconds);
    return id;
  };
  window.clearTimeout = (id) => { timers.delete(id); clearTimeout(id); };
})(window)"""


@contextmanager
def in_chromium(browser: Browser, url: str, user: str = "ada") -> Generator[Page, None, None]:
    """Yield a page of a user who is logged in."""
    with browser.page() as page:
        page.open(url)
        page.wait_for("document.querySelector('[name=name]')")
        page.click("[name=name]")
        page.write(user)
        page.press_enter()
        page.wait_for("document.querySelector('nav')")
        yield page


@contextmanager
def second_tab(page: Page, browser: Browser, url: str | None = None) -> Generator[Page, None, None]:
    """Open the chat of a page in another tab of the same user."""
    with browser.page() as tab:
        tab.call("Network.setCookies", cookies=page.call("Network.getCookies")["cookies"])
        tab.open(url or page.evaluate("location.href"))
        yield tab


def copied_example(folder: Path) -> Path:
    """Copy the example without its packages and its built page. Return the path of its program."""
    ignored = shutil.ignore_patterns("node_modules", "dist", "__pycache__", "*.db")
    shutil.copytree(FOLDER, folder, ignore=ignored)
    return folder / "main.py"


def delete_chats(program: Path) -> None:
    """Delete the chats of an example, because the ids of the fake's sessions begin again."""
    with closing(sqlite3.connect(program.with_name("chats.db"), isolation_level=None)) as database:
        database.executescript("DELETE FROM chats; DELETE FROM replaced;")


@contextmanager
def served(
    server_url: str | None, program: Path, redis_url: str | None = None
) -> Generator[str, None, None]:
    """Run the command of the example, and yield the application's URL."""
    database = str(program.with_name("chats.db"))
    environment = {"CHATS_DB": database, "npm_config_prefer_offline": "true"}
    with (
        mock.patch.dict(os.environ, environment),
        web_example(server_url, redis_url, program) as url,
    ):
        yield url


def send(page: Page, text: str) -> None:
    page.wait_for("!document.querySelector('.composer button')?.disabled")
    page.click(".composer textarea")
    page.write(text)
    page.press_enter()


def texts(page: Page) -> list[str]:
    shown: list[str] = page.evaluate(_TEXTS)
    return shown


def wait_for(page: Page, *messages: str) -> None:
    expected = json.dumps(messages, separators=(",", ":"), ensure_ascii=False)
    page.wait_for(f"JSON.stringify({_TEXTS}) === {json.dumps(expected)}")


def ask(page: Page, text: str, *messages: str) -> None:
    """Send a message, and wait until the page shows all of these messages, and is ready."""
    send(page, text)
    wait_for(page, *messages)
    page.wait_for(READY)


def click(page: Page, label: str, number: int = 0) -> None:
    """Click the button with this text or name."""
    buttons = (
        "[...document.querySelectorAll('button')].filter((each) => "
        f"[each.textContent, each.ariaLabel].includes({json.dumps(label)}) && !each.disabled)"
    )
    page.wait_for(f"{buttons}[{number}]")
    page.evaluate(f"{buttons}[{number}].click()")


def record_stop(page: Page) -> None:
    page.evaluate(_RECORD_STOP)


def wait_for_stop(page: Page) -> None:
    """Wait until the application has responded to the first DELETE request."""
    assert page.evaluate("stopped") == 204


def hold_timers(page: Page) -> None:
    """Never let the page connect again by itself."""
    page.evaluate(HOLD_TIMERS)


def timers(page: Page) -> int:
    """Return how many times the page will connect again."""
    number: int = page.evaluate("timers.size")
    return number


def alert(page: Page) -> str:
    """Wait for an alert, and return its text, with the text of its button."""
    alerts = "[...document.querySelectorAll('[role=alert]')]"
    text = page.wait_for(f"{alerts}.map((each) => each.textContent.trim()).join('')")
    assert isinstance(text, str)
    return text


def titles(page: Page) -> list[str]:
    shown: list[str] = page.evaluate(
        "[...document.querySelectorAll('nav .title')].map((each) => each.textContent)"
    )
    return shown


def sent(fake: FakeTransport) -> list[Any]:
    """Return the content of each message that the server has received."""
    return [
        call.body["content"] for call in fake.calls if call.operation == "sessions.create_event"
    ]
