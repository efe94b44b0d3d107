"""What users may pass and what is refused, by name, before anything is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flux0.domain import arguments
from flux0.domain.enums import EventSource, EventType
from flux0.domain.errors import InvalidArgument


def refusal(check: Callable[..., object], *given: Any, **options: Any) -> str:
    """Return why `check` refuses the value of an argument called `thing`."""
    with pytest.raises(InvalidArgument) as caught:
        check("thing", *given, **options)
    assert caught.value.argument == "thing"
    return str(caught.value)


@pytest.mark.parametrize("value", ["a", " ", "é", "\N{GRINNING FACE}", "\0", "a" * 100_000])
def test_a_text_is_taken_as_it_is(value: str) -> None:
    assert arguments.text("thing", value) == value


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "thing must not be empty"),
        (1, "thing must be a str, not int"),
        (None, "thing must be a str, not NoneType"),
        (b"a", "thing must be a str, not bytes"),
        (["a"], "thing must be a str, not list"),
        ("\ud800", "thing has lone surrogates, which UTF-8 cannot carry"),
        ("\udc80 from a file name", "thing has lone surrogates, which UTF-8 cannot carry"),
    ],
)
@pytest.mark.parametrize("check", [arguments.text, arguments.identifier])
def test_what_is_no_text_is_refused(
    check: Callable[..., object], value: object, problem: str
) -> None:
    assert refusal(check, value) == problem


def test_a_text_may_have_a_longest_length() -> None:
    assert arguments.text("thing", "a" * 5, longest=5) == "a" * 5
    assert refusal(arguments.text, "a" * 6, longest=5) == (
        "thing must have at most 5 characters, not 6"
    )


def test_an_optional_text_may_be_none_or_empty() -> None:
    assert arguments.optional_text("thing", None) is None
    assert arguments.optional_text("thing", "") == ""
    assert arguments.optional_text("thing", "abc", longest=3) == "abc"
    assert "at most 3" in refusal(arguments.optional_text, "abcd", longest=3)
    assert "must be a str" in refusal(arguments.optional_text, 0)


@pytest.mark.parametrize("value", ["zv3h4j5Fjv", "a-b_c~d.e", "a;b=c", "a b+c", "é"])
def test_an_id_is_taken_as_it_is(value: str) -> None:
    assert arguments.identifier("thing", value) == value


@pytest.mark.parametrize(
    "value",
    [
        *(".", "..", "...", "../agents", "a/b", "a?b", "a#b", "a\\b", "%2F", "%2e%2e", "a%b"),
        *("a\r\nb", "a\0", "\x7f", "a\u2028b"),
    ],
)
def test_an_id_cannot_lead_to_another_route(value: str) -> None:
    assert refusal(arguments.identifier, value).startswith(f"thing is not an id: {value!r}")


@pytest.mark.parametrize(
    ("value", "name"),
    [(EventSource.USER, "user"), ("ai_agent", "ai_agent"), ("satellite", "satellite")],
)
def test_a_name_is_a_member_of_an_enum_or_another(value: object, name: str) -> None:
    chosen = arguments.name("thing", value)

    assert chosen == name
    assert type(chosen) is str


@pytest.mark.parametrize("value", ["", None, 1, ["user"], "\ud800"])
def test_what_is_no_name_is_refused(value: object) -> None:
    assert refusal(arguments.name, value)


@pytest.mark.parametrize(
    "values",
    [
        ["message", EventType.TOOL],
        (EventType.MESSAGE, EventType.TOOL),
        {"message": 1, "tool": 2},
        ["message", "message", "tool"],
    ],
)
def test_names_are_without_repetition(values: object) -> None:
    assert arguments.names("thing", values) == ("message", "tool")


def test_names_may_come_from_an_iterator() -> None:
    values = iter(["message", "tool", EventType.MESSAGE])
    assert arguments.names("thing", values) == ("message", "tool")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ("message", "must be a list of names, not 'message'"),
        (EventType.MESSAGE, "must be a list of names"),
        (1, "must be a list of names, not 1"),
        (None, "must be a list of names, not None"),
        ([], "must not be empty; leave it out for no filter"),
        (iter(()), "must not be empty"),
        ([1], "must be a str, not int"),
        (b"ab", "must be a str, not int"),
        (["message", ""], "must not be empty"),
        (["message", "\ud800"], "has lone surrogates"),
    ],
)
def test_what_is_no_list_of_names_are_refused(values: object, problem: str) -> None:
    assert refusal(arguments.names, values).startswith(f"thing {problem}")


@pytest.mark.parametrize("value", [0, 1, 2**63 - 1])
def test_an_offset_counts_from_0(value: int) -> None:
    assert arguments.offset("thing", value) == value


@pytest.mark.parametrize("value", [-1, -(10**400), 2**63, 10**400, True, 1.0, "1", None])
def test_an_offset_that_is_none_is_refused(value: object) -> None:
    assert refusal(arguments.offset, value).startswith("thing must ")


def test_a_flag_is_true_or_false() -> None:
    assert arguments.flag("thing", True) is True  # noqa: FBT003 - the value itself
    assert arguments.flag("thing", False) is False  # noqa: FBT003 - the value itself
    for value in (1, 0, None, "true"):
        assert refusal(arguments.flag, value) == (f"thing must be True or False, not {value!r}")
