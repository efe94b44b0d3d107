"""The tutorial: its agent runs on a real server, and its samples run one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.server import Flux0Server

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text("utf-8")
BLOCK = r"(?ms)^```{}\n(.*?)^```$"


def test_samples_of_the_tutorial_run_and_print_the_expected_output(
    server_python: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (module,) = re.findall(BLOCK.format("py"), PAGE)
    (tmp_path / "weather_agent.py").write_text(module, encoding="utf-8")

    with Flux0Server(server_python, tmp_path, agent_module="weather_agent") as server:
        monkeypatch.setenv("FLUX0_SERVER_URL", server.url)
        for sample in re.findall(BLOCK.format("python"), PAGE):
            exec(sample, {"__name__": "sample"})  # noqa: S102 - readers run the samples, too

    printed = capsys.readouterr().out
    assert printed.count("It is sunny in SF.") == 3
    assert "8 messages and tool results" in printed
    assert "weather {'city': 'SF'} gave sunny" in printed
    assert "404 Agent with ID nobodyhere not found" in printed
