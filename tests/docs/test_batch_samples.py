"""The samples of batches run a limited number of turns at once, or continue after a failure."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sybil import Document
from sybil.parsers.markdown import PythonCodeBlockParser

from flux0 import Flux0
from flux0.testing import Fail, FakeTransport, UserMessage
from support.fake_over_http import FakeOverHTTP

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "how-to/notebooks.md"
SAMPLES = list(Document.parse(str(PAGE), PythonCodeBlockParser()).examples())
AT_ONCE, PROMPTS = 8, 24


def test_batch_runs_eight_turns_at_once_and_sends_only_prompts_without_an_answer_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (sample,) = SAMPLES
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

    def run() -> tuple[dict[str, str], int]:
        calls = len(server.fake.calls)
        sample.namespace.clear()
        sample.namespace["__name__"] = "sample"
        sample.evaluate()
        new = [call.operation for call in server.fake.calls[calls:]]
        return sample.namespace["answers"], new.count("sessions.create_event")

    monkeypatch.chdir(tmp_path)
    prompts = [f"What is {number} times {number}?" for number in range(PROMPTS)]
    with FakeOverHTTP(FakeTransport(agent)) as server:
        monkeypatch.setenv("FLUX0_SERVER_URL", server.url)
        answers, sent = run()
        assert (max(most), sent) == (AT_ONCE, PROMPTS)
        assert answers == {prompt: prompt for prompt in prompts if prompt != "What is 3 times 3?"}

        with Path("answers.jsonl").open("a", encoding="utf-8") as file:
            file.write('{"prompt": "What')  # The program was killed while it wrote a line.
        server.fake.script("nine")
        answers, sent = run()
        assert (answers["What is 3 times 3?"], len(answers), sent) == ("nine", PROMPTS, 1)
        assert run()[1] == 0


@pytest.mark.parametrize(("end", "answers"), [("\n", ["one"]), ("", ["one", "two\n\n!"])])
def test_nightly_script_continues_with_the_prompt_that_failed(
    tmp_path: Path, end: str, answers: list[str]
) -> None:
    """`end` is the end of the last prompt; `answers` are the answers before the failure."""
    (script,) = re.findall(
        r"(?ms)^```bash\n(.*?)^```$", (DOCS / "command-line.md").read_text("utf-8")
    )
    program = tmp_path / "flux0-client"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m flux0 "$@"\n', "utf-8")
    program.chmod(0o755)
    (tmp_path / "prompts.txt").write_text(f"one\ntwo\nthree{end}", "utf-8")
    with FakeOverHTTP(FakeTransport(lambda message: f"{message.content}\n\n!")) as server:
        with Flux0(server.url) as flux0:
            session_id = flux0.sessions.create(agent_id=server.fake.agent_id).id
        environment = {
            **os.environ,
            "FLUX0_SERVER_URL": server.url,
            "SESSION": session_id,
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        }

        def run() -> tuple[int, list[str]]:
            done = subprocess.run(
                ["/bin/bash", "-c", script], cwd=tmp_path, env=environment, check=False
            )
            lines = (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()
            return done.returncode, [json.loads(line)["text"] for line in lines]

        server.fake.script(*answers, [Fail("no model")])
        assert run() == (1, answers)
        for _ in range(2):
            assert run() == (0, ["one", "two\n\n!", "three\n\n!"])
