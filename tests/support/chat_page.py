"""The page of `examples/web`, as its user operates it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from urllib.parse import urlsplit

from flux0.testing import SendChunk
from support.browser import Browser, Page

IS_IDLE = "!document.getElementById('send').disabled"
ERROR = "document.getElementById('error').textContent"


def send(page: Page, text: str) -> None:
    page.click("#text")
    page.write(text)
    page.press_enter()


def ask(page: Page, text: str) -> None:
    """Send a message, and wait until the turn has ended."""
    send(page, text)
    wait_for_text(page, "user", text)
    page.wait_for(IS_IDLE)


def wait_for_text(page: Page, kind: str, text: str) -> None:
    page.wait_for(f"{_texts(f'.{kind}')}.includes({text!r})")


def reload(page: Page) -> None:
    page.open(page.evaluate("location.href"))
    page.wait_for("document.querySelector('.user')")


def chat_of(page: Page) -> str:
    """Return the lines of the chat, without the speakers' names."""
    return "\n".join(page.evaluate(_texts("#chat")))


def _texts(selector: str) -> str:
    # Folded parts have no `innerText`.
    text = "(part.innerText || part.textContent).trim()"
    return f"[...document.querySelectorAll('{selector} .content')].map((part) => {text})"


def piece(text: str) -> SendChunk:
    """Return a piece of a message that is not stored."""
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
