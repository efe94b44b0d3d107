"""The modules of httpx and httpx2, two HTTP libraries with the same interface."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

from flux0.adapters.shared.misplaced import not_installed


class Library(NamedTuple):
    """httpx or httpx2, with the package that opens its connections.

    Attributes:
        httpx: The module `httpx` or `httpx2`.
        httpcore: The module `httpcore` or `httpcore2`.
    """

    httpx: Any
    httpcore: Any

    @classmethod
    def load(cls, name: str) -> Library:
        try:
            return cls(import_module(name), import_module(name.replace("httpx", "httpcore")))
        except ModuleNotFoundError as error:
            raise not_installed(name) from error
