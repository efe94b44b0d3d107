"""The Python samples of a page, each with the output that the page shows for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

from attrs import frozen

_FENCE = re.compile(r"(?ms)^(?P<indent> *)```(?P<language>\w+)\n(?P<text>.*?)^ *```$")
_SENTENCE = re.compile(r".*\bprints\b.*:\s*\Z", re.DOTALL)


@frozen
class PageSample:
    """A sample of a page.

    Attributes:
        line: the number of its first line.
        code: the code.
        introduction: the sentence before the output; empty if the page shows no output.
        output: the output that the page shows.
    """

    line: int
    code: str
    introduction: str = ""
    output: str = ""


def samples_with_output(page: Path) -> Iterator[PageSample]:
    """Yield the samples of a page whose output the page shows.

    The output is the next block, of the language `text`, after a sentence with "prints". It applies
    to all samples between it and the previous heading or output.
    """
    text, waiting, end = page.read_text("utf-8"), list[PageSample](), 0
    for fence in _FENCE.finditer(text):
        between, end = text[end : fence.start()], fence.end()
        if re.search(r"(?m)^#+ ", between):
            waiting.clear()
        if fence["language"] == "python":
            line = text.count("\n", 0, fence.start()) + 1
            waiting.append(PageSample(line, dedent(fence["text"])))
        elif fence["language"] == "text" and _SENTENCE.match(between):
            introduction = between.strip()
            for sample in waiting:
                yield PageSample(sample.line, sample.code, introduction, fence["text"])
            waiting.clear()
