"""The pages are complete and correct: links, public names, and the test command."""

from __future__ import annotations

import re
from inspect import isclass
from pathlib import Path

import pytest

import flux0
import flux0.models

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_readme_links_to_existing_files_and_headings() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    links = re.findall(r"flux0-client-python/(?:blob/)?main/([\w./-]+)(?:#([\w-]+))?", readme)
    assert len(links) > 20
    for path, anchor in links:
        text = (ROOT / path).read_text("utf-8")
        headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
        assert anchor in {"", *anchors}, f"{path} has no heading for #{anchor}"


def test_reference_contains_each_public_name() -> None:
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "docs/reference").glob("*.md"))
    shown = set(re.findall(r"^::: [\w.]+\.(\w+)$", pages, re.MULTILINE))
    on_other_pages = {"models", "__version__", *dir(flux0.models)}
    assert set(flux0.__all__) - on_other_pages <= shown


def test_errors_page_lists_each_error() -> None:
    page = (ROOT / "docs/errors.md").read_text("utf-8")
    errors = [
        each
        for each in vars(flux0.models).values()
        if isclass(each) and issubclass(each, flux0.Flux0Error)
    ]
    assert [each.__name__ for each in errors if f"`{each.__name__}`" not in page] == []


def test_ci_runs_the_test_command_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    (command,) = re.findall(r"^```console\n(.*\btox run)\n```$", readme, re.MULTILINE)
    assert f"    {command}\n" in (ROOT / ".ci/run").read_text("utf-8")
