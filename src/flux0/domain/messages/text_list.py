"""A compact list of strings that supports only appending, which is enough for most messages."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

_BLOCK = 1024
_SEPARATOR = "\0"


class TextList:
    """A list of strings that needs little more memory than the characters of its strings."""

    __slots__ = ("_blocks", "_joined", "_joined_recent", "_recent")

    def __init__(self, texts: Iterable[str] = ()) -> None:
        # Each item of `_blocks` holds `_BLOCK` strings: joined with `_SEPARATOR` to one string, or
        # in a list if a string contains `_SEPARATOR`. `_recent` holds all strings that follow.
        self._blocks: list[str | list[str]] = []
        self._recent: list[str] = []
        # `_joined` is the last result of the method `text`. The result includes the first
        # `_joined_recent` strings of `_recent`.
        self._joined: str | None = None
        self._joined_recent = 0
        for text in texts:
            self.append(text)

    def __len__(self) -> int:
        return len(self._blocks) * _BLOCK + len(self._recent)

    def append(self, text: str) -> None:
        self._recent.append(text)
        if len(self._recent) == _BLOCK:
            if self._joined is not None:
                self.text()
            block = _SEPARATOR.join(self._recent)
            is_reversible = block.count(_SEPARATOR) == _BLOCK - 1
            self._blocks.append(block if is_reversible else self._recent)
            self._recent, self._joined_recent = [], 0

    def texts(self) -> list[str]:
        split = (each.split(_SEPARATOR) if isinstance(each, str) else each for each in self._blocks)
        return [*chain.from_iterable(split), *self._recent]

    def text(self) -> str:
        """Return all strings joined.

        The cost is proportional to the length of all strings added since the last call. If there
        are references to the last result, Python must copy it, and the cost is proportional to the
        length of all strings.
        """
        joined, self._joined = self._joined, None
        if joined is None:
            joined = "".join(self.texts())
        else:
            # `self._joined` is None here, because CPython appends to a string without a copy only
            # if `joined` is the only reference to the string.
            joined += "".join(self._recent[self._joined_recent :])
        self._joined, self._joined_recent = joined, len(self._recent)
        return joined
