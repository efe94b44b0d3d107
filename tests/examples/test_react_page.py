"""The React component of `examples/web`, in Chromium, with the routes of the example."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from flux0.testing import Fail, FakeTransport, Gate, Say, SendChunk
from support.browser import Browser, Page
from support.fake_over_http import FakeOverHTTP
from support.npm import npm_install
from support.programs import REDIS, needs, skip_without
from support.web_example import restarted_example

pytestmark = [
    needs("chromium"),
    needs("npm"),
]

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "@microsoft/fetch-event-source@2.0.1",
    "esbuild@0.28.2",
    "react@19.3.1",
    "react-dom@19.3.1",
)
MAIN = """
import { createRoot } from "react-dom/client";
import { Chat } from "./Chat.jsx";
createRoot(document.body).render(<Chat sessionId={window.sessionId} />);
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The component and its packages, in one script."""
    folder = tmp_path_factory.mktemp("react")
    npm_install(*PACKAGES, folder=folder)
    for name in ("Chat.jsx", "turn.js"):
        (folder / name).write_bytes((ROOT / "examples/web/static" / name).read_bytes())
    (folder / "main.jsx").write_text(MAIN, "utf-8")
    bundled = subprocess.run(
        [folder / "node_modules/.bin/esbuild", "main.jsx", "--bundle", "--jsx=automatic"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return bundled.stdout.decode()


@pytest.fixture
def react(page: Page, fake: FakeTransport, script: str) -> Page:
    """A page with the component, for a new session."""
    return mounted(page, script)


def mounted(page: Page, script: str) -> Page:
    """Replace the page of the example by the component, for a new session."""
    page.evaluate(
        "fetch('/sessions', {method: 'POST', headers: {'content-type': 'application/json'},"
        " body: JSON.stringify({text: 'Hi'})}).then((response) => response.json())"
        ".then(({session_id}) => { window.sessionId = session_id; })"
    )
    page.evaluate(f"document.body = document.createElement('body'); {script}; null")
    page.wait_for("document.querySelector('input') !== null")
    return page


def send(page: Page, text: str) -> None:
    page.click("input")
    page.write(text)
    page.press_enter()


def wait_for(page: Page, kind: str, text: str) -> None:
    page.wait_for(f"document.querySelector('.{kind}')?.textContent === {json.dumps(text)}")


def test_component_shows_the_reply_and_the_stop_button_cancels_the_agent(
    react: Page, fake: FakeTransport, server: FakeOverHTTP
) -> None:
    piece = SendChunk("m1", [{"op": "add", "path": "/-", "value": "Hé"}])
    gates = Gate(), Gate()
    fake.script([piece, gates[0], piece, gates[1]])

    send(react, "Hi")
    wait_for(react, "text", "Hé")
    gates[0].open()
    wait_for(react, "text", "HéHé")
    react.click("button[type=button]")

    assert server.no_open_streams.wait(10)
    assert [call.operation for call in fake.calls].count("sessions.create_event") == 1


def test_component_continues_the_reply_in_another_process(
    browser: Browser, fake: FakeTransport, server: FakeOverHTTP, script: str, tmp_path: Path
) -> None:
    skip_without(REDIS)
    piece, gate = SendChunk("m1", [{"op": "add", "path": "/-", "value": "Hé"}]), Gate()
    fake.script([piece, gate, piece])
    with restarted_example(server.url, tmp_path) as (url, restart), browser.page() as page:
        page.open(url)
        send(mounted(page, script), "Hi")
        wait_for(page, "text", "Hé")
        restart()
        gate.open()
        wait_for(page, "text", "HéHé")
        assert page.evaluate("document.querySelector('[role=alert]').textContent") == ""
    assert [call.operation for call in fake.calls].count("sessions.create_event") == 1


def test_component_shows_errors(react: Page, fake: FakeTransport) -> None:
    fake.script([Say("Half"), Fail("no model")])
    send(react, "Hi")
    alert = "document.querySelector('[role=alert]').textContent"
    assert react.wait_for(alert).startswith("The agent could not finish its reply.")
    fake.reset()
    send(react, "Hi")
    react.wait_for(f"{alert}.startsWith('You have no such chat.')")
    assert "sessions.create_event" not in {call.operation for call in fake.calls}
