"""Runs the documentation's samples."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.responses import HTMLResponse
from sybil import Document, Example
from sybil.parsers.markdown import PythonCodeBlockParser

from flux0 import BackgroundTurns, Flux0, MemoryTurnStore
from flux0.testing import FakeTransport
from support.back_ends import serve

ROOT = Path(__file__).parents[2]
CHAT_COMPONENTS = "docs/how-to/chat-components.md"
WRITE_A_RELAY_FORMAT = "docs/how-to/write-a-relay-format.md"
_USER = "ada"


def load(page: str, line: str) -> dict[str, Any]:
    """Run the sample of a page that contains this line; return its names."""

    def is_wanted(example: Example) -> bool:
        return f"{line}\n" in str(example.parsed)

    document = Document.parse(str(ROOT / page), PythonCodeBlockParser())
    (example,) = filter(is_wanted, document.examples())
    example.namespace["__name__"] = "sample"
    example.evaluate()
    return example.namespace


def code_of(page: str, language: str) -> list[str]:
    """Return the samples of a page in a language."""
    text = (ROOT / page).read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


class TurnsOfTwoProcesses:
    """The `BackgroundTurns` of a process until it must exit, and then of another process."""

    def __init__(self) -> None:
        store = MemoryTurnStore()
        self._used, self._next = BackgroundTurns(store), BackgroundTurns(store)

    def restart(self) -> None:
        """End the relays of the first process."""
        ending, self._used = self._used, self._next
        ending.end_relays()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._used, name)


@contextmanager
def chat_back_end(
    fake: FakeTransport, line: str, page: str = "", turns: TurnsOfTwoProcesses | None = None
) -> Generator[str, None, None]:
    """Serve the sample of `chat-components.md` that contains this line, and a page; yield the URL.

    All requests have the same user, who owns the sessions of `new_chat`.
    """
    with fake.installed():
        names = load(CHAT_COMPONENTS, line)
        if turns is not None:
            names["BackgroundTurns"] = lambda: turns
        names["app"].dependency_overrides[names["current_user"]] = lambda: _USER
        names["app"].add_api_route("/", lambda: HTMLResponse(page))
        with serve(names["app"]) as url:
            yield url


def new_chat(fake: FakeTransport) -> str:
    """Create a session for the user, and return its id."""
    with Flux0(transport=fake) as flux0:
        return flux0.conversation(agent=fake.agent_id, user=_USER).session_id
