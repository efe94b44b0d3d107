"""The checks of the contracts, and a way to record each check that fails."""

from __future__ import annotations
import __future__ as future_features

import ast
import inspect
import os
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from attrs import frozen

# These calls are checks, as `assert` statements are: each raises an error if it fails.
_CALLS = {
    "check",
    "fails",
    "check_expired",
    "wait_until_closed",
    "wait_for_requests",
    "poll",
}
_RECORDER = "__record_failures__"


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(each.value) if isinstance(each, ast.Constant) else "*" for each in node.values
        )
    return ast.unparse(node)


def _called(node: ast.AST | None) -> str:
    function = node.func if isinstance(node, ast.Call) else None
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _label(node: ast.stmt) -> str | None:
    """Return the text that names a check; None if the statement is not a check."""
    match node:
        case ast.Assert(msg=ast.expr() as message):
            return _text(message)
        case ast.With(items=[ast.withitem(context_expr=ast.Call() as call)]):
            kind = "raises" if ast.unparse(call.func) == "pytest.raises" else ""
        case ast.Expr(value=ast.Call() as call):
            kind = _called(call)
            if kind not in _CALLS:
                return None
        case _:
            return None
    if kind == "check":
        return _text(call.args[2])
    if kind in ("wait_until_closed", "wait_for_requests", "check_expired"):
        return kind
    shown = {"raises": 0, "fails": 1, "poll": 0}
    # `ast.unparse` of Python 3.10 puts a space after `lambda`.
    argument = ast.unparse(call.args[shown[kind]]).replace("lambda :", "lambda:") if kind else ""
    return f"{kind} {argument}" if kind else None


class _Instrumenter(ast.NodeTransformer):
    """Puts each check of a function into a `with` block that records its failure."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self._counts: Counter[str] = Counter()

    def visit(self, node: ast.AST) -> Any:
        label = _label(node) if isinstance(node, ast.stmt) else None
        number = 0
        if label is not None:
            self._counts[label] += 1
            number = self._counts[label]
            label = label if number == 1 else f"{label} ({number})"
            self.labels.append(label)
        changed: Any = self.generic_visit(node)
        if label is None:
            return changed
        call = ast.Call(ast.Name(_RECORDER, ast.Load()), [ast.Constant(label)], [])
        block = ast.With([ast.withitem(call)], [changed])
        return ast.fix_missing_locations(ast.copy_location(block, node))


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for each in node.body:
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{node.name}.{each.name}", each


@frozen
class Checks:
    """The checks of one function of a contract.

    Attributes:
        labels: the text of each check.
        code: the function's code, in which each check records its failure.
    """

    labels: tuple[str, ...]
    code: CodeType


def _instrumented(function: ast.FunctionDef | ast.AsyncFunctionDef, path: str) -> Checks:
    instrumenter = _Instrumenter()
    changed: ast.FunctionDef = instrumenter.visit(function)
    changed.decorator_list, changed.args.defaults = [], []  # They do not change the code object.
    changed.args.kw_defaults = [None] * len(changed.args.kwonlyargs)
    names: dict[str, Any] = {}
    flags = future_features.annotations.compiler_flag
    tree = ast.Module([changed], [])
    exec(compile(tree, path, "exec", flags, dont_inherit=True), names)  # noqa: S102 - the contract's own code
    return Checks((*instrumenter.labels,), names[function.name].__code__)


@cache
def checks(module: str) -> dict[str, Checks]:
    """Return the checks of each function of a contract's module, by the function's name."""
    source = Path(inspect.getfile(import_module(module)))
    tree = ast.parse(source.read_text("utf-8"))
    found = {name: _instrumented(node, str(source)) for name, node in _functions(tree)}
    return {name: each for name, each in found.items() if each.labels}


def names_of_checks(module: str) -> set[str]:
    """Return the names of all checks in a module of the contracts, such as "TEST: LABEL"."""
    found = checks(f"flux0.testing.contract.{module}")
    return {
        f"{name.rpartition('test_')[2]}: {label}"
        for name, each in found.items()
        for label in each.labels
    }


class Failures:
    """The labels of the checks that failed, in this process and in forked children.

    Attributes:
        labels: The labels of the checks that failed.
        ended: Whether the function ended without an error outside its checks.
    """

    def __init__(self) -> None:
        self.labels: set[str] = set()
        self.ended = False
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)

    @contextmanager
    def record(self, label: str) -> Generator[None, None, None]:
        try:
            yield
        except (Exception, pytest.fail.Exception):  # noqa: BLE001 - any failure is recorded
            if label not in self.labels:
                self.labels.add(label)
                os.write(self._write_end, f"{label}\n".encode())

    def close(self) -> None:
        os.close(self._write_end)
        with open(self._read_end, encoding="utf-8") as labels:
            self.labels.update(labels.read().splitlines())


@contextmanager
def recorded(function: Any) -> Generator[Failures, None, None]:
    """Record the checks of a contract's function that fail, instead of ending the function."""
    instrumented = checks(function.__module__)[function.__qualname__]
    failures = Failures()
    with pytest.MonkeyPatch.context() as patch, closing(failures):
        patch.setitem(function.__globals__, _RECORDER, failures.record)
        patch.setattr(function, "__code__", instrumented.code)
        yield failures
        failures.ended = True


def arguments_of(test: Any) -> Iterator[dict[str, Any]]:
    """Yield the parameters of each run of a contract's test."""
    marks = [each for each in getattr(test, "pytestmark", ()) if each.name == "parametrize"]
    names = [each.args[0] for each in marks]
    for values in product(*(each.args[1] for each in marks)):
        given: dict[str, Any] = {}
        for name, value in zip(names, values, strict=True):
            given |= {name: value} if isinstance(name, str) else zip(name, value, strict=True)
        yield given


def rows_of(table: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """Return the parameters of tests: a contract's test, a check's label and a bug."""
    bugs_of: dict[tuple[str, str], tuple[Any, ...]] = {
        (test, label): bugs if isinstance(bugs, tuple) else (bugs,)
        for test, labels in table.items()
        for label, bugs in labels.items()
    }
    return [
        pytest.param(*check, bug, id=f"{'-'.join(check)}-{number}")
        for check, bugs in bugs_of.items()
        for number, bug in enumerate(bugs)
    ]
