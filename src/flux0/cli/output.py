"""Writing to standard output and standard error: text, tables, JSON, problems."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from io import TextIOWrapper
from typing import Any, cast

from rich.console import COLOR_SYSTEMS, Console, JustifyMethod
from rich.style import Style
from rich.table import Table

from flux0 import to_dict
from flux0.cli.word_wrap import WordWrap

PLAIN = Style()
DIM = Style(dim=True)
BOLD = Style(bold=True)
RED = Style(color="red", bold=True)

# As wide as nothing is that is written: whoever reads a pipe does not want lines folded.
_NO_WIDTH = 1_000_000

_VISIBLE = {
    **{code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))},
    **str.maketrans({"\n": "\n", "\t": "\t", "\r": ""}),
}


def plain(text: str) -> str:
    """Return text of the server's with control characters made visible: a terminal obeys them."""
    return text.translate(_VISIBLE)


def one_line(text: str) -> str:
    """Return text with each stretch of white space made one space."""
    return " ".join(plain(text).split())


class Output:
    """Standard output as a text that grows. Only a terminal gets styles and lines that are broken.

    Attributes:
        line_is_open: whether something was written since the last line break.
    """

    def __init__(self) -> None:
        self._console = _console(stderr=False)
        obeys = not (self._console.is_dumb_terminal or self._console.legacy_windows)
        self._wrap = WordWrap() if obeys and self._console.file.isatty() else None
        self._color_system = COLOR_SYSTEMS.get(self._console.color_system or "") if obeys else None
        self.line_is_open = False

    def write(self, text: str, style: Style = PLAIN, *, indent: str = "") -> None:
        """Append text, at once; lines that have to be broken go on after `indent`."""
        text = plain(text)
        if not text:
            return
        self.line_is_open = not text.endswith("\n")
        if self._wrap is None:
            self._append(text, style)
            return
        pieces = [
            piece if isinstance(piece, str) else f"\x1b[{piece}D\x1b[K"
            for piece in self._wrap.feed(text, self._console.width, indent)
        ]
        self._append("".join(pieces), style)

    def end_line(self) -> None:
        """Begin a new line, unless at the beginning of one."""
        if self.line_is_open:
            self.write("\n")

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Write a table whose last columns give way when it is too wide for the terminal."""
        table = _table(header_style=BOLD)
        for column in columns:
            table.add_column(column, overflow="fold", no_wrap=column in {"ID", "CREATED"})
        self._print_table(table, rows)

    def grid(self, widths: Sequence[int], rows: Iterable[Sequence[str]]) -> None:
        """Write a table without a head, whose columns but the last are at least so wide.

        The first column is aligned to the right.
        """
        table = _table(show_header=False)
        for number, width in enumerate(widths):
            justify: JustifyMethod = "left" if number else "right"
            table.add_column(min_width=width, justify=justify, no_wrap=True)
        table.add_column(overflow="fold")
        self._print_table(table, rows)

    def heading(self, text: str) -> None:
        """Write a line above what belongs to it."""
        self.write(f"{one_line(text)}\n", DIM)

    def json(self, model: object, *, indent: int | None = None) -> None:
        """Write a model in the server's JSON form, on a line of its own."""
        self._append(f"{_json(model, indent)}\n", PLAIN)

    def _print_table(self, table: Table, rows: Iterable[Sequence[str]]) -> None:
        for row in rows:
            table.add_row(*map(one_line, row))
        if self._wrap is not None:
            self._console.print(table)
            return
        with self._console.capture() as capture:
            self._console.print(table)
        # Cells are filled up with white space, at the end of a line too.
        for line in capture.get().splitlines():
            self._append(f"{line.rstrip()}\n", PLAIN)

    def _append(self, text: str, style: Style) -> None:
        if self._console.no_color:
            style = style.without_color
        # By one call, and not by rich, which writes again what Ctrl-C has interrupted it in.
        self._console.file.write(style.render(text, color_system=self._color_system))
        self._console.file.flush()


def print_note(text: str) -> None:
    """Write something about the conversation, rather than of it, to standard error."""
    _console(stderr=True).print(one_line(text), style=DIM, soft_wrap=True)


def print_problem(text: str) -> None:
    """Write one line that says what went wrong to standard error."""
    console = _console(stderr=True)
    console.print("Error: ", style=RED, end="", soft_wrap=True)
    console.print(one_line(text), soft_wrap=True)


def escape_unencodable() -> None:
    """Have characters escaped that the terminal's encoding lacks, where Python would fail."""
    for stream in (sys.stdout, sys.stderr):
        cast("TextIOWrapper", stream).reconfigure(errors="backslashreplace")


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not console.file.isatty():
        console.width = _NO_WIDTH
    return console


def _table(**options: Any) -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), **options)


def _json(model: object, indent: int | None) -> str:
    data = to_dict(model)
    try:
        return json.dumps(data, indent=indent, allow_nan=False)
    except ValueError:  # The server sends NaN, which is no JSON; when it lists it, it says null.
        data = json.loads(json.dumps(data), parse_constant=lambda _: None)
        return json.dumps(data, indent=indent)
