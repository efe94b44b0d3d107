"""The limit of the connections that an asyncio event loop uses at the same time."""

from __future__ import annotations

import asyncio

from anyio import fail_after

from flux0.domain.errors import PoolTimeout
from flux0.domain.timeouts import timed_out


class Places(asyncio.Semaphore):
    """A limited number of places for the exchanges of one event loop. `release` frees a place.

    aiohttp has one timeout for two waits: for a free connection, and for opening a connection. If
    the adapter itself waits for a place first, it knows which of the two waits was too long.
    """

    async def enter(self, timeout: float | None) -> None:
        """Reserve a place, waiting if necessary.

        Raises:
            PoolTimeout: No place became free within `timeout` seconds.
        """
        if self.locked():
            try:
                # Before Python 3.12, a task that is cancelled in `wait_for` may lose its place.
                with fail_after(timeout):
                    await self.acquire()
            except TimeoutError as error:
                raise timed_out(PoolTimeout, timeout) from error
        else:
            await self.acquire()
