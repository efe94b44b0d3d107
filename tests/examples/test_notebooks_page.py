"""The chats of docs/how-to/notebooks.md, each in its own program, with a fake server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from flux0.testing import Fail, FakeTransport, Gate, Say
from support.browser import Browser, Page
from support.fake_over_http import FakeOverHTTP
from support.programs import needs

PAGE = (Path(__file__).parents[2] / "docs/how-to/notebooks.md").read_text("utf-8")
TIMEOUT = 30.0

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # The programs warn.
]


def chat(program: str) -> str:
    """Return the chat's code for a program. Skip the test if the program is missing."""
    section = PAGE.partition(f"## Chat in {program}")[2]
    code = section.partition("```py\n")[2].partition("```\n")[0]
    assert 0 < len(code.splitlines()) <= 25
    for package in re.findall(r"(?m)^(?:import|from) (\w+)", code):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    return code


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOverHTTP]:
    with FakeOverHTTP(FakeTransport([Say("It is "), Say("sunny.", pieces=3)])) as server:
        monkeypatch.setenv("FLUX0_SERVER_URL", server.url)
        yield server


@pytest.fixture
def kernel() -> Iterator[Any]:
    """A client of a new kernel for notebooks."""
    if find_spec("ipykernel") is None:
        pytest.skip("ipykernel is not installed")
    manager, client = import_module("jupyter_client.manager").start_new_kernel(env=dict(os.environ))
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def next_output(kernel: Any) -> Any:
    """Return the next Markdown or error that the kernel shows; None at the end of a cell."""
    while True:
        message = kernel.get_iopub_msg(TIMEOUT)
        content = message["content"]
        if message["msg_type"] == "status" and content["execution_state"] == "idle":
            return None
        if "data" in content:
            return content["data"]["text/markdown"]
        if "ename" in content:
            return content["ename"]


def test_notebook_shows_the_reply_and_interrupting_it_cancels_the_agent(
    server: FakeOverHTTP, kernel: Any
) -> None:
    kernel.execute(chat("a notebook"))
    shown: list[str] = []
    while (output := next_output(kernel)) is not None:
        shown.append(output)
    assert shown == ["", "It is ", "It is \nsu", "It is \nsunn", "It is \nsunny."]

    server.fake.script(["Once", Gate()])
    kernel.execute("ask('Tell me a story')")
    assert [next_output(kernel), next_output(kernel)] == ["", "Once"]
    kernel.parent.interrupt_kernel()
    assert next_output(kernel) == "KeyboardInterrupt"
    assert server.no_open_streams.wait(TIMEOUT)


def test_streamlit_shows_the_history_the_reply_and_errors(server: FakeOverHTTP) -> None:
    code = chat("Streamlit")
    import_module("streamlit").cache_resource.clear()
    app = import_module("streamlit.testing.v1").AppTest.from_string(code, default_timeout=TIMEOUT)

    def shown() -> list[tuple[str, str]]:
        return [(each.name, each.markdown[0].value) for each in app.chat_message if each.markdown]

    app.run()
    assert shown() == []
    app.chat_input[0].set_value("Weather?").run()
    assert shown() == [("user", "Weather?"), ("assistant", "It is sunny.")]
    app.run()
    assert shown() == [("user", "Weather?"), ("assistant", "It is"), ("assistant", "sunny.")]
    server.fake.script(Fail("no model"))
    app.chat_input[0].set_value("Again?").run()
    assert app.error[0].value == "The agent could not finish its reply. Please try again later."
    assert not app.exception


@needs("chromium")
def test_gradio_streams_the_reply_and_shows_errors(
    server: FakeOverHTTP, browser: Browser, tmp_path: Path
) -> None:
    (tmp_path / "chat.py").write_text(chat("Gradio"), "utf-8")
    gate = Gate()
    server.fake.script([Say("It is"), gate, Say("sunny.")], Fail("no model"))
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONUNBUFFERED": "1"}
    program = [sys.executable, "chat.py"]
    with subprocess.Popen(program, cwd=tmp_path, env=environment, stdout=subprocess.PIPE) as app:
        try:
            assert app.stdout is not None
            found = re.search(rb"http://[\d.:]+", app.stdout.readline())
            assert found is not None
            with browser.page() as page:
                page.open(found[0].decode())
                page.wait_for("document.querySelector('textarea')?.offsetWidth > 0")
                ask(page, "Weather?")
                wait_for(page, "It is")
                gate.open()
                wait_for(page, "sunny.")
                ask(page, "Again?")
                wait_for(page, "The agent could not finish its reply.")
                assert "no model" not in page.text
        finally:
            app.kill()
    operations = [call.operation for call in server.fake.calls]
    assert operations.count("sessions.create") == 1
    assert operations.count("sessions.create_event") == 2


def ask(page: Page, text: str) -> None:
    page.wait_for("document.querySelector('textarea').disabled === false")
    page.click("textarea")
    page.write(text)
    page.press_enter()


def wait_for(page: Page, text: str) -> None:
    page.wait_for(f"document.body.innerText.includes({text!r})")
