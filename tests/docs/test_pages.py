"""The pages are complete and correct: links, public names, and the test command."""

from __future__ import annotations

import re
import runpy
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_rows_of_a_table_have_the_same_columns(page: Path) -> None:
    for block in page.read_text("utf-8").split("\n\n"):
        rows = re.sub(r"`[^`\n]*`", "", block.strip()).split("\n")
        if len(rows) > 1 and set(rows[1]) == set("| -"):
            assert {row.count("|") for row in rows} == {rows[1].count("|")}, block
            assert all(row[0] == row[-1] == "|" for row in rows), block


def test_readme_links_to_existing_files() -> None:
    """The site's own check tests links to its pages."""
    readme = (ROOT / "README.md").read_text("utf-8")
    paths = re.findall(r"flux0-client-python/(?:blob/|tree/)?main/([\w./-]+)", readme)
    assert len(paths) > 5
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_all_pages_install_flux0_with_the_same_line() -> None:
    script = runpy.run_path(str(ROOT / ".ci/install_line.py"))
    for page in PAGES:
        text = page.read_text("utf-8")
        assert script["with_requirement"](text) == text, "run .ci/install_line.py"
        assert "uvx" not in text
    for page in (ROOT / "README.md", ROOT / "docs/index.md", ROOT / "docs/tutorial.md"):
        assert script["REQUIREMENT"].format(extra="[cli]") in page.read_text("utf-8")


def test_front_pages_name_the_server_version_that_the_tests_use() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    (version,) = re.findall(r"flux0-server==([^\s;]+)", project)
    for page in ("README.md", "docs/index.md"):
        assert f"`flux0-server` {version}, which is a beta" in (ROOT / page).read_text("utf-8")


def test_server_is_needed_only_after_the_demo() -> None:
    for page in ("README.md", "docs/index.md", "docs/tutorial.md"):
        text = (ROOT / page).read_text("utf-8")
        needs_server = min(
            text.index(code)
            for code in ("Flux0() as", "flux0-server\n", "Flux0()\n")
            if code in text
        )
        assert text.index("flux0-client demo") < needs_server


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


@pytest.mark.parametrize(
    "block", [r"```sh\n(.*&& .*flux0-client demo)", r"```console\n(.*\btox run)"]
)
def test_ci_runs_the_demo_command_and_the_test_command_of_the_readme(block: str) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    (command,) = re.findall(rf"^{block}\n```$", readme, re.MULTILINE)
    assert f"    {command}\n" in (ROOT / ".ci/run").read_text("utf-8")
