"""The reader of the page of `examples/web`, `static/turn.js`, in Node.js."""

from __future__ import annotations

from pathlib import Path

from support.npm import run_in
from support.programs import needs

TESTS = Path(__file__).with_name("turn.test.mjs")


@needs("npm")
def test_reader_of_the_page() -> None:
    run_in(TESTS.parent, "node", "--test", str(TESTS))
