"""Runs the documentation's samples."""

from __future__ import annotations

import re
import sys
from collections.abc import Generator
from contextlib import closing, contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock
from unittest.mock import Mock

from fastapi import FastAPI
from sybil import Document, Example
from sybil.parsers.markdown import PythonCodeBlockParser

from flux0 import BackgroundTurns, Flux0, MemoryTurnStore
from flux0.testing import FakeTransport
from support.back_ends import serve

ROOT = Path(__file__).parents[2]
USECHAT = ROOT / "examples/usechat"
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
    fake: FakeTransport, turns: TurnsOfTwoProcesses | None = None, user: str | None = _USER
) -> Generator[tuple[str, str], None, None]:
    """Serve `examples/usechat` without its page; yield the URL and the id of the user's new chat.

    All requests have the same user. If it is None, no user is logged in.
    """
    with TemporaryDirectory() as folder, fake.installed():
        app, chat = usechat(fake, f"{folder}/chats.db", turns)
        if user is not None:
            app.dependency_overrides[sys.modules["chats"].current_user] = lambda: user
        with serve(app) as url:
            yield url, chat


def usechat(
    fake: FakeTransport, database: str, turns: TurnsOfTwoProcesses | None = None
) -> tuple[FastAPI, str]:
    """Load the application of `examples/usechat`. Return it and the id of a new chat of `ada`."""
    spec = spec_from_file_location("usechat_main", USECHAT / "main.py")
    assert spec is not None
    assert spec.loader is not None
    main: Any = module_from_spec(spec)
    with mock.patch.object(sys, "path", [str(USECHAT), *sys.path]):
        spec.loader.exec_module(main)
    main.has_server, main.database = True, database
    if turns is not None:
        main.BackgroundTurns = Mock(return_value=turns)
    with Flux0(transport=fake) as flux0, closing(main.open_database(database)) as db:
        chat = flux0.conversation(agent=fake.agent_id, user=_USER).session_id
        db.execute("INSERT INTO chats VALUES (?, ?, '', 0)", [chat, _USER])
    app: FastAPI = main.app
    return app, chat
