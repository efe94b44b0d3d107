"""The AG-UI sample of docs/how-to/chat-components.md in Chromium, with `@ag-ui/client`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flux0.testing import FakeTransport, Gate, Report, SendChunk
from support.browser import Page
from support.npm import npm_install
from support.programs import needs
from support.samples import CHAT_COMPONENTS, chat_back_end, code_of, new_chat

pytestmark = [
    needs("chromium"),
    needs("npm"),
]

ROOT = Path(__file__).parents[2]
STOP = 'fetch(`/agent/${sessionId}`, { method: "DELETE" })'
# A page around the sample: it shows the messages, and sends a message when a button is clicked.
BEGINNING = """
const sessionId = new URLSearchParams(location.search).get("id");
const shown = document.querySelector("pre");
"""
SHOW = """
agent.subscribe({ onMessagesChanged: ({ messages }) => {
  shown.textContent = messages.map(({ role, content }) => `${role}: ${content}`).join("\\n");
} });
"""
END = """
document.getElementById("stop").onclick = STOP;
document.getElementById("send").onclick = async () => {
  SEND
};
"""


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with the sample and its package, in one script."""
    folder = tmp_path_factory.mktemp("ag-ui")
    npm_install("esbuild@0.28.2", "@ag-ui/client@1.0.0", folder=folder)
    samples = code_of(CHAT_COMPONENTS, "js")
    (sample,) = (code for code in samples if "new HttpAgent(" in code)
    assert f"await {STOP};" in (ROOT / CHAT_COMPONENTS).read_text("utf-8")
    imports, _, code = sample.partition("\n\n")
    create, _, run = code.partition("let isEnded")
    load, _, ask = run.partition("const content")
    end = END.replace("STOP", f"() => {STOP}").replace("SEND", f"const content{ask}")
    main = f"{imports}{BEGINNING}{create}{SHOW}{end}let isEnded{load}"
    (folder / "main.js").write_text(main, "utf-8")
    options = ("--bundle", "--format=esm", "--minify", "--outfile=page.js")
    subprocess.run(
        [folder / "node_modules/.bin/esbuild", "main.js", *options],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    script = (folder / "page.js").read_text("utf-8").replace("</script", "<\\/script")
    body = "<pre></pre><button id=send>Send</button><button id=stop>Stop</button>"
    return f'<!doctype html><meta charset="utf-8">{body}<script type="module">{script}</script>'


@pytest.fixture
def fake() -> FakeTransport:
    return FakeTransport()


@pytest.fixture
def chat_url(fake: FakeTransport, html: str) -> Iterator[str]:
    with chat_back_end(fake, '@app.post("/agent")', html) as url:
        yield f"{url}/?id={new_chat(fake)}"


def test_ag_ui_page_continues_a_turn_after_a_reload_and_stops_it(
    page: Page, fake: FakeTransport, chat_url: str
) -> None:
    gate = Gate()
    question = "user: What's the weather in SF?"

    def piece(text: str) -> SendChunk:
        return SendChunk("m1", [{"op": "add", "path": "/-", "value": text}])

    def wait_for_messages(*messages: str) -> None:
        text = json.dumps("\n".join(messages))
        page.wait_for(f"document.querySelector('pre').textContent === {text}")

    fake.script(
        [piece("Sun"), gate, piece("ny."), Report("ready", event_id="m1")], [piece("A"), Gate()]
    )
    page.open(chat_url)
    page.click("#send")
    wait_for_messages(question, "assistant: Sun")

    page.open(chat_url)

    wait_for_messages(question, "assistant: Sun")
    gate.open()
    wait_for_messages(question, "assistant: Sunny.")
    page.open(chat_url)
    wait_for_messages(question, "assistant: Sunny.")
    page.click("#send")
    wait_for_messages(question, "assistant: Sunny.", question, "assistant: A")
    page.evaluate("document.getElementById('stop').onclick()")  # Waits for the response.
    fake.assert_no_open_streams()
    page.open(chat_url)
    wait_for_messages(question, "assistant: Sunny.", question)
