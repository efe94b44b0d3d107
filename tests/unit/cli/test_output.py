"""Word wrap of streamed text, and tables, on a simulated screen of a narrow terminal."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Generator
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, strategies as st
from rich.cells import cell_len

from flux0.cli.output import Output, print_problem

_CONTROLS_AND_CHARACTERS = re.compile(r"\x1b\[([\d;]*)([GKm])|(.)", re.DOTALL)


class Screen(io.StringIO):
    """The screen of a terminal. Like a real terminal, it breaks lines that are too long."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.lines = [""]

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for number, command, character in _CONTROLS_AND_CHARACTERS.findall(text):
            # After a move to a column, the output always erases the rest of the line.
            if command == "G":
                while cell_len(self.lines[-1]) >= int(number):
                    self.lines[-1] = self.lines[-1][:-1]
            elif character == "\n":
                self.lines.append("")
            elif cell_len(self.lines[-1] + character) > self.width:
                self.lines.append(character)
            else:
                self.lines[-1] += character
        return len(text)

    def size(self, *_: object) -> os.terminal_size:
        return os.terminal_size((self.width, 20))


@contextlib.contextmanager
def terminal(width: int) -> Generator[tuple[Screen, Output], None, None]:
    screen = Screen(width)
    with (
        contextlib.redirect_stdout(screen),
        mock.patch.dict(os.environ, {"TERM": "xterm"}),
        mock.patch("os.get_terminal_size", screen.size),
    ):
        os.environ.pop("COLUMNS", None)
        yield screen, Output()


def shown(*pieces: str, width: int = 10, mark: str = "") -> list[str]:
    with terminal(width) as (screen, output):
        for number, piece in enumerate(pieces):
            output.write(piece, mark="" if number else mark)
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
        (["see 0123456789abcdef", "gh end"], ["see ", "0123456789", "abcdefgh ", "end"]),
        (["0123456789ab", "cd efghi jk"], ["0123456789", "abcd efghi ", "jk"]),
        (["ab 日本", "語日"], ["ab ", "日本語日"]),
    ],
)
def test_lines_are_wrapped_between_words(pieces: list[str], lines: list[str]) -> None:
    assert [line.rstrip() for line in shown(*pieces)] == [line.rstrip() for line in lines]


def test_wrapped_lines_are_indented_to_the_column_after_the_mark() -> None:
    lines = shown("one two three four", mark="• ")
    assert [line.rstrip() for line in lines] == ["• one two", "  three", "  four"]
    assert shown("012345678", mark="• ") == ["• 01234567", "  8"]


def test_no_text_is_lost_when_the_terminal_becomes_narrower() -> None:
    with terminal(20) as (screen, output):
        output.write("some words and ano")
        screen.width = 8
        output.write("ther and more")
    text = "".join(screen.lines).replace(" ", "")
    assert text.endswith("anotherandmore")
    assert text.startswith("somewords")


words = st.text("abc日", min_size=1, max_size=6)
gaps = st.sampled_from([" ", "  ", "\n"])


@given(
    text=st.lists(st.tuples(words, gaps), max_size=30),
    size=st.integers(1, 9),
    width=st.integers(12, 30),
)
def test_no_word_is_broken_or_lost_however_the_text_is_split(
    text: list[tuple[str, str]], size: int, width: int
) -> None:
    joined = "".join(word + gap for word, gap in text)
    pieces = [joined[start : start + size] for start in range(0, len(joined), size)]
    lines = shown(*pieces, width=width)
    assert [word for line in lines for word in line.split()] == [word for word, _ in text]
    assert all(cell_len(line) <= width for line in lines)


def test_text_after_the_end_of_a_line_is_not_indented() -> None:
    with terminal(20) as (screen, output):
        output.write("marked", mark="• ")
        output.end_line()
        output.write("plain\ntext")
    assert screen.lines == ["• marked", "plain", "text"]


@pytest.mark.parametrize(
    ("blocks", "lines"),
    [
        ("tool: a, tool: b, status: c, status: d, tool: e", "a b  c d e"),
        ("text/1: a, text/1: b, text/2: c, reasoning/2: d, user: e", "ab  c  d  e"),
        ("tool/1: a, tool/1: b, text: c, text: d, tool: e", "ab  c  d  e"),
    ],
)
def test_blank_line_follows_text_and_the_last_tool(blocks: str, lines: str) -> None:
    """A block with a message id continues the block before it."""
    with terminal(20) as (screen, output):
        for block in blocks.split(", "):
            kind, _, text = block.partition(": ")
            output.begin_block(*kind.split("/"))
            output.write(text)
    assert screen.lines == lines.split(" ")


@pytest.mark.parametrize(
    ("width", "head"),
    [
        (30, ["ID", "NAME", "CREATED", "DESCRIPTION"]),
        (29, ["ID", "NAME", "DESCRIPTION"]),
        (20, ["ID", "DESCRIPTION"]),
        (12, ["DESCRIPTION"]),
    ],
)
def test_least_important_columns_are_left_out_on_a_narrow_terminal(
    width: int, head: list[str]
) -> None:
    columns = {"ID": 3, "NAME": 2, "CREATED": 1, "DESCRIPTION": 4}
    with terminal(width) as (screen, output):
        output.table(columns, [("a1", "Ada", "2026-01", "Knows much about the weather.")])
    assert screen.lines[0].split() == head
    assert all(cell_len(line) <= width for line in screen.lines)


def test_columns_are_aligned_below_wide_characters_and_without_spaces_at_the_end() -> None:
    with terminal(40) as (screen, output):
        output.table({"NAME": 1, "TEXT": 2}, [("日本語", "fog"), ("ab", "")])
    assert screen.lines == ["NAME    TEXT", "日本語  fog", "ab", ""]


def test_each_text_is_in_a_redirected_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "output"
    with path.open("w") as file, contextlib.redirect_stdout(file):
        output, sizes = Output(), list[int]()
        for write in (partial(output.write, "text"), output.end_line, partial(output.json, 1)):
            write()
            sizes.append(path.stat().st_size)
    assert sizes == [4, 5, 7]


def test_problem_with_line_breaks_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_problem("the server said:\n  <html>\r\n\tand \x1b[2J more")
    assert capsys.readouterr().err == "Error: the server said: <html> and \\x1b[2J more\n"
