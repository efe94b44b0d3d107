"""The transport that the documentation shows keeps the contract, and shows how to say so."""

from __future__ import annotations

import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "transports.md"
TRANSPORT, CONTRACT = re.findall(
    r"^```py(?:thon)?\n((?:\"\"\"A transport over|import ssl\n).*?)^```$",
    PAGE.read_text("utf-8"),
    re.DOTALL | re.MULTILINE,
)


def loaded(name: str, source: str) -> ModuleType:
    """Return the module that a reader would have saved."""
    module = ModuleType(name)
    exec(compile(source, f"{PAGE}:{name}", "exec"), module.__dict__)  # noqa: S102 - our own page
    return module


@contextmanager
def importable(module: ModuleType) -> Generator[None, None, None]:
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        del sys.modules[module.__name__]


with importable(loaded("stdlib_transport", TRANSPORT)):
    TestStdlibTransport: Any = loaded("test_stdlib_transport", CONTRACT).TestStdlibTransport
