"""The example of a transport in the documentation passes the contract."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from support.transports_page import CONTRACT, EXAMPLE, PAGE, TRANSPORT

# The first test of the long waits waits for all others, and the order is random.
pytestmark = pytest.mark.slow


def loaded(name: str, source: str, file: Path) -> ModuleType:
    """Return the code from a file as a module, as if a reader had saved it."""
    module = ModuleType(name)
    exec(compile(source, str(file), "exec"), module.__dict__)  # noqa: S102 - code of our documentation
    return module


# Enough to show that the example passes each test. The built-in transports run all parameters.

with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sys.modules, "h11_transport", loaded("h11_transport", TRANSPORT, EXAMPLE))
    TestH11Transport: Any = loaded("test_h11_transport", CONTRACT, PAGE).TestH11Transport
