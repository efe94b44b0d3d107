"""Every Python sample of the README and of the documentation runs, over real sockets.

The samples talk to a server at `FLUX0_SERVER_URL`. Here that is the in-memory server with its demo
agent, served on a port.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from sybil import Document, Example
from sybil.parsers.markdown import PythonCodeBlockParser

from flux0.cli.demo_agent import demo_transport
from support.fake_over_http import FakeOverHTTP

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def server_url() -> Generator[str, None, None]:
    """Serve the in-memory server while this module runs."""
    with FakeOverHTTP(demo_transport()) as server:
        yield server.url


def samples() -> list[Any]:
    """Return every sample, named by its page and line."""
    documents = [Document.parse(str(page), PythonCodeBlockParser()) for page in PAGES]
    return [
        pytest.param(example, id=f"{Path(example.path).name}:{example.line}")
        for document in documents
        for example in document.examples()
    ]


@pytest.mark.filterwarnings("ignore:flux0_client is the old name")
@pytest.mark.parametrize("example", samples())
def test_a_sample_runs(example: Example, server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUX0_SERVER_URL", server_url)
    example.namespace.clear()  # Each stands alone, as a reader would copy it.
    example.namespace["__name__"] = "sample"
    example.evaluate()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_exists(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
