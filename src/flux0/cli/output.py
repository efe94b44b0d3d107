"""Writing to standard output and standard error: blocks of text, tables, JSON, problems."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from io import TextIOWrapper
from typing import cast

from rich.cells import cell_len, set_cell_size
from rich.console import COLOR_SYSTEMS, Console
from rich.style import Style
from rich.text import Text

PLAIN = Style()
DIM = Style(dim=True)
BOLD = Style(bold=True)
RED = Style(color="red", bold=True)

_GAP = "  "  # Between the columns of a table.
_NARROWEST = 11  # In cells: what the last column of a table needs, since its words can be wrapped.

_VISIBLE = {
    **{code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))},
    **str.maketrans({"\n": "\n", "\t": "\t", "\r": ""}),
}


def visible(text: str) -> str:
    """Return text of the server's with its control characters escaped: a terminal obeys them."""
    return text.translate(_VISIBLE)


def one_line(text: str) -> str:
    """Return visible text with each stretch of white space made one space."""
    return " ".join(visible(text).split())


class Output:
    """Standard output, or standard error, as a text that grows.

    Only a terminal gets styles, and line breaks between words that do not fit its width.
    `is_terminal` tells whether it is one, rather than a program or a file.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        self._console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
        self.is_terminal: bool = self._console.file.isatty()
        obeys = not (self._console.is_dumb_terminal or self._console.legacy_windows)
        self._wraps = obeys and self.is_terminal
        self._color_system = COLOR_SYSTEMS.get(self._console.color_system or "") if obeys else None
        self._indent = ""  # Of the lines that the text of the open line goes on in.
        self._line = ""  # What a terminal shows of the open line, without its mark or indent.
        self._line_is_open = False
        self._block = ("", "")  # The kind of what was written last, and the id of its message.

    def begin(self, kind: str, message_id: str = "") -> None:
        """Begin a block on a new line, unless the text of a message goes on."""
        last, last_message = self._block
        if message_id and (kind, message_id) == (last, last_message):
            return
        self.end_line()
        if last in {"text", "reasoning"} or (last == "tool" != kind):
            self.write("\n")
        self._block = (kind, message_id)

    def end(self) -> None:
        """End the line, and the block."""
        self.end_line()
        self._block = ("", "")

    def write(self, text: str, style: Style = PLAIN, *, mark: str = "") -> None:
        """Append text, at once; with a mark, on a line of its own that begins with the mark.

        Further lines are indented as far. Control characters but line breaks and tabs are escaped.
        """
        if mark:
            self.end_line()
            self._indent = " " * cell_len(mark)
        text = visible(text)
        if mark or text:
            self._line_is_open = not text.endswith("\n")
            self._append(mark + self._laid_out(text), style)

    def end_line(self) -> None:
        """Begin a new line, unless at the beginning of one."""
        if self._line_is_open:
            self._indent = ""
            self.write("\n")

    def table(
        self, columns: Mapping[str, int], rows: Iterable[Sequence[str]], *, head: bool = True
    ) -> None:
        """Write a table, whose columns have a name and an importance.

        On a narrow terminal the least important columns are left out, and the last one that stays
        is wrapped. A row of one cell is a heading. Without `head`, the names are not written.
        """
        lines = [tuple(map(one_line, row)) for row in ([tuple(columns)] if head else []) + [*rows]]
        widths = [
            max(map(cell_len, column))
            for column in zip(*(line for line in lines if len(line) > 1), strict=True)
        ]
        kept, importance = list(range(len(widths))), tuple(columns.values())
        while self._wraps and len(kept) > 1 and self._console.width < _least_width(widths, kept):
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
        """Write JSON on a line of its own, or on several that are indented."""
        try:
            text = json.dumps(data, indent=indent, allow_nan=False)
        except ValueError:  # NaN is no JSON. The server sends it, and says null when it lists it.
            data = json.loads(json.dumps(data), parse_constant=lambda _: None)
            text = json.dumps(data, indent=indent)
        self._append(f"{text}\n", PLAIN)

    def _laid_out(self, text: str) -> str:
        """Return what to append so that a terminal breaks lines between words.

        What is shown of a word that turns out not to fit is taken back, and shown again on the
        next line, so that nothing has to wait for the end of a word.
        """
        if not self._wraps:
            return text.replace("\n", f"\n{self._indent}")
        shown, column = self._line, len(self._indent)
        room = max(self._console.width - column, 1)
        text = shown + text.replace("\t", "    ")
        lines = [line.plain for line in Text(text).wrap(self._console, room, overflow="fold")]
        blank = text[len(text.rstrip()) :].rpartition("\n")[2]  # Some of it may not fit.
        self._line = lines[-1].rstrip() + blank
        if len(lines[0].rstrip()) < len(shown.rstrip()):
            lines[0], shown = f"\x1b[{column + cell_len(lines[0]) + 1}G\x1b[K", ""
        lines[0] = lines[0][len(shown) :]
        return f"\n{self._indent}".join(lines)

    def _append(self, text: str, style: Style) -> None:
        if self._console.no_color:
            style = style.without_color
        # By one call, and not by rich, which writes again what Ctrl-C has interrupted it in.
        self._console.file.write(style.render(text, color_system=self._color_system))
        self._console.file.flush()


def print_note(text: str) -> None:
    """Write a line about the conversation, rather than of it, to standard error."""
    Output(stderr=True).write(f"{one_line(text)}\n", DIM)


def print_problem(text: str) -> None:
    """Write one line that says what went wrong to standard error."""
    output = Output(stderr=True)
    output.write("Error: ", RED)
    output.write(f"{one_line(text)}\n")


def escape_unencodable() -> None:
    """Have characters escaped that the terminal's encoding lacks, where Python would fail."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # As it is where a shell has closed it.
            cast("TextIOWrapper", stream).reconfigure(errors="backslashreplace")


def _least_width(widths: Sequence[int], kept: Sequence[int]) -> int:
    *others, last = (widths[column] for column in kept)
    return sum(others) + len(_GAP) * len(others) + min(last, _NARROWEST)
