"""The page on the architecture tells how the code is: its sizes, and what it uses of others."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"
PAGE = (ROOT / "docs/architecture.md").read_text("utf-8")
STOPS = re.findall(r"^\| (`[^|]+) \| (\d+) \|", PAGE, re.MULTILINE)
# Documented, in spite of their underscores.
DOCUMENTED = {"_exit", "_replace"}


def paths(stop: str) -> list[Path]:
    """Return the files of a stop such as "`domain/a.py`, `b.py`"."""
    found: list[Path] = []
    folder = SRC / "flux0"
    for name in re.findall(r"`([^`]+)`", stop):
        path = folder / name
        found += path.rglob("*.py") if path.is_dir() else [path]
        if not path.is_dir():
            folder = path.parent
    return found


def lines(files: list[Path]) -> int:
    return sum(len(file.read_text("utf-8").splitlines()) for file in files)


def about(number: int) -> object:
    return pytest.approx(number, rel=0.1)


def test_there_are_stops() -> None:
    assert len(STOPS) == 7


@pytest.mark.parametrize(("stop", "number"), STOPS)
def test_a_stop_has_about_as_many_lines_as_the_page_says(stop: str, number: str) -> None:
    assert int(number) == about(lines(paths(stop)))


def test_the_parser_has_about_as_many_lines_as_the_page_says() -> None:
    (number,) = re.findall(r"`adapters/sse.py` \((\d+) lines\)", PAGE)

    assert int(number) == about(lines([SRC / "flux0/adapters/sse.py"]))


def is_private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__")


def private_names(tree: ast.AST) -> Iterator[str]:
    """Yield each private name that is taken from an object, with "self." before one of `self`."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name) if is_private(name):
                yield f"self.{name}"
            case (
                ast.Attribute(attr=name)
                | ast.Subscript(
                    value=ast.Call(func=ast.Name(id="vars")) | ast.Attribute(attr="__dict__"),
                    slice=ast.Constant(value=name),
                )
                | ast.Call(
                    func=ast.Name(id="getattr" | "setattr" | "hasattr" | "delattr"),
                    args=[_, ast.Constant(value=name), *_],
                )
                | ast.ImportFrom(names=[ast.alias(name=name), *_])
            ) if is_private(name):
                yield str(name)
            case _:
                pass


def defined_names(tree: ast.AST) -> Iterator[str]:
    """Yield the names that a module gives to objects and classes of its own."""
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


def private_uses() -> set[tuple[str, str]]:
    """Return the file and the name of each private use of another library."""
    trees = {path: ast.parse(path.read_text("utf-8")) for path in SRC.rglob("*.py")}
    ours = {f"self.{name}" for tree in trees.values() for name in defined_names(tree)}
    return {
        (path.name, name.removeprefix("self."))
        for path, tree in trees.items()
        for name in {*private_names(tree)} - {*defined_names(tree)} - ours - DOCUMENTED
    }


def test_each_private_use_of_another_library_is_in_the_table() -> None:
    table = PAGE.partition("## Private parts of other libraries")[2]
    rows = [row for row in table.splitlines() if row.startswith("|")]

    told = {
        (file, name)
        for file, name in private_uses()
        if any(f"/{file}`" in row and f"`{name}`" in row for row in rows)
    }

    assert private_uses()
    assert private_uses() - told == set()


def test_each_private_name_in_the_table_is_still_used() -> None:
    table = PAGE.partition("## Private parts of other libraries")[2]

    assert set(re.findall(r"`(_[a-z_]+)`", table)) == {name for _, name in private_uses()}
