"""The slots of urllib3's pools: waiting, closing, and Ctrl-C at any moment."""

from __future__ import annotations

import queue
import socket
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import Empty
from threading import Event, Semaphore
from types import CodeType, FrameType
from typing import Any

import pytest
import requests
import urllib3
from attrs import evolve
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection

from flux0.adapters.shared.bodies import SyncBody
from flux0.adapters.urllib3 import pools, transport as transport_module
from flux0.adapters.urllib3.connection import Urllib3Exchange
from flux0.adapters.urllib3.pools import Slots, close_pools, track
from flux0.adapters.urllib3.requests_transport import RequestsTransport
from flux0.adapters.urllib3.transport import Urllib3Transport
from flux0.domain.errors import ConnectError, PoolTimeout
from flux0.ports import Transport
from flux0.runtime.waker import Waker
from flux0.testing.contract.byte_server import DEFAULT_TIMEOUT, ByteServer
from flux0.testing.contract.harness import LONG_TIMEOUT, get
from support.calls import before, press_ctrl_c
from support.ending import ends_soon
from support.sending import HALF, OK, Pieces, fetch_sync

GETS: tuple[CodeType, ...] = tuple(
    kind.get.__code__
    for kind in (Slots, pools._UserSlots)  # pyright: ignore[reportPrivateUsage] - only its code
)
PUTS: tuple[CodeType, ...] = tuple(
    kind.put.__code__
    for kind in (Slots, pools._UserSlots)  # pyright: ignore[reportPrivateUsage] - only its code
)
WAITS: tuple[CodeType, ...] = (Waker.wait.__code__,)


def built_in() -> Transport:
    return Urllib3Transport()


def blocking_manager() -> Transport:
    return Urllib3Transport(urllib3.PoolManager(maxsize=1, block=True))


def blocking_session() -> Transport:
    session = requests.Session()
    session.mount("http://", HTTPAdapter(pool_maxsize=1, pool_block=True))
    return RequestsTransport(session)


@pytest.fixture(params=[built_in, blocking_manager, blocking_session])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Transport:
    """Return a transport whose pools have one slot."""
    monkeypatch.setattr(transport_module, "MAX_CONNECTIONS", 1)
    made: Transport = request.param()
    return made


def test_ctrl_c_before_a_call_gets_a_slot_is_raised(transport: Transport) -> None:
    with ByteServer(OK) as server:
        with before(GETS, press_ctrl_c), pytest.raises(KeyboardInterrupt):
            transport.send(get(server.url))
        assert [fetch_sync(transport, get(server.url)) for _ in range(2)] == [b"ok"] * 2
        assert server.connections == 1


def test_ctrl_c_after_a_connection_was_returned_does_not_close_it_for_another_call(
    transport: Transport,
) -> None:
    """urllib3 still refers to the connection, and closes it after the exception."""
    others: list[Pieces] = []

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "return" and frame.f_code in PUTS and not others:
            others.append(Pieces(transport.send(get(server.url)).body))
            raise KeyboardInterrupt

    with ByteServer(HALF) as server:
        server.release()
        body = Pieces(transport.send(get(server.url)).body)
        sys.setprofile(profile)
        try:
            with pytest.raises(KeyboardInterrupt):
                list(body)
        finally:
            sys.setprofile(None)
        assert b"".join(others[0]) == b"firstsecond"
        assert fetch_sync(transport, get(server.url)) == b"firstsecond"
        assert server.connections == 1


@pytest.mark.usefixtures("little_garbage")
def test_ctrl_c_before_a_call_returns_its_response_frees_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport_module, "MAX_CONNECTIONS", 1)
    transport = built_in()
    with ByteServer(OK) as server:
        with before((SyncBody.__init__.__code__,), press_ctrl_c), pytest.raises(KeyboardInterrupt):
            transport.send(get(server.url))
        assert fetch_sync(transport, get(server.url)) == b"ok"
        server.wait_until_closed(max_open=1)


