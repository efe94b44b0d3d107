"""Writes blocks of text, tables, JSON and error messages to standard output and standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from io import TextIOWrapper
from typing import cast

from rich.cells import cell_len, set_cell_size
from rich.console import COLOR_SYSTEMS, Console
from rich.style import Style
from rich.text import Text

from flux0.domain.json_text import json_text
from flux0.domain.safe_text import escaped

PLAIN = Style()
DIM = Style(dim=True)
BOLD = Style(bold=True)
RED = Style(color="red", bold=True)

_GAP = "  "  # The space between two columns of a table.
# The smallest width of a table's last column, in terminal cells. Longer text in this column is
# wrapped.
_MIN_LAST_COLUMN = 11


def visible(text: str) -> str:
    """Escape control characters in `text`, because a terminal interprets them as commands."""
    return escaped(text.replace("\r", ""), keep="\n\t\u2028\u2029")


def one_line(text: str) -> str:
    return " ".join(visible(text).split())


class Output:
    """Writes text to standard output or standard error.

    Lines are wrapped only on a terminal. `is_terminal` is False for a pipe or a file. Styles follow
    rich's rules, such as NO_COLOR and FORCE_COLOR.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        self._console = Console(stderr=stderr)
        self.is_terminal: bool = self._console.file.isatty()
        has_controls = not (self._console.is_dumb_terminal or self._console.legacy_windows)
        self._wraps = has_controls and self.is_terminal
        color_system = self._console.color_system or ""
        self._color_system = COLOR_SYSTEMS.get(color_system) if has_controls else None
        self._indent = ""  # The indentation after each line break in the current text.
        # `_line` is the text in the terminal's current line, without indentation and without a mark
        # such as "> ".
        self._line = ""
        self._line_is_open = False
        self._block = ("", "")  # The kind and the message id of the current block of output.

    def begin_block(self, kind: str, message_id: str = "") -> None:
        """Begin a block of output, such as a message or a status, on a new line.

        If the current block has the same kind and the same message id, continue this block instead.
        A block without a message id is never continued.
        """
        last, last_message = self._block
        if message_id and (kind, message_id) == (last, last_message):
            return
        self.end_line()
        if last in {"text", "reasoning"} or (last == "tool" != kind):
            self.write("\n")
        self._block = (kind, message_id)

    def end_block(self) -> None:
        self.end_line()
        self._block = ("", "")

    def write(self, text: str, style: Style = PLAIN, *, mark: str = "") -> None:
        """Append text, and flush the output.

        If there is a `mark`, such as "> ", write the mark and the text on a new line, and indent
        further lines by the mark's width. Control characters, except line breaks and tabs, are
        escaped.
        """
        if mark:
            self.end_line()
            self._indent = " " * cell_len(mark)
        text = visible(text)
        if mark or text:
            self._line_is_open = not text.endswith("\n")
            self._append(mark + self._wrap(text), style)

    def end_line(self) -> None:
        if self._line_is_open:
            self._indent = ""
            self.write("\n")

    def table(
        self, columns: Mapping[str, int], rows: Iterable[Sequence[str]], *, head: bool = True
    ) -> None:
        """Write a table. `columns` maps the name of each column to its importance.

        On a narrow terminal, the least important columns are left out, and the text in the last
        column is wrapped. A row with only one cell is written as a heading. If `head` is False, the
        column names are not written.
        """
        lines = [tuple(map(one_line, row)) for row in ([tuple(columns)] if head else []) + [*rows]]
        columns_of_text = zip(*(line for line in lines if len(line) > 1), strict=True)
        widths = [max(map(cell_len, column)) for column in columns_of_text]
        kept, importance = list(range(len(widths))), tuple(columns.values())
        while self._wraps and len(kept) > 1 and self._console.width < _min_width(widths, kept):
            kept.remove(min(kept, key=importance.__getitem__))
        for line in lines:
            if len(line) == 1:
                self.write(f"{line[0]}\n", DIM)
                continue
            *others, last = kept
            cells = (set_cell_size(line[column], widths[column]) for column in others)
            mark = "".join(cell + _GAP for cell in cells)
            style = BOLD if head and line is lines[0] else PLAIN
            self.write(line[last], style, mark=mark if line[last] else mark.rstrip())
            self.end_line()

    def json(self, data: object, *, indent: int | None = None) -> None:
        self._append(f"{json_text(data, indent=indent)}\n", PLAIN)

    def _wrap(self, text: str) -> str:
        """Return `text` with line breaks between words, in the form to append to the current line.

        The current line's last word may continue in `text`. If the whole word does not fit into
        this line, the result contains an escape sequence that erases the word's first part, and
        then the whole word on the next line.
        """
        if not self._wraps:
            return text.replace("\n", f"\n{self._indent}")
        shown, column = self._line, len(self._indent)
        room = max(self._console.width - column, 1)
        text = shown + text.replace("\t", "    ")
        lines = [line.plain for line in Text(text).wrap(self._console, room, overflow="fold")]
        # `Text.wrap` can remove spaces at the end of `text`. Keep these spaces, because the next
        # call can append a word.
        blank = text[len(text.rstrip()) :].rpartition("\n")[2]
        self._line = lines[-1].rstrip() + blank
        if len(lines[0].rstrip()) < len(shown.rstrip()):
            lines[0], shown = f"\x1b[{column + cell_len(lines[0]) + 1}G\x1b[K", ""
        lines[0] = lines[0][len(shown) :]
        return f"\n{self._indent}".join(lines)

    def _append(self, text: str, style: Style) -> None:
        if self._console.no_color:
            style = style.without_color
        # Do not print with rich, because rich writes its last output again after a
        # KeyboardInterrupt.
        self._console.file.write(style.render(text, color_system=self._color_system))
        self._console.file.flush()


def print_note(text: str) -> None:
    Output(stderr=True).write(f"{one_line(text)}\n", DIM)


def print_problem(text: str) -> None:
    output = Output(stderr=True)
    output.write("Error: ", RED)
    output.write(f"{one_line(text)}\n")


def escape_unencodable() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # If the shell has closed a stream, Python sets the stream to None.
            cast("TextIOWrapper", stream).reconfigure(errors="backslashreplace")


def output_streams_are_one_file() -> bool:
    """Return whether standard output and standard error are the same pipe or file (`2>&1`)."""
    try:
        output, error = (os.fstat(stream.fileno()) for stream in (sys.stdout, sys.stderr))
    # Python raises AttributeError or OSError if a stream is closed or is an object without a file.
    except (AttributeError, OSError):
        return False
    # On Windows, the inode number of each pipe is 0, so two pipes cannot be distinguished.
    return output.st_ino != 0 and os.path.samestat(output, error)


def _min_width(widths: Sequence[int], kept: Sequence[int]) -> int:
    *others, last = (widths[column] for column in kept)
    return sum(others) + len(_GAP) * len(others) + min(last, _MIN_LAST_COLUMN)
