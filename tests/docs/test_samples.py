"""Each Python sample in the README, the documentation and the skill runs without an error.

The samples send requests to the server at `FLUX0_SERVER_URL`. In these tests, it is the in-memory
server with the demo agent, on a real port.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from pathlib import Path

import pytest
from sybil import Document, Example
from sybil.parsers.markdown import PythonCodeBlockParser

from flux0.cli.demo_agent import demo_transport
from support.fake_over_http import FakeOverHTTP

ROOT = Path(__file__).parents[2]
SKILL = ROOT / "src/flux0/.agents/skills/flux0/SKILL.md"
SAMPLES = [
    pytest.param(example, id=f"{page.name}:{example.line}")
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), SKILL)
    for example in Document.parse(str(page), PythonCodeBlockParser()).examples()
]


@pytest.fixture(scope="module")
def server_url() -> Generator[str, None, None]:
    """Run the in-memory server for the tests of this module."""
    with FakeOverHTTP(demo_transport()) as server:
        yield server.url


@pytest.mark.filterwarnings("ignore:flux0_client is the old name")
@pytest.mark.parametrize("example", SAMPLES)
def test_sample_runs(
    example: Example,
    server_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    caplog.set_level(logging.NOTSET, "flux0")  # A sample may change the level: restore it later.
    monkeypatch.setenv("FLUX0_SERVER_URL", server_url)
    monkeypatch.chdir(tmp_path)  # A sample may write files.
    example.namespace.clear()  # A reader may copy a single sample.
    example.namespace["__name__"] = "sample"
    example.evaluate()
