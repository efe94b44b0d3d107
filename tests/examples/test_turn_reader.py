"""The reader of the page of `examples/web`, `static/turn.js`, in Node.js."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NODE = shutil.which("node")
TESTS = Path(__file__).with_name("turn.test.mjs")


@pytest.mark.skipif(NODE is None, reason="Node.js is not installed")
def test_reader_of_the_page() -> None:
    assert NODE is not None
    ran = subprocess.run([NODE, "--test", str(TESTS)], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
