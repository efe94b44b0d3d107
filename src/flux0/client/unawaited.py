"""Coroutines that raise clear errors if `await` is missing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Generator
from functools import wraps
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, final

from flux0.runtime.event_loop import running_task
from flux0.turns.streams import AsyncEventStream

if TYPE_CHECKING:
    from typing_extensions import Self

P = ParamSpec("P")
T = TypeVar("T")


class Unawaited(Coroutine[Any, Any, T], Generic[T]):
    """A coroutine that raises a clear error if `await` is missing.

    A Python coroutine has a method `send`, too. If you omit `await` and call `send("Hello")`, the
    error of Python's method does not mention `await`; the error of this class does.
    """

    _problem = "await is missing"

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine

    @classmethod
    def returned_by(cls, method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Self]:
        """Decorate a coroutine function, so that it returns an object of this class."""

        @wraps(method)
        def call(*args: P.args, **options: P.kwargs) -> Any:
            return cls(method(*args, **options))

        # `markcoroutinefunction` lets web frameworks and unittest.mock recognize `call` as a
        # coroutine function. Python 3.10 and 3.11 lack `markcoroutinefunction`. In these versions,
        # `id` is called instead, without effect.
        mark: Callable[[object], object] = getattr(inspect, "markcoroutinefunction", id)
        mark(call)
        return call

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._problem}>"

    def __await__(self) -> Generator[Any, Any, T]:
        return self._coroutine.__await__()

    def send(self, value: Any = None, **misplaced: Any) -> Any:
        if value is not None or misplaced:
            raise TypeError(self._problem)
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()

    # The methods below only raise an error for a missing `await`. Type checkers that see the
    # methods do not report a missing `await`.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(self._problem)

        def __enter__(self, *_: object) -> Any:
            raise TypeError(self._problem)

        __exit__ = __iter__ = __aiter__ = __anext__ = __enter__

        def __next__(self) -> Any:
            # A task of asyncio calls `__next__` instead of `send` to resume its coroutine. All
            # other callers iterate over a turn without `await`, and get an error.
            task: Any = running_task()
            if hasattr(task, "get_coro") and task.get_coro() is self:
                return self.send()
            raise TypeError(self._problem)


@final
class UnawaitedTurn(Unawaited[AsyncEventStream]):
    _problem = (
        "the turn has not begun: await it, or use it in async with, "
        "as in `async with conversation.send(...) as stream`"
    )
    _stream: AsyncEventStream  # `__aexit__` closes this stream, which `__aenter__` opened.

    async def __aenter__(self) -> AsyncEventStream:
        self._stream = await self._coroutine
        return await self._stream.__aenter__()

    async def __aexit__(self, *_: object) -> None:
        await self._stream.close_async()
