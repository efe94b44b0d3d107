"""Headless Chromium, controlled over the Chrome DevTools Protocol.

The browser reads commands from a pipe and writes results and events to another pipe, so no
WebSocket is needed. Each page is a new browser context, with no cookies.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import subprocess
from base64 import b64decode
from collections.abc import Generator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from support.programs import find

if TYPE_CHECKING:
    from typing_extensions import Self

# The browser expects its pipes as the file descriptors 3 and 4.
_SCRIPT = 'commands=$1 results=$2; shift 2; exec "$@" 3<&$commands 4>&$results'
_OPTIONS = (
    "--headless",
    "--no-sandbox",  # The sandbox does not work for root.
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-pipe",
)
_TIMEOUT_SECONDS = 40.0
# A script that waits in the page: only the page can observe its own changes.
_WAIT = """new Promise((resolve, reject) => {
  const check = () => {
    const value = CONDITION;
    if (!value) return;
    observer.disconnect();
    resolve(value instanceof Node || value); // A node of React cannot be returned by value.
  };
  const observer = new MutationObserver(check);
  observer.observe(document, {
    subtree: true, childList: true, characterData: true, attributes: true,
  });
  setTimeout(() => reject(new Error(document.body.innerText)), 30000);
  check();
})"""


class Browser:
    """A context manager that runs the browser with an empty profile in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ids = count(1)
        self._unread = b""
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        program = find("chromium")
        assert program is not None, "Chromium is not installed"
        commands, results = os.pipe(), os.pipe()
        # Duplicate the descriptors to numbers from 10, so that bash does not overwrite them with 3
        # and 4.
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (commands[0], results[1])]
        for fd in (commands[0], results[1]):
            os.close(fd)
        self._commands, self._results = os.fdopen(commands[1], "wb"), results[0]
        options = (*_OPTIONS, f"--user-data-dir={self._folder}")
        with (self._folder / "log.txt").open("wb") as log:
            self._process = subprocess.Popen(
                ["/bin/bash", "-c", _SCRIPT, "bash", *map(str, theirs), program, *options],
                pass_fds=theirs,
                stdout=log,
                stderr=log,
            )
        for fd in theirs:
            os.close(fd)
        return self

    def __exit__(self, *_: object) -> None:
        self.call("Browser.close")
        self._commands.close()
        os.close(self._results)
        self._process.wait(_TIMEOUT_SECONDS)

    @contextmanager
    def page(self, *, width: int = 800, height: int = 600) -> Generator[Page, None, None]:
        """Open a page in a new browser context; close both at the end."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = self.call("Target.attachToTarget", flatten=True, **target)
        page = Page(self, attached["sessionId"])
        for domain in ("Page", "Runtime", "Network"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        yield page
        self.call("Target.disposeBrowserContext", browserContextId=context)

    def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        """Send a command of the protocol, and return its result."""
        number = next(self._ids)
        command: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session is not None:
            command["sessionId"] = session
        self._commands.write(json.dumps(command).encode() + b"\0")
        self._commands.flush()
        while (message := self._read()).get("id") != number:
            self._events.append(message)
        assert "error" not in message, (method, message)
        return message["result"]

    def wait_for_event(self, method: str, session: str) -> dict[str, Any]:
        """Remove and return the first event with this name."""
        for number, event in enumerate(self._events):
            if event["method"] == method and event["sessionId"] == session:
                return self._events.pop(number)
        while (event := self._read()).get("method") != method or event["sessionId"] != session:
            self._events.append(event)
        return event

    def events(self, method: str, session: str) -> list[dict[str, Any]]:
        """Return the parameters of the events with this name that were read so far."""
        own = (event for event in self._events if event.get("sessionId") == session)
        return [event["params"] for event in own if event["method"] == method]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._results], [], [], _TIMEOUT_SECONDS)
            piece = os.read(self._results, 1 << 20) if ready else b""
            assert piece, (self._folder / "log.txt").read_text("utf-8", "replace")
            self._unread += piece
        message, _, self._unread = self._unread.partition(b"\0")
        decoded: dict[str, Any] = json.loads(message)
        return decoded


class Page:
    """A browser page."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def call(self, method: str, **params: Any) -> Any:
        """Send a command of the protocol for this page, and return its result."""
        return self._browser.call(method, self._session, **params)

    def open(self, url: str) -> None:
        """Open a URL, and wait until it is loaded."""
        error = self.call("Page.navigate", url=url).get("errorText")
        assert error is None, error
        self._browser.wait_for_event("Page.loadEventFired", self._session)

    def resize(self, width: int, height: int) -> None:
        """Set the window's size, in CSS pixels."""
        # On a phone, scroll bars take no space.
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def prefer(self, color_scheme: str) -> None:
        """Set the color scheme that the user prefers: `light` or `dark`."""
        feature = {"name": "prefers-color-scheme", "value": color_scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression. A promise is awaited."""
        result = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, condition: str) -> Any:
        """Wait until a JavaScript expression is true, and return its value."""
        return self.evaluate(_WAIT.replace("CONDITION", condition))

    def click(self, selector: str) -> None:
        """Click the center of an element with the mouse."""
        box = self.evaluate(
            f"(({{left, top, width, height}}) => ({{x: left + width / 2, y: top + height / 2}}))"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **box)

    def follow(self, selector: str) -> None:
        """Click a link, and wait until its page is loaded."""
        self.click(selector)
        self._browser.wait_for_event("Page.loadEventFired", self._session)

    def write(self, text: str) -> None:
        """Insert text into the focused element."""
        self.call("Input.insertText", text=text)

    def press_enter(self, *, shift: bool = False) -> None:
        """Press the Enter key."""
        self._press(key="Enter", code="Enter", text="\r", modifiers=8 if shift else 0)

    def press_escape(self) -> None:
        """Press the Escape key."""
        self._press(key="Escape", code="Escape")

    def _press(self, **key: Any) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, **key)

    def grant(self, *permissions: str) -> None:
        """Grant the pages of this browser context these permissions, and no others."""
        context = self.call("Target.getTargetInfo")["targetInfo"]["browserContextId"]
        self._browser.call(
            "Browser.grantPermissions", browserContextId=context, permissions=permissions
        )

    def hold_requests(self, pattern: str) -> None:
        """Hold the requests whose URL matches a pattern, such as `*/sessions`."""
        self.call("Fetch.enable", patterns=[{"urlPattern": pattern}])

    def wait_for_held_request(self) -> str:
        """Wait until a request is held, and return its id."""
        event = self._browser.wait_for_event("Fetch.requestPaused", self._session)
        return str(event["params"]["requestId"])

    def release_request(self, id: str) -> None:
        """Send a request that is held, and hold no more requests."""
        self.call("Fetch.continueRequest", requestId=id)
        self.call("Fetch.disable")

    def end_request(self, id: str, content_type: str) -> None:
        """Respond to a request that is held, with an empty body, and hold no more requests."""
        headers = [{"name": "content-type", "value": content_type}]
        self.call(
            "Fetch.fulfillRequest", requestId=id, responseCode=200, responseHeaders=headers, body=""
        )
        self.call("Fetch.disable")

    def respond_without_content(self, id: str) -> None:
        """Respond with 204 to a request that is held."""
        self.call("Fetch.fulfillRequest", requestId=id, responseCode=204)

    def hide(self) -> None:
        """Minimize the window."""
        self._set_window("minimized")

    def unhide(self) -> None:
        """Show the window again."""
        self._set_window("normal")

    def _set_window(self, state: str) -> None:
        window = self.call("Browser.getWindowForTarget")["windowId"]
        self.call("Browser.setWindowBounds", windowId=window, bounds={"windowState": state})

    def screenshot(self, path: Path) -> None:
        """Write the whole page as a PNG file."""
        image = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(b64decode(image["data"]))

    @property
    def text(self) -> str:
        """The page's visible text."""
        return str(self.evaluate("document.body.innerText"))

    @property
    def hosts(self) -> set[str]:
        """The hosts to which the page has sent requests, without `data:` URLs."""
        requests = self._browser.events("Network.requestWillBeSent", self._session)
        return {urlsplit(str(each["request"]["url"])).netloc for each in requests} - {""}
