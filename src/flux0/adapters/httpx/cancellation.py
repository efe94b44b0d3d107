"""Cancellation of tasks that wait in httpcore.

httpcore cleans up in shielded cancel scopes of anyio. These do not stop `asyncio.Task.cancel`: a
task that is cancelled again meanwhile leaves a connection that blocks a place in the pool forever.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from math import inf
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Uninterrupted(Generic[T]):
    """An awaitable that does what `work` does, but is not cancelled in checkpoints of `work`.

    In a checkpoint, a task lets other tasks run, without waiting for an event. httpcore cleans up
    in steps that contain only checkpoints. If the task is cancelled there, the cancellation takes
    effect when `work` waits for an event, or when it ends.
    """

    def __init__(self, work: Awaitable[T]) -> None:
        self._work = work

    def __await__(self) -> Generator[Any, Any, T]:
        steps: Any = self._work.__await__()
        resume, argument, cancelled = steps.send, None, False
        try:
            while True:
                awaited = resume(argument)
                if cancelled and awaited is not None:
                    awaited.cancel()
                    cancelled = False
                try:
                    resume, argument = steps.send, (yield awaited)
                except GeneratorExit:
                    steps.close()
                    raise
                except BaseException as error:  # noqa: BLE001 - `work` gets it
                    # In asyncio, a checkpoint awaits None.
                    if awaited is None and _is_task_cancellation(error):
                        resume, argument, cancelled = steps.send, None, True
                    else:
                        resume, argument = steps.throw, error
        except StopIteration as stop:
            if not cancelled:
                result: T = stop.value
                return result
        except Exception:
            if not cancelled:
                raise
        import asyncio  # noqa: PLC0415 - slow to import, and already imported under asyncio

        raise asyncio.CancelledError


def _is_task_cancellation(error: BaseException) -> bool:
    """Return whether `Task.cancel` was called. Cancel scopes of anyio respect its shields."""
    import asyncio  # noqa: PLC0415 - slow to import, and already imported under asyncio

    from anyio import current_effective_deadline  # noqa: PLC0415

    return isinstance(error, asyncio.CancelledError) and current_effective_deadline() > -inf
