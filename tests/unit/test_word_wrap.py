"""Breaking text between words while it streams in, on the screen of a small terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from flux0.cli.word_wrap import WordWrap


class Screen:
    """What a terminal shows; like a real one, it breaks a line that is longer than itself."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.lines = [""]
        self._wrap = WordWrap()

    def write(self, text: str, indent: str = "") -> None:
        for piece in self._wrap.feed(text, self.width, indent):
            if isinstance(piece, int):
                self._take_back(piece)
            else:
                self._append(piece)

    def _append(self, text: str) -> None:
        for character in text:
            if character == "\n":
                self.lines.append("")
            elif cell_len(self.lines[-1] + character) > self.width:
                self.lines.append(character)
            else:
                self.lines[-1] += character

    def _take_back(self, cells: int) -> None:
        while cells:
            cells -= cell_len(self.lines[-1][-1])
            self.lines[-1] = self.lines[-1][:-1]


def shown(*pieces: str, width: int = 10, indent: str = "") -> list[str]:
    screen = Screen(width)
    for piece in pieces:
        screen.write(piece, indent)
    return screen.lines


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        (["one two three"], ["one two ", "three"]),
        (["one two th", "r", "ee"], ["one two ", "three"]),
        (["one two t", "hree", " four"], ["one two ", "three four"]),
        (["0123456789", " x"], ["0123456789", "x"]),
        (["01234567", "   x"], ["01234567  ", "x"]),
        (["one\n\ntwo"], ["one", "", "two"]),
        (["  indented"], ["  indented"]),
        (["a\tb"], ["a    b"]),
        (["one two three\n", "four"], ["one two ", "three", "four"]),
        (["see 0123456789abcdef", "gh end"], ["see 012345", "6789abcdef", "gh end"]),
        (["0123456789ab", "cd efghi jk"], ["0123456789", "abcd efghi", "jk"]),
        (["ab 日本", "語日"], ["ab ", "日本語日"]),
    ],
)
def test_lines_are_broken_between_words(pieces: list[str], lines: list[str]) -> None:
    assert shown(*pieces) == lines


def test_broken_lines_go_on_after_the_indent() -> None:
    assert shown("• one two three four", indent="  ") == ["• one two ", "  three ", "  four"]


def test_a_word_that_fits_no_indented_line_is_left_to_the_terminal() -> None:
    assert shown("• 012345678", indent="  ") == ["• 01234567", "8"]


def test_a_terminal_that_changes_its_width_loses_nothing() -> None:
    screen = Screen(20)
    screen.write("some words and ano")
    screen.width = 8
    screen.write("ther and more")
    assert "".join(screen.lines).replace(" ", "") == "somewordsandanotherandmore"


words = st.text("abc日", min_size=1, max_size=6)
gaps = st.sampled_from([" ", "  ", "\n"])


@given(
    text=st.lists(st.tuples(words, gaps), max_size=30),
    size=st.integers(1, 9),
    width=st.integers(12, 30),
)
def test_no_word_is_cut_or_lost_however_the_text_comes(
    text: list[tuple[str, str]], size: int, width: int
) -> None:
    screen = Screen(width)
    whole = "".join(word + gap for word, gap in text)
    for start in range(0, len(whole), size):
        screen.write(whole[start : start + size])
    assert [word for line in screen.lines for word in line.split()] == [word for word, _ in text]
    assert all(cell_len(line) <= screen.width for line in screen.lines)
