"""Which of the ways to the server a test goes, where it is not all of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.transports import WAYS, Way


def only(wanted: Callable[[Way], bool]) -> pytest.MarkDecorator:
    """Have a test go some of the ways."""
    ways = [way for way in WAYS if wanted(way)]
    return pytest.mark.parametrize("way", ways, ids=str, indirect=True)


# Enough for what the server does and for what the core does, whatever carries the bytes.
few_ways = only(lambda way: way in {Way("httpx", "sync"), Way("aiohttp", "asyncio")})
