"""The samples of batches run a limited number of turns at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sybil import Document, Example
from sybil.parsers.markdown import PythonCodeBlockParser

from flux0.testing import Fail, FakeTransport, UserMessage
from support.fake_over_http import FakeOverHTTP

PAGE = Path(__file__).parents[2] / "docs/how-to/notebooks.md"
SAMPLES = list(Document.parse(str(PAGE), PythonCodeBlockParser()).examples())
AT_ONCE, PROMPTS = 8, 24


@pytest.mark.parametrize("sample", SAMPLES, ids=["sync", "async"])
def test_batch_runs_eight_turns_at_once_and_keeps_the_order(
    sample: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(AT_ONCE)
    lock = threading.Lock()
    running: list[str] = []
    most: list[int] = []

    def agent(message: UserMessage) -> Iterator[Fail | str]:
        with lock:
            running.append(message.content)
            most.append(len(running))
        together.wait(20)  # Eight turns must run at the same time.
        with lock:
            running.remove(message.content)
        yield Fail("no model") if message.content == "What is 3 times 3?" else message.content

    with FakeOverHTTP(FakeTransport(agent)) as server:
        monkeypatch.setenv("FLUX0_SERVER_URL", server.url)
        sample.namespace.clear()
        sample.namespace["__name__"] = "sample"
        sample.evaluate()

    assert max(most) == AT_ONCE
    answers = sample.namespace["answers"]
    assert len(answers) == PROMPTS
    assert answers[3].startswith("failed: ")
    assert "no model" in answers[3]
    assert answers[4:] == [f"What is {number} times {number}?" for number in range(4, PROMPTS)]
