"""Cancellation of tasks that wait in httpcore.

When a task is cancelled, httpcore cleans up in a cancel scope of anyio with a shield. The shield
has no effect on `asyncio.Task.cancel`. If the task is cancelled a second time during the cleanup,
the cleanup ends early, and the connection blocks a place in the pool forever.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from math import inf
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


class Uninterrupted(Generic[T]):
    """An awaitable that runs `work`, and delays a cancellation that occurs in a checkpoint.

    A checkpoint is an `await` that only lets other tasks run. The cleanup of httpcore contains only
    checkpoints, so no cancellation interrupts the cleanup. If a task is cancelled in a checkpoint,
    the cancellation takes effect when `work` next waits for an event, or when `work` ends.
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
                # A GeneratorExit means that Python is closing this coroutine, perhaps in the
                # garbage collector. Close the coroutine `work` as well.
                except GeneratorExit:
                    steps.close()
                    raise
                except BaseException as error:  # noqa: BLE001 - raised in `work`
                    # In asyncio, a checkpoint yields None, and any other wait yields a future.
                    # Therefore, if `awaited` is None, the error was raised in a checkpoint.
                    if awaited is None and _is_task_cancellation(error):
                        resume, argument, cancelled = steps.send, None, True
                    else:
                        resume, argument = steps.throw, error
        except StopIteration as stop:
            if not cancelled:
                return cast("T", stop.value)
        except Exception:
            if not cancelled:
                raise
        import asyncio  # noqa: PLC0415 - slow to import, and already imported under asyncio

        raise asyncio.CancelledError


def _is_task_cancellation(error: BaseException) -> bool:
    """Return whether `error` comes from `Task.cancel`, not from a cancelled scope of anyio.

    In a cancelled scope, `current_effective_deadline` returns -inf.
    """
    import asyncio  # noqa: PLC0415 - slow to import, and already imported under asyncio

    from anyio import current_effective_deadline  # noqa: PLC0415

    return isinstance(error, asyncio.CancelledError) and current_effective_deadline() > -inf
