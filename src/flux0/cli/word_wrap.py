"""Breaking text between words while it streams in."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rich.cells import cell_len

_PIECES = re.compile(r"\n|[^\S\n]+|\S+")


class WordWrap:
    """Says how to append text to a terminal so that no word is cut at its right edge.

    Words may come in pieces. What is shown of a word that turns out not to fit is taken back, and
    shown again on the next line: nothing waits for the end of a word. A word longer than a line is
    left for the terminal to break.
    """

    def __init__(self) -> None:
        self._column = 0
        self._word = ""
        self._word_cells = 0

    def feed(self, text: str, width: int, indent: str = "") -> Iterator[str | int]:
        """Yield what to append, and numbers: of cells to take back at the end of the line.

        Args:
            text: the next text, without control characters but line breaks and tabs.
            width: how many cells a line has now.
            indent: what lines begin with that the text did not begin itself.
        """
        for piece in _PIECES.findall(text.replace("\t", "    ")):
            if piece == "\n":
                self._start_word(0)
                yield piece
            elif piece.isspace():
                # What does not fit is as good as the line break that will take its place.
                blank = piece[: max(width - self._column, 0)]
                self._start_word(self._column + cell_len(blank))
                yield blank
            else:
                yield from self._more_of_word(piece, width, indent)

    def _more_of_word(self, piece: str, width: int, indent: str) -> Iterator[str | int]:
        cells = cell_len(piece)
        shown = self._word_cells
        if self._column + cells > width and self._word_fits(cells, width, indent):
            if shown:
                yield shown
            piece = self._word + piece
            yield f"\n{indent}"
            self._start_word(len(indent))
            cells += shown
        yield piece
        self._column += cells
        self._word_cells += cells
        if self._column > width:  # The terminal breaks it.
            self._column = (self._column - 1) % width + 1
        # Of a word that is too long to be taken back, only its length matters.
        self._word = self._word + piece if self._word_cells <= width else ""

    def _word_fits(self, cells: int, width: int, indent: str) -> bool:
        """Whether the word, once it has grown by `cells`, fits on a line of its own."""
        begins_line = self._column - self._word_cells <= len(indent)
        return not begins_line and len(indent) + self._word_cells + cells <= width

    def _start_word(self, column: int) -> None:
        self._column = column
        self._word = ""
        self._word_cells = 0
