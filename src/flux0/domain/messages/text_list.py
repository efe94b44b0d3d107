"""A list of texts that grows at its end, as the documents of most messages do."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

_BLOCK = 1024
_BETWEEN = "\0"


class TextList:
    """A list of texts, in little more memory than their characters, however short they are.

    `characters` is how many characters they have together.
    """

    __slots__ = ("_blocks", "_joined", "_length", "_recent", "_seen", "characters")

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._length = 0
        self.characters: int = 0
        # Blocks of older texts: each is one str with marks between the texts, or a list of them if
        # a text has the mark in it.
        self._blocks: list[str | list[str]] = []
        self._recent: list[str] = []
        # What `text` returned last, if it was ever called, and how many recent texts that has.
        self._joined: str | None = None
        self._seen = 0
        for text in texts:
            self.append(text)

    def __len__(self) -> int:
        return self._length

    def append(self, text: str) -> None:
        """Add a text at the end."""
        self._length += 1
        self.characters += len(text)
        self._recent.append(text)
        if len(self._recent) == _BLOCK:
            if self._joined is not None:
                self.text()
            block = _BETWEEN.join(self._recent)
            is_clear = block.count(_BETWEEN) == _BLOCK - 1
            self._blocks.append(block if is_clear else self._recent)
            self._recent, self._seen = [], 0

    def texts(self) -> list[str]:
        """Return the texts as a list."""
        blocks = (
            block.split(_BETWEEN) if isinstance(block, str) else block for block in self._blocks
        )
        return [*chain.from_iterable(blocks), *self._recent]

    def text(self) -> str:
        """Return all texts joined, at the cost of those that are new since the last time.

        The cost is that of all of them if the caller still holds what was returned the last time.
        """
        joined, self._joined = self._joined, None
        if joined is None:
            joined = "".join(self.texts())
        else:
            # Python appends in place to a text that is held only here, in this variable.
            joined += "".join(self._recent[self._seen :])
        self._joined, self._seen = joined, len(self._recent)
        return joined
