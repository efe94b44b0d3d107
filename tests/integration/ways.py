"""Decorators that run a test with only some transports and modes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.transports import WAYS, Way


def only(condition: Callable[[Way], bool]) -> pytest.MarkDecorator:
    """Run a test only with the ways that fulfill the condition."""
    ways = [way for way in WAYS if condition(way)]
    return pytest.mark.parametrize("way", ways, ids=str, indirect=True)


# Enough for tests of the server and the core, which do not depend on the transport.
few_ways = only(lambda way: way in {Way("httpx", "sync"), Way("aiohttp", "asyncio")})
