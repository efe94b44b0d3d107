"""The tutorial: its agent runs on a real server, and each sample prints the output on its page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.page_samples import PageSample, samples_with_output
from support.server import Flux0Server

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs/tutorial.md"
SAMPLES = [
    pytest.param(sample, id=f"{page.name}:{sample.line}")
    for page in (ROOT / "README.md", ROOT / "docs/index.md", TUTORIAL)
    for sample in samples_with_output(page)
]
BLOCK = r"(?ms)^```{}\n(.*?)^```$"


@pytest.fixture(scope="module")
def tutorial_server(
    server_python: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Flux0Server]:
    folder = tmp_path_factory.mktemp("tutorial")
    (module,) = re.findall(BLOCK.format("py"), TUTORIAL.read_text("utf-8"))
    (folder / "weather_agent.py").write_text(module, encoding="utf-8")
    with Flux0Server(server_python, folder, agent_module="weather_agent") as server:
        yield server


@pytest.mark.parametrize("sample", SAMPLES)
def test_sample_prints_the_output_on_its_page(
    sample: PageSample,
    tutorial_server: Flux0Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FLUX0_SERVER_URL", tutorial_server.url)
    names: dict[str, Any] = {"__name__": "sample"}
    exec(sample.code, names)  # noqa: S102 - readers run the samples, too
    tests = [function for name, function in names.items() if name.startswith("test_")]
    for test in tests:
        test()
    if tests:
        assert f"{len(tests)} passed" in sample.output
    else:
        assert capsys.readouterr().out.strip() == sample.output.strip()


def test_each_program_of_the_tutorial_shows_its_output() -> None:
    programs = re.findall(BLOCK.format("python"), TUTORIAL.read_text("utf-8"))
    assert len(programs) == len(list(samples_with_output(TUTORIAL))) == 5


def test_server_prints_the_lines_on_the_page(tutorial_server: Flux0Server) -> None:
    (shown,) = (
        block
        for block in re.findall(BLOCK.format("text"), TUTORIAL.read_text("utf-8"))
        if "Server is ready" in block
    )
    lines = [line for line in shown.splitlines() if line.startswith("{")]
    assert len(lines) == 3  # The warnings depend on the versions of the server's libraries.
    for line in lines:
        assert line.partition(" ...")[0] in tutorial_server.output
