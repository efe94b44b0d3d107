"""The contract of transports: its form. `test_checks.py` has the bugs that it detects."""

from __future__ import annotations

import ast
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

import flux0.testing.contract
from flux0.testing.contract import (
    AsyncTransportContract,
    LimitedPoolContract,
    TransportContract,
    TurnStoreContract,
)
from flux0.testing.contract.base import check


def test_each_assertion_says_what_is_required() -> None:
    folder = Path(str(files(flux0.testing.contract)))
    trees = [ast.parse(path.read_text("utf-8")) for path in folder.glob("*.py")]
    asserts = [
        ast.unparse(node)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert) and node.msg is None
    ]
    assert asserts == []


@pytest.mark.parametrize("contract", [TransportContract, AsyncTransportContract])
@pytest.mark.parametrize(
    ("method", "arguments"), [("make_transport", ()), ("make_trusting_transport", ("ca.pem",))]
)
def test_missing_method_of_a_subclass_is_named(
    contract: type[Any], method: str, arguments: tuple[str, ...]
) -> None:
    with pytest.raises(NotImplementedError, match=rf"{contract.__name__} must define {method}\(\)"):
        getattr(contract(), method)(*arguments)


def test_missing_make_store_is_named() -> None:
    with pytest.raises(NotImplementedError, match=r"TurnStoreContract must define make_store\(\)"):
        TurnStoreContract().make_stores()


def test_missing_make_limited_transport_is_named() -> None:
    class Limited(LimitedPoolContract, TransportContract):
        pass

    with pytest.raises(NotImplementedError, match="Limited must define make_limited"):
        Limited().make_limited_transport()


@pytest.mark.parametrize("contract", [TransportContract, AsyncTransportContract])
def test_no_test_overrides_another(contract: type[Any]) -> None:
    names = Counter(
        name for part in contract.__mro__ for name in vars(part) if name.startswith("test_")
    )
    assert len(names) > 50
    assert {name: count for name, count in names.items() if count > 1} == {}


def test_message_for_a_wrong_large_body_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """In CI, pytest shows all differences of two compared values."""
    monkeypatch.setenv("CI", "true")
    with pytest.raises(AssertionError, match="the body must be b'b") as caught:
        check(b"a" * 2000, b"b" * 2000, "the body")
    assert len(str(caught.value)) < 1000
