"""Lists of strings: the strings and their length are the same as in a `list`."""

from __future__ import annotations

import pytest

from flux0.domain.messages.text_list import TextList

# The strings are stored in blocks of 1,024. Some of them contain the separator of a block.
TEXTS = [f"{number}" if number % 500 else f"\0{number}\0" for number in range(1, 3000)]


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025, 2048, 2500])
def test_strings_are_unchanged(size: int) -> None:
    texts = TextList(TEXTS[:size])
    assert len(texts) == size
    assert texts.texts() == TEXTS[:size]
    assert texts.text() == "".join(TEXTS[:size])


@pytest.mark.parametrize("interval", [1, 100, 1024, 1500])
def test_text_may_be_read_at_any_time(interval: int) -> None:
    texts = TextList()
    for number, text in enumerate(TEXTS, 1):
        texts.append(text)
        if number % interval == 0:
            assert texts.text() == "".join(TEXTS[:number])
            assert texts.text() == "".join(TEXTS[:number])
    assert texts.texts() == TEXTS


def test_strings_without_text_are_kept() -> None:
    texts = TextList(["", "a", ""] * 1000)
    assert texts.texts() == ["", "a", ""] * 1000
    assert texts.text() == "a" * 1000
