"""Decoders of event streams, ours and the peers', as functions of the pieces of a body."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from time import process_time
from typing import Any, TypeAlias

import httpx

from flux0.adapters.sse import SSEParser

Decoder: TypeAlias = Callable[[Iterable[bytes]], object]


class TooSlow(Exception):
    """A decoder took longer than it may."""


def flux0(pieces: Iterable[bytes]) -> object:
    """Decode with ours."""
    feed = SSEParser().feed
    return [event for piece in pieces for event in feed(piece)]


def httpx_sse(pieces: Iterable[bytes]) -> object:
    """Decode with httpx-sse, which takes a response of httpx."""
    headers = {"content-type": "text/event-stream"}
    response = httpx.Response(200, headers=headers, content=iter(pieces))
    return list(_module("httpx_sse").EventSource(response).iter_sse())


def sseclient(pieces: Iterable[bytes]) -> object:
    """Decode with sseclient-py."""
    return list(_module("sseclient").SSEClient(pieces).events())


def anthropic(pieces: Iterable[bytes]) -> object:
    """Decode with the decoder of anthropic's SDK."""
    return list(_module("anthropic._streaming").SSEDecoder().iter_bytes(iter(pieces)))


def openai(pieces: Iterable[bytes]) -> object:
    """Decode with the decoder of openai's SDK."""
    return list(_module("openai._streaming").SSEDecoder().iter_bytes(iter(pieces)))


PEERS: dict[str, Decoder] = {
    "anthropic": anthropic,
    "openai": openai,
    "httpx-sse": httpx_sse,
    "sseclient-py": sseclient,
}


def is_quick(decode: Decoder, pieces: list[bytes], seconds: float) -> bool:
    """Return whether a decoder takes no longer than `seconds` of CPU time."""
    end = process_time() + seconds

    def hurried() -> Iterator[bytes]:
        for piece in pieces:
            if process_time() > end:
                raise TooSlow
            yield piece

    try:
        decode(hurried())
    except TooSlow:
        return False
    return True


def _module(name: str) -> Any:
    """Return a peer's module, which only `tox -e bench` installs."""
    return import_module(name)
