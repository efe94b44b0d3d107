"""The transport that the documentation shows keeps the contract, and shows how to say so."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from support.transports_page import CONTRACT, PAGE, TRANSPORT


def loaded(name: str, source: str) -> ModuleType:
    """Return the module that a reader would have saved."""
    module = ModuleType(name)
    exec(compile(source, f"{PAGE}:{name}", "exec"), module.__dict__)  # noqa: S102 - our own page
    return module


with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sys.modules, "h11_transport", loaded("h11_transport", TRANSPORT))
    TestH11Transport: Any = loaded("test_h11_transport", CONTRACT).TestH11Transport
