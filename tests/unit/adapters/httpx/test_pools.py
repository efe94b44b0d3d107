"""Built-in clients of httpx and httpx2: pools, the limit of open exchanges, cancelled tasks."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event
from types import SimpleNamespace
from typing import Any
from unittest import mock

import anyio
import pytest
from attrs import evolve

from flux0 import ClientClosed, Flux0, HttpxTransport, RetryConfig
from flux0.adapters.httpx import clients
from flux0.adapters.httpx.cancellation import Uninterrupted
from flux0.adapters.httpx.pools import AsyncPool, Lease, SyncPool
from flux0.domain.errors import ConnectError, PoolTimeout, ReadTimeout
from flux0.ports import Interrupt
from flux0.testing.contract.byte_server import DEFAULT_TIMEOUT, ByteServer
from flux0.testing.contract.harness import LONG_TIMEOUT, get
from flux0.testing.contract.responses import (
    Disconnect,
    Signal,
    Sleep,
    WaitForRelease,
    http_response,
)
from support import sending
from support.ending import ends_soon
from support.interrupting import interrupt
from support.modes import call_blocking
from support.over_httpx import FAMILY, FAMILY_SYNC, VERSIONS, OverHttpx
from support.sending import HALF, OK, fetch_sync, over
from support.soak import ANYIO_CLOSES_CANCELLED

NO_WAIT = evolve(LONG_TIMEOUT, pool=0.05)
OVER_ASYNCIO = tuple(way for way in FAMILY if way.mode == "asyncio")
MAY_LEAVE_CONNECTIONS = pytest.mark.filterwarnings(
    "error" if ANYIO_CLOSES_CANCELLED else r"ignore:(?s).*unclosed:pytest.PytestWarning"
)


@pytest.fixture
def _one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "MAX_EXCHANGES", 1)


@over(*FAMILY)
@pytest.mark.usefixtures("_one_place", "little_garbage")
async def test_open_exchanges_are_limited(way: OverHttpx) -> None:
    """A place becomes free at the end of a body, an error, `close` and garbage collection."""
    with ByteServer(HALF, OK, (Disconnect(),), OK, HALF, OK, HALF, OK) as server:
        async with way.closing(None) as transport:
            send = sending.as_async(way.mode, transport).send_async
            body = (await send(get(server.url, stream=True))).body
            with pytest.raises(PoolTimeout, match=r"within 0\.05 s"):
                await send(get(server.url, timeout=NO_WAIT))
            await body.close_async()
            assert await way.fetch(transport, get(server.url)) == (200, b"ok")
            with pytest.raises(Exception, match="the connection was closed"):
                await send(get(server.url))
            assert await way.fetch(transport, get(server.url)) == (200, b"ok")
            response = await send(get(server.url, stream=True))
            server.release()
            assert await sending.read(response.body) == b"firstsecond"
            assert await way.fetch(transport, get(server.url)) == (200, b"ok")
            body = (await send(get(server.url, stream=True))).body
            del body
            gc.collect()
            assert await way.fetch(transport, get(server.url)) == (200, b"ok")


class Connection:
    """An idle connection of httpcore."""

    def __init__(self) -> None:
        self.is_closed = self.expired = False

    def is_idle(self) -> bool:
        return True

    def has_expired(self) -> bool:
        return self.expired

    def can_handle_request(self, origin: object) -> bool:
        return True

    def close(self) -> None:
        self.is_closed = True


def make_pool(limit: int) -> SyncPool:
    return SyncPool(SimpleNamespace(create_connection=None), limit)


def reserve(pool: SyncPool, timeout: float | None = None, interrupt: Any = None) -> Lease:
    lease = Lease(pool)
    pool.reserve(lease, timeout, interrupt or Interrupt())
    return lease


def use(pool: SyncPool, *connections: Connection) -> None:
    """Return new connections to the pool."""
    for connection in connections:
        lease = reserve(pool)
        lease.hold(connection)
        if unused := lease.release(reusable=True):
            unused.close()


def test_waiting_exchanges_get_a_free_place_in_their_order() -> None:
    pool = AsyncPool(SimpleNamespace(create_connection=None), 1)
    first, order = Lease(pool), list[str]()

    async def wait(name: str) -> None:
        lease = Lease(pool)
        await pool.reserve(lease, None)
        order.append(name)
        with pytest.raises(PoolTimeout):  # The limit still applies.
            await pool.reserve(Lease(pool), 0)
        lease.release(reusable=True)

    async def wait_in_order() -> None:
        await pool.reserve(first, None)
        async with anyio.create_task_group() as tasks:
            for name in ("second", "third"):
                tasks.start_soon(wait, name)
                await anyio.wait_all_tasks_blocked()
            first.release(reusable=True)

    anyio.run(wait_in_order)
    assert order == ["second", "third"]


@over(*VERSIONS)
async def test_connections_are_reused_while_many_streams_are_open(way: OverHttpx) -> None:
    streams = 120
    with ByteServer(*[HALF] * streams, OK) as server:
        async with way.closing(None) as transport:
            send = sending.as_async(way.mode, transport).send_async
            bodies = [(await send(get(server.url, stream=True))).body for _ in range(streams)]
            for _ in range(10):
                assert await way.fetch(transport, get(server.url)) == (200, b"ok")
            assert server.connections == streams + 1
            for body in bodies[:10]:
                await body.close_async()
            assert await way.fetch(transport, get(server.url)) == (200, b"ok")
        # The streams of all pools end when the transport is closed.
        await call_blocking(way.mode, server.wait_until_closed)


@pytest.mark.parametrize("way", FAMILY_SYNC, ids=str)
@pytest.mark.parametrize("ends", ["close", "deadline"])
@pytest.mark.usefixtures("_one_place")
def test_waiting_for_a_place_ends(way: OverHttpx, ends: str) -> None:
    """The first call has the only place, and the second call waits for it."""
    waiting = Event()
    with (
        ByteServer((Signal(waiting), WaitForRelease())) as server,
        ThreadPoolExecutor(2) as threads,
    ):
        transport = way.transport_over(None)
        options: Any = {"transport": transport, "retry_config": RetryConfig("none")}
        first = Flux0(server.url, **options)
        timeout = None if ends == "close" else 200
        second = Flux0(server.url, timeout_ms=timeout, **options)
        calls = [threads.submit(first.agents.list)]
        assert waiting.wait(DEFAULT_TIMEOUT)
        calls.append(threads.submit(second.agents.list))
        if ends == "close":
            second.close()
            expected: Any = ClientClosed
        else:
            expected = (PoolTimeout, ReadTimeout)
        assert isinstance(calls[1].exception(DEFAULT_TIMEOUT), expected)
        first.close()
        assert calls[0].exception(DEFAULT_TIMEOUT) is not None


@pytest.mark.parametrize("way", FAMILY_SYNC, ids=str)
def test_connection_that_is_in_use_when_the_transport_is_closed_is_closed_later(
    way: OverHttpx,
) -> None:
    """Another thread may be using the connection, so `close` must not close it at once."""
    waiting = Event()
    with (
        ByteServer((Signal(waiting), WaitForRelease(), *OK)) as server,
        ThreadPoolExecutor(1) as threads,
    ):
        transport = way.transport_over(None)
        sending_ = threads.submit(transport.send, get(server.url))
        assert waiting.wait(DEFAULT_TIMEOUT)
        transport.close()
        server.release()
        response = sending_.result(DEFAULT_TIMEOUT)  # It keeps the connection's pool alive.
        assert b"".join(sending.Pieces(response.body)) == b"ok"
        server.wait_until_closed()


def press_ctrl_c(_: object) -> None:
    signal.raise_signal(signal.SIGINT)


def wake(waiting: Callable[[], object]) -> None:
    waiting()


@pytest.mark.parametrize(
    ("act", "error"), [(press_ctrl_c, KeyboardInterrupt), (wake, ConnectError)]
)
def test_wait_for_a_place_that_is_interrupted_keeps_no_place(
    act: Callable[..., object], error: type[BaseException]
) -> None:
    pool = make_pool(1)
    lease = reserve(pool)
    interrupted = SimpleNamespace(on_fire=act, fired=True)
    with pytest.raises(error) as caught:
        reserve(pool, None, interrupted)
    assert caught.type is error
    lease.release(reusable=True)
    reserve(pool, 0)


def test_wait_for_a_place_without_a_timeout_gets_the_place_that_becomes_free() -> None:
    pool = make_pool(1)
    first = reserve(pool)
    threading.Timer(0.05, partial(first.release, reusable=True)).start()
    reserve(pool)


def test_place_of_a_garbage_collected_exchange_becomes_free() -> None:
    """An exception can interrupt an exchange before it releases its place."""
    pool = make_pool(1)
    lease = reserve(pool)
    with pytest.raises(PoolTimeout):
        reserve(pool, 0)
    del lease
    reserve(pool, 0)


def test_place_that_is_released_twice_becomes_free_once() -> None:
    pool = make_pool(2)
    leases = [reserve(pool) for _ in range(2)]
    for _ in range(2):
        leases[0].release(reusable=True)
    reserved = reserve(pool, 0)
    with pytest.raises(PoolTimeout):
        reserve(pool, 0)
    assert reserved


def test_surplus_and_expired_idle_connections_are_closed() -> None:
    """The pool closes the connection that was unused for the longest time."""
    pool = make_pool(200)
    first, *others = connections = [Connection() for _ in range(101)]
    use(pool, *connections)
    assert [each.is_closed for each in connections] == [True] + [False] * 100
    others[0].expired = True
    use(pool, reused := Connection())
    assert (others[0].is_closed, reused.is_closed, first.is_closed) == (True, False, True)


def test_connection_that_is_returned_to_a_closed_pool_is_closed() -> None:
    pool = make_pool(2)
    use(pool, idle := Connection())
    pool.close()
    use(pool, returned := Connection())
    assert (idle.is_closed, returned.is_closed) == (True, True)


@over(*OVER_ASYNCIO)
@MAY_LEAVE_CONNECTIONS
async def test_repeatedly_cancelled_calls_leave_no_connections(way: OverHttpx) -> None:
    """The n-th call is cancelled in its n-th step, and in each step after that."""
    slow = http_response(b'{"data": ', b"[]}", framing="chunked")
    with ByteServer(slow) as server:
        async with Flux0(server.url, transport=way.transport_over(None)) as flux0:
            for steps in range(120):
                call = asyncio.ensure_future(flux0.agents.list_async())
                for _ in range(steps):
                    await asyncio.sleep(0)
                while not call.done():
                    call.cancel()
                    await asyncio.sleep(0)
                assert call.cancelled() or call.result() is not None
            assert list(await flux0.agents.list_async()) == []
            # The server accepts connections in order. When this call returns, the server has
            # accepted each cancelled call's connection, too.
            fetch_sync(HttpxTransport(), get(server.url))
            opened = server.connections
            for _ in range(10):
                assert list(await flux0.agents.list_async()) == []
            assert server.connections == opened
            if not ANYIO_CLOSES_CANCELLED:
                gc.collect()
            server.wait_until_closed(max_open=2)


@over(*OVER_ASYNCIO)
@MAY_LEAVE_CONNECTIONS
@pytest.mark.usefixtures("_one_place")
async def test_call_that_is_cancelled_at_any_await_keeps_no_place(way: OverHttpx) -> None:
    """The response takes some milliseconds. If it arrives earlier, the call has fewer awaits."""
    with ByteServer((Sleep(0.005), *sending.AGENTS)) as server:
        async with Flux0(server.url, transport=way.transport_over(None)) as flux0:
            cancelled = [
                await interrupt(way.mode, flux0.agents.list_async(), number)
                for number in range(1, 15)
                for _ in range(3)
            ]
            assert cancelled[0]
            assert not cancelled[-1]
            with ends_soon():
                assert list(await flux0.agents.list_async()) == []


def test_cancelled_wait_for_a_place_keeps_no_place() -> None:
    """The waiting task is woken for the place, and is cancelled before it runs."""

    async def run() -> None:
        pool = AsyncPool(SimpleNamespace(create_connection=None), 1)
        first = Lease(pool)
        await pool.reserve(first, None)
        cancelled, last = (
            asyncio.ensure_future(pool.reserve(lease, None)) for lease in (Lease(pool), Lease(pool))
        )
        await asyncio.sleep(0)
        first.release(reusable=True)
        cancelled.cancel()
        await asyncio.wait([cancelled, last])
        assert cancelled.cancelled()
        assert not last.cancelled()

    asyncio.run(run())


@pytest.mark.parametrize("error", [None, OSError("the cleanup failed")])
def test_cancellation_during_a_cleanup_is_not_lost(error: Exception | None) -> None:
    async def clean_up() -> None:
        await asyncio.sleep(0)
        cleaned.append(True)
        if error is not None:
            raise error

    async def work() -> None:
        await Uninterrupted(clean_up())

    async def run() -> None:
        task = asyncio.ensure_future(work())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    cleaned: list[bool] = []
    asyncio.run(run())
    assert cleaned == [True]


def test_cancelled_scope_of_anyio_ends_without_an_error() -> None:
    """The scope is cancelled during a checkpoint."""

    async def run() -> None:
        with anyio.CancelScope() as scope:

            async def work() -> None:
                scope.cancel()
                await asyncio.sleep(0)
                ended.append(True)

            await Uninterrupted(work())
        assert scope.cancelled_caught

    ended: list[bool] = []
    asyncio.run(run())
    assert ended == []


def test_cancellation_during_a_cleanup_is_delivered_once() -> None:
    async def work() -> str:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await loop.create_future()
        loop.call_soon((waited := loop.create_future()).set_result, "done")
        return str(await waited)

    async def call() -> str:
        return await Uninterrupted(work())

    async def run() -> None:
        task = asyncio.ensure_future(call())
        await asyncio.sleep(0)
        task.cancel()
        assert await task == "done"

    asyncio.run(run())


def test_call_whose_event_loop_is_closed_is_cleaned_up() -> None:
    """Python throws `GeneratorExit` into its coroutine."""

    async def wait() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cleaned.append(True)

    async def call() -> None:
        await Uninterrupted(wait())

    async def run() -> None:
        coroutine = call()
        coroutine.send(None)
        coroutine.close()

    cleaned: list[bool] = []
    asyncio.run(run())
    assert cleaned == [True]


class _Interruption(BaseException):
    pass


def test_interrupted_entry_of_a_pool_leaves_no_place_and_prints_nothing() -> None:
    pool = SyncPool(SimpleNamespace(create_connection=None), 1)
    printed: list[object] = []
    left = uninterrupted = 0
    ended = False

    def handle(frame: Any, *_: object) -> None:
        nonlocal left
        if frame.f_code is not enter.__code__:
            left -= 1
            if left < 0:
                raise _Interruption

    def enter() -> None:
        sys.setprofile(handle)
        try:
            pool.reserve(Lease(pool), 0, Interrupt())
        finally:
            sys.setprofile(None)

    with mock.patch.object(sys, "unraisablehook", printed.append):
        while not ended:
            left = uninterrupted
            try:
                enter()
                ended = True
            except _Interruption:
                uninterrupted += 1
            gc.collect()
            assert printed == []
    pool.reserve(Lease(pool), 0, Interrupt())
    assert uninterrupted > 5
