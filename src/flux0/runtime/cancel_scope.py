"""Cancel scopes for asyncio and trio, which any thread may cancel.

anyio has cancel scopes, too. An asyncio task enters and leaves this scope in a tenth of the time.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from flux0.runtime.event_loop import call_soon, running_loop, running_trio, sleep

# Seconds between two attempts to cancel a task that is being cancelled for another reason.
_RETRY_SECONDS: Final = 0.05


def cancel_scope(seconds: float | None) -> TaskScope | TrioScope:
    """Return an async context manager that cancels its block after `seconds`; None: no limit.

    `cancel_soon` cancels the block earlier. If the scope has cancelled the block, execution
    continues after the block. A scope can be entered once.
    """
    trio = running_trio()
    return TaskScope(seconds) if trio is None else TrioScope(trio, seconds)


class TaskScope:
    """A cancel scope for an asyncio task."""

    def __init__(self, seconds: float | None) -> None:
        import asyncio  # noqa: PLC0415 - slow to import, and already imported under asyncio

        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._cancellation = asyncio.CancelledError
        self._task: Any = asyncio.current_task()
        self._requests = _cancel_requests(self._task)
        self._timer: Any = None
        self._cancelled = False
        self._ended = False

    def cancel_soon(self) -> None:
        """Cancel the block. Safe in any thread and in finalizers."""
        call_soon(self._loop, self._cancel)

    def _cancel(self) -> None:
        if self._ended or self._cancelled:
            return
        if _cancel_requests(self._task) > self._requests:
            # The task is already being cancelled, perhaps by a scope of anyio. asyncio would merge
            # both cancellations, and anyio would not recognize its own cancellation.
            self._timer = self._loop.call_later(_RETRY_SECONDS, self._cancel)
        else:
            self._cancelled = True
            self._task.cancel()

    async def __aenter__(self) -> None:
        if self._seconds is not None:
            self._timer = self._loop.call_later(self._seconds, self._cancel)

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        if not self._cancelled:
            return False
        cancellation = error if isinstance(error, self._cancellation) else None
        if cancellation is None:
            try:
                await sleep(0)  # If the cancellation is still pending, asyncio raises it here.
            except self._cancellation as pending:
                cancellation = pending
        if sys.version_info >= (3, 11):
            self._task.uncancel()
        if cancellation is not None and _cancel_requests(self._task) > self._requests:
            raise cancellation  # The caller was cancelled, too.
        return error is cancellation


def _cancel_requests(task: Any) -> int:
    """Return the number of cancellations of a task that are in progress; 0 on Python 3.10."""
    count: int = task.cancelling() if sys.version_info >= (3, 11) else 0
    return count


class TrioScope:
    """A cancel scope for a trio task."""

    def __init__(self, trio: Any, seconds: float | None) -> None:
        self._scope = trio.CancelScope()
        if seconds is not None:
            self._scope.deadline = trio.current_time() + seconds
        self._token = running_loop()

    def cancel_soon(self) -> None:
        """Cancel the block. Safe in any thread and in finalizers."""
        call_soon(self._token, self._scope.cancel)

    async def __aenter__(self) -> None:
        self._scope.__enter__()

    async def __aexit__(self, *error: object) -> bool:
        ended: bool = self._scope.__exit__(*error)
        return ended
