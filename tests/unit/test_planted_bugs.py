"""The list of planted bugs, which `slow/planted_bugs.py` puts into the code."""

from __future__ import annotations

from slow.planted_bugs import problems


def test_each_module_has_a_bug_and_each_bug_can_be_planted() -> None:
    assert problems() == []
