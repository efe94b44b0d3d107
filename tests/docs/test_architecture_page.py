"""The architecture page matches the code: lines of code, and private names of libraries."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"
PAGE = (ROOT / "docs/architecture.md").read_text("utf-8")
STOPS = [
    *re.findall(r"^\| (`[^|]+) \| (\d+) \|", PAGE, re.MULTILINE),
    *re.findall(r"(`adapters/sse.py`) \((\d+) lines\)", PAGE),
]
# Names with underscores that are public and documented.
DOCUMENTED = {"_exit", "_fields", "_replace"}


@pytest.mark.parametrize(("stop", "number"), STOPS)
def test_line_counts_on_the_page_differ_by_at_most_10_percent(stop: str, number: str) -> None:
    assert len(STOPS) == 10
    lines = 0
    folder = SRC / "flux0"
    for name in re.findall(r"`([^`]+)`", stop):  # Such as "`domain/a.py`, `b.py`".
        path = folder / name
        if not path.is_dir():
            folder = path.parent
        for file in path.rglob("*.py") if path.is_dir() else [path]:
            lines += len(file.read_text("utf-8").splitlines())
    assert int(number) == pytest.approx(lines, rel=0.1)


def items(heading: str) -> list[str]:
    """Return the list items of a section, each on one line."""
    section = PAGE.partition(f"## {heading}")[2].partition("\n## ")[0]
    found: list[str] = re.findall(r"^- (.+(?:\n  .+)*)", section, re.MULTILINE)
    return [" ".join(item.split()) for item in found]


PLACES = [each.split("**", 2)[1:] for each in items("Where to change")]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place[0])
def test_files_and_names_to_change_exist(place: tuple[str, str]) -> None:
    assert len(PLACES) > 10
    folder, files = SRC / "flux0", [*SRC.rglob("*.py")]
    words = re.findall(r"`([^`]+)`", place[1])
    paths = [word for word in words if re.search(r"/|\.(py|toml)$", word)]
    for path in paths:  # Such as "`domain/a.py`, `b.py`".
        places = (folder / path, SRC / "flux0" / path, ROOT / path)
        found = next((place for place in places if place.exists()), None)
        assert found is not None, path
        if found.is_file():
            folder = found.parent
            files.append(found)
    code = {name for file in files for name in re.findall(r"\w+", file.read_text("utf-8"))}
    assert {name for word in {*words} - {*paths} for name in re.findall(r"\w+", word)} <= code


def names(tree: ast.AST) -> Iterator[str]:
    """Yield each attribute, import, key and getattr() name; attributes of `self` with "self."."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name):
                yield f"self.{name}"
            case (
                ast.Attribute(attr=name)
                | ast.alias(name=name)
                | ast.Subscript(slice=ast.Constant(value=name))
                | ast.Call(args=[_, ast.Constant(value=name), *_])
            ):
                yield str(name)
            case _:
                pass


def defined_names(tree: ast.AST) -> Iterator[str]:
    """Yield the functions and attributes that a module defines."""
    for node in ast.walk(tree):
        match node:
            case (
                ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store())
                | ast.AnnAssign(target=ast.Name(id=name))
            ):
                yield name
            case _:
                pass


def test_page_lists_each_private_name_of_other_libraries() -> None:
    # A list, because several modules have the same file name.
    trees = [(path.name, ast.parse(path.read_text("utf-8"))) for path in SRC.rglob("*.py")]
    ours = {f"self.{name}" for _, tree in trees for name in defined_names(tree)}
    uses = {
        (file, name.removeprefix("self."))
        for file, tree in trees
        for name in {*names(tree)} - {*defined_names(tree)} - ours - DOCUMENTED
        if re.fullmatch(r"(self\.)?_[a-z]\w*", name)
    }
    listed = {
        (file, name)
        for item in items("Private parts of other libraries")
        for file in re.findall(r"`adapters/(?:\w+/)*(\w+\.py)`", item)
        for name in re.findall(r"`(_[a-z_]+)`", item)
    }
    assert uses == listed