def test_ctrl_c_before_a_call_gets_a_slot_does_not_affect_another_response(
    transport: Transport,
) -> None:
    """urllib3 returns a slot for the interrupted call, although the call did not have one."""
    with ByteServer(HALF, OK) as server:
        body = Pieces(transport.send(get(server.url, stream=True)).body)
        with before(GETS, press_ctrl_c), pytest.raises(KeyboardInterrupt):
            transport.send(get(server.url))
        server.release()
        assert b"".join(body) == b"firstsecond"
        assert fetch_sync(transport, get(server.url)) == b"ok"


@pytest.mark.parametrize("queue_class", [queue.LifoQueue, queue.Queue])
def test_built_in_pool_has_as_many_connections_as_its_limit(
    queue_class: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """gevent may replace `queue.LifoQueue` after urllib3 was imported."""
    monkeypatch.setattr(queue, "LifoQueue", queue_class)
    monkeypatch.setattr(transport_module, "MAX_CONNECTIONS", 3)
    with ByteServer(HALF) as server:
        transport = Urllib3Transport()
        request = get(server.url, timeout=evolve(LONG_TIMEOUT, pool=0.01))
        bodies = [Pieces(transport.send(request).body) for _ in range(3)]
        with pytest.raises(PoolTimeout):
            transport.send(request)
        server.release()
        assert [b"".join(body) for body in bodies] == [b"firstsecond"] * 3
        assert fetch_sync(transport, request) == b"firstsecond"
        assert server.connections == 3
        transport.close()
        server.wait_until_closed()


# --- waiting for a place


def use_place(slots: Slots) -> Urllib3Exchange:
    """Return an exchange that uses a place of the pool."""
    with Urllib3Exchange(get("http://h")) as exchange:
        assert slots.get(timeout=0.0) is None
    return exchange


def free_place(slots: Slots, exchange: Urllib3Exchange) -> None:
    """Free the place of an exchange, as urllib3 does after an error."""
    with exchange:
        slots.put(None)


def test_thread_waits_again_if_another_thread_takes_the_place_first() -> None:
    slots = Slots(1)
    others = [use_place(slots)]

    def free_and_use() -> None:
        free_place(slots, others.pop())
        others.append(use_place(slots))

    def free() -> None:
        free_place(slots, others.pop())

    with Urllib3Exchange(get("http://h")), before(WAITS, free_and_use, free):
        assert slots.get() is None


def test_place_for_a_thread_whose_wait_is_interrupted_goes_to_the_next_thread() -> None:
    slots, next_waits = Slots(1), Event()
    other = use_place(slots)

    def wait_in_another_thread() -> object:
        with Urllib3Exchange(get("http://h")), before(WAITS, next_waits.set):
            return slots.get()

    with ThreadPoolExecutor(1) as threads, Urllib3Exchange(get("http://h")) as exchange:
        waiting: list[Future[object]] = []

        def interrupt() -> None:
            waiting.append(threads.submit(wait_in_another_thread))
            assert next_waits.wait(DEFAULT_TIMEOUT)
            free_place(slots, other)
            exchange.interrupt.fire()

        with before(WAITS, interrupt), pytest.raises(Empty):
            slots.get()
        assert waiting[0].result(DEFAULT_TIMEOUT) is None


def test_waiting_thread_is_woken_although_another_thread_waited_until_its_timeout() -> None:
    slots = Slots(1)
    other = use_place(slots)
    with Urllib3Exchange(get("http://h")):
        with pytest.raises(Empty):
            slots.get(timeout=0.0)
        with before(WAITS, partial(free_place, slots, other)):
            assert slots.get(timeout=DEFAULT_TIMEOUT) is None


def test_exchange_without_a_place_frees_no_place() -> None:
    """After Ctrl-C, urllib3 returns a place that the exchange did not have."""
    slots = Slots(1)
    other = use_place(slots)
    free_place(slots, Urllib3Exchange(get("http://h")))
    with Urllib3Exchange(get("http://h")), pytest.raises(Empty):
        slots.get(timeout=0.0)
    free_place(slots, other)
    use_place(slots)


@pytest.mark.usefixtures("little_garbage")
def test_waiting_thread_gets_the_place_of_a_garbage_collected_exchange() -> None:
    """If an exception interrupts an exchange between two calls, urllib3 returns no place."""
    slots = Slots(1)
    others = [use_place(slots)]
    with Urllib3Exchange(get("http://h")), before(WAITS, others.clear):
        assert slots.get(timeout=DEFAULT_TIMEOUT) is None


# --- the user's pools


@pytest.mark.parametrize("is_interrupted", [True, False])
def test_wait_for_a_slot_of_a_user_pool_ends(*, is_interrupted: bool) -> None:
    slots = pools._UserSlots(queue.LifoQueue(1))  # pyright: ignore[reportPrivateUsage] - as in a pool
    seconds = 1000.0 if is_interrupted else 0.01
    request = get("http://h", timeout=evolve(LONG_TIMEOUT, pool=seconds))
    with Urllib3Exchange(request) as exchange, ends_soon():
        if is_interrupted:
            exchange.interrupt.fire()
        with pytest.raises(Empty):
            slots.get()


@pytest.mark.parametrize("block", [False, True])
def test_slots_of_untracked_connections_stay_in_the_pool(*, block: bool) -> None:
    with ByteServer(HALF) as server:
        manager = urllib3.PoolManager(maxsize=2, block=block)
        server.release()
        assert manager.request("GET", server.url).data == b"firstsecond"
        transport = Urllib3Transport(manager)
        bodies = [transport.send(get(server.url)).body for _ in range(2)]
        assert [b"".join(Pieces(body)) for body in bodies] == [b"firstsecond"] * 2
        assert server.connections == 3


def test_threads_that_wait_for_a_user_pool_share_its_connection_with_flux0() -> None:
    """The threads wait before flux0 uses the pool for the first time."""
    pool: Any = urllib3.HTTPConnectionPool("127.0.0.1", maxsize=1, block=True)
    own, waiting = pool.pool, Semaphore(0)
    connection = own.get()

    def use() -> None:
        waiting.release()
        pool.pool.put(own.get(timeout=DEFAULT_TIMEOUT))

    with ThreadPoolExecutor() as threads:
        users = [threads.submit(use) for _ in range(3)]
        for _ in users:
            assert waiting.acquire(timeout=DEFAULT_TIMEOUT)
        track(pool)
        with pytest.raises(Empty):
            pool.pool.get(block=False)
        pool.pool.put(connection)
        for user in users:
            user.result()


def test_user_pool_without_a_limit_keeps_its_connections() -> None:
    transport = Urllib3Transport(urllib3.PoolManager(maxsize=0))
    with ByteServer(OK) as server:
        for _ in range(2):
            assert fetch_sync(transport, get(server.url)) == b"ok"
        assert server.connections == 1


def test_pool_closed_by_the_user_is_a_connect_error() -> None:
    with ByteServer(OK) as server:
        manager = urllib3.PoolManager()
        assert manager.request("GET", server.url).data == b"ok"
        manager.connection_from_url(server.url).close()
        with pytest.raises(ConnectError, match="closed"):
            Urllib3Transport(manager).send(get(server.url))


# --- closing


def test_connection_that_is_returned_after_close_is_closed() -> None:
    with socket.socket() as idle, socket.socket() as used:
        slots = Slots(2)
        slots.put(idle)
        slots.close()
        slots.put(used)
        assert (idle.fileno(), used.fileno()) == (-1, -1)


def test_surplus_connection_is_closed() -> None:
    with socket.socket() as idle, socket.socket() as surplus:
        slots = Slots(1)
        slots.put(idle)
        slots.put(surplus)
        assert surplus.fileno() == -1
        assert slots.get() is idle
        assert idle.fileno() != -1


def test_pool_that_is_already_closed_can_be_closed() -> None:
    """Another thread may close a pool while the transport is closed."""
    manager = urllib3.PoolManager(maxsize=1)
    manager.connection_from_url("http://127.0.0.1:1").close()
    close_pools(manager)
    assert not manager.pools


def test_connection_that_was_returned_last_is_used_first() -> None:
    """The others can then become idle for long, so that they are closed."""
    slots = Slots(3)
    first, last = HTTPConnection("127.0.0.1"), HTTPConnection("127.0.0.1")
    slots.put(first)
    slots.put(last)
    assert [slots.get(), slots.get(), slots.get()] == [last, first, None]
