"""The reader of the page of `examples/web`, `static/turn.js`, in Node.js."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.npm import is_npm_installed, run_in

TESTS = Path(__file__).with_name("turn.test.mjs")


@pytest.mark.skipif(not is_npm_installed(), reason="Node.js is not installed")
def test_reader_of_the_page() -> None:
    run_in(TESTS.parent, "node", "--test", str(TESTS))
