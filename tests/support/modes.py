"""Tests are written once, as asynchronous code; this runs them as synchronous code too.

In the mode "sync" a client's `_async` methods call their synchronous twins and `async for` iterates
over the synchronous stream, so that nothing is ever awaited and no event loop is needed.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import anyio
import anyio.to_thread
import trio

from flux0 import AsyncEventStream, EventStream, Flux0
from flux0.client.conversation import AsyncConversation, Conversation
from flux0.client.resources import AgentsResource, SessionsResource
from support.transports import Mode

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

Test = Callable[[], Coroutine[Any, Any, None]]

# Everything here takes a second or two. Synchronous code has the client's own timeouts alone.
_TOO_LONG_SECONDS = 60


class MakeClient(Protocol):
    """Makes a client with these options of `Flux0`, of which every test has sensible defaults."""

    def __call__(self, **options: Any) -> Flux0: ...


def run(mode: Mode, test: Test) -> None:
    """Run `test` to its end in the given kind of code."""

    async def in_time() -> None:
        with anyio.fail_after(_TOO_LONG_SECONDS):
            await test()

    if mode == "asyncio":
        asyncio.run(in_time())
    elif mode == "trio":
        trio.run(in_time)
    else:
        try:
            test().send(None)
        except StopIteration:
            return
        raise AssertionError("synchronous code waits for an event loop")


async def call_blocking(mode: Mode, function: Callable[..., T], *args: object) -> T:
    """Call what blocks, while the event loop, if there is one, goes on."""
    if mode == "sync":
        return function(*args)
    return await anyio.to_thread.run_sync(function, *args)


async def at_once(mode: Mode, *tests: Test) -> None:
    """Run several tests beside each other: in threads, or in tasks of the running loop."""
    if mode == "sync":
        with ThreadPoolExecutor(len(tests)) as threads:
            for running in [threads.submit(run, mode, test) for test in tests]:
                running.result()
    else:
        async with anyio.create_task_group() as tasks:
            for test in tests:
                tasks.start_soon(test)


def in_mode(mode: Mode, flux0: Flux0) -> Flux0:
    """Return a client whose `_async` methods are those of `flux0`, or their synchronous twins."""
    return cast("Flux0", _InSync(flux0)) if mode == "sync" else flux0


class _InSync:
    """A client or a part of one, whose asynchronous methods act through the synchronous ones."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        twin = getattr(self._real, name.removesuffix("_async"))
        if not callable(twin):
            return _wrap(twin)

        def call(*args: Any, **options: Any) -> Any:
            return _wrap(twin(*args, **options))

        async def call_async(*args: Any, **options: Any) -> Any:
            return call(*args, **options)

        method = getattr(_ASYNC[type(self._real)], name)
        opens = inspect.signature(method).return_annotation == "AsyncOpening"
        awaited = opens or inspect.iscoroutinefunction(method)
        return call_async if awaited else call

    async def __aenter__(self) -> Self:
        self._real.__enter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._real.__exit__(kind, error, traceback)

    def __aiter__(self) -> _InSync:
        return _InSync(iter(self._real))

    async def __anext__(self) -> Any:
        try:
            return next(self._real)
        except StopIteration:
            raise StopAsyncIteration from None


# What has methods for synchronous code: what has those for asynchronous code.
_ASYNC: Mapping[type, type] = {
    Flux0: Flux0,
    AgentsResource: AgentsResource,
    SessionsResource: SessionsResource,
    EventStream: AsyncEventStream,
    Conversation: AsyncConversation,
}


def _wrap(value: Any) -> Any:
    return _InSync(value) if type(value) in _ASYNC or isinstance(value, Iterator) else value
