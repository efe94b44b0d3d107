"""A mapping that does not keep its values in memory."""

from __future__ import annotations

import sys

from flux0.runtime.weak_values import WeakValues


class Value:
    pass


def test_value_is_found_while_it_is_in_memory() -> None:
    values, value = WeakValues[str, Value](), Value()
    values.set("a", value)
    assert values.get("a") is values.setdefault("a", Value) is value
    assert values.values() == (value,)
    assert values.get("b") is None

    del value

    assert values.get("a") is None
    assert values.values() == ()


def test_missing_value_is_created_once() -> None:
    values = WeakValues[str, Value]()
    created = values.setdefault("a", Value)
    assert values.setdefault("a", Value) is created


def test_keys_of_freed_values_are_removed_and_others_are_kept() -> None:
    """A client that talks on millions of sessions needs memory only for its current streams."""
    values, kept = WeakValues[int, Value](), [Value() for _ in range(10)]
    for key, value in enumerate(kept):
        values.set(key, value)
    for key in range(len(kept), 10_000):
        values.setdefault(key, Value)
    references = vars(values)["_references"]
    assert len(references) < 200
    assert [values.get(key) for key in range(len(kept))] == kept


def test_no_function_of_python_is_called_when_a_value_is_freed() -> None:
    """If a signal handler raised an exception in such a function, Python would ignore it."""
    values, value = WeakValues[str, Value](), [Value()]
    values.set("a", value[0])
    called: list[str] = []
    sys.setprofile(lambda frame, event, _: called.append(f"{event} {frame.f_code.co_name}"))
    try:
        value.clear()
    finally:
        sys.setprofile(None)
    assert not [each for each in called if each.startswith("call ")]
