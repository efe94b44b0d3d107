"""`WeakValues`: values are freed as usual, the keys of freed values are removed later."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, BrokenBarrierError
from weakref import ref

import pytest

from flux0.runtime.weak_values import WeakValues

TOO_LONG = 20.0  # The limit of all waits, in seconds.


class Value:
    """An object that can have weak references."""


class CountedKey:
    """A key of which the tests count the instances in memory."""


def test_value_is_returned_for_its_key_only() -> None:
    values, value, other = WeakValues[str, Value](), Value(), Value()
    values.set("a", value)
    values.set("b", other)
    assert (values.get("a"), values.get("b"), values.get("c")) == (value, other, None)
    assert values.values() == (value, other)


def test_set_replaces_the_value() -> None:
    values, value, other = WeakValues[str, Value](), Value(), Value()
    values.set("a", value)
    values.set("a", other)
    assert values.get("a") is other
    assert values.values() == (other,)


def test_setdefault_creates_a_value_only_for_a_missing_key() -> None:
    values = WeakValues[str, Value]()
    value = values.setdefault("a", Value)
    assert values.setdefault("a", Value) is value
    assert values.get("a") is value
    assert values.setdefault("b", Value) is not value


def test_freed_value_is_not_returned() -> None:
    values, value = WeakValues[str, Value](), Value()
    other = values.setdefault("b", Value)
    values.set("a", value)
    reference = ref(value)
    del value
    assert reference() is None
    assert values.get("a") is None
    assert values.values() == (other,)


def test_setdefault_replaces_a_freed_value() -> None:
    values = WeakValues[str, Value]()
    values.set("a", Value())
    value = values.setdefault("a", Value)
    assert values.get("a") is value


def test_keys_of_freed_values_are_removed() -> None:
    """A client that talks on millions of sessions needs memory only for its current streams."""
    values, keys = WeakValues[CountedKey, Value](), list[ref[CountedKey]]()
    most = 0
    for _ in range(1_000):
        key = CountedKey()
        keys.append(ref(key))
        values.set(key, Value())
        del key
        most = max(most, sum(each() is not None for each in keys))
    assert most < 100


def test_values_in_use_keep_their_keys() -> None:
    values = WeakValues[int, Value]()
    kept = {number: values.setdefault(number, Value) for number in range(0, 1_000, 2)}
    for number in range(1, 10_000, 2):
        values.set(number, Value())
    assert {number: values.get(number) for number in kept} == kept
    assert set(values.values()) == set(kept.values())


def test_keys_are_removed_when_their_number_has_doubled() -> None:
    values, keys = WeakValues[CountedKey, Value](), list[ref[CountedKey]]()
    kept = [values.setdefault(CountedKey(), Value) for _ in range(500)]
    for key in (CountedKey() for _ in range(3_000)):
        keys.append(ref(key))
        values.set(key, Value())
    assert len(values.values()) == len(kept)
    # At most as many keys of freed values as keys of values in use.
    assert sum(each() is not None for each in keys) <= len(kept) + 1


def test_setdefault_in_several_threads_returns_one_value() -> None:
    values, created = WeakValues[str, Value](), list[Value]()
    # The threads start together. If several threads run `create` at the same time, the second
    # barrier lets each of them create a value.
    start, creating = Barrier(4), Barrier(2)

    def create() -> Value:
        with suppress(BrokenBarrierError):
            creating.wait(0.2)
        created.append(Value())
        return created[-1]

    def call() -> Value:
        start.wait(TOO_LONG)
        return values.setdefault("a", create)

    with ThreadPoolExecutor(4) as threads:
        results = [call.result() for call in [threads.submit(call) for _ in range(4)]]
    assert set(results) == set(created)
    assert len(created) == 1


def test_create_can_use_the_mapping() -> None:
    """A signal handler can send a message while `setdefault` of the same thread is running."""
    values, inner = WeakValues[str, Value](), list[Value]()

    def create() -> Value:
        inner.append(values.setdefault("b", Value))
        return Value()

    value = values.setdefault("a", create)
    assert (values.get("a"), values.get("b")) == (value, inner[0])


def test_setdefault_returns_the_value_that_create_has_set() -> None:
    """A signal handler can send a message on the same session."""
    values, inner = WeakValues[str, Value](), list[Value]()

    def create() -> Value:
        inner.append(values.setdefault("a", Value))
        return Value()

    assert values.setdefault("a", create) is inner[0]
    assert values.get("a") is inner[0]


@pytest.mark.parametrize("key", [0, 99])
def test_signal_handler_can_set_the_key_of_a_freed_value_at_any_moment(key: int) -> None:
    """`setdefault` of the key 99 also removes the keys of freed values, such as 0."""

    def is_interrupted(moment: int) -> bool:
        values, in_use = WeakValues[int, Value](), Value()
        for number in (*range(1, 64), key):
            values.set(number, Value())
        left, is_set = moment, False

        def handle(*_: object) -> None:
            nonlocal left, is_set
            left -= 1
            if left == -1 and values.get(key) is None:
                is_set = True
                values.set(key, in_use)

        sys.setprofile(handle)
        try:
            result = values.setdefault(99, Value)
        finally:
            sys.setprofile(None)
        if is_set:
            assert values.get(key) is in_use
            assert key != 99 or result is in_use
        return is_set

    assert all(map(is_interrupted, range(10)))


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
