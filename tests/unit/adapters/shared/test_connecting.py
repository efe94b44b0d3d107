"""The `Connector`: addresses, timeouts and interrupts."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from threading import Thread
from typing import Any
from unittest.mock import Mock
from weakref import ref

import pytest

from flux0 import (
    AiohttpTransport,
    Flux0,
    Flux0Error,
    HttpxTransport,
    RequestsTransport,
    Urllib3Transport,
)
from flux0.adapters.shared import connecting
from flux0.adapters.shared.connecting import Connector
from flux0.adapters.shared.failures import system_message
from flux0.ports import Interrupt
from flux0.testing.contract.byte_server import DEFAULT_TIMEOUT
from support.garbage_collection import no_garbage_collection
from support.unreachable import resolve_to, unreachable_address

SHORT_TIMEOUT = 0.2


def test_address_after_unreachable_addresses_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each address may use a share of the timeout. The socket gets the remaining time."""
    no_delay = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        source = unused.getsockname()
    connector = Connector(SHORT_TIMEOUT, Interrupt(), [no_delay], source)
    with unreachable_address() as dead, socket.create_server(("127.0.0.1", 0)) as server:
        resolve_to(monkeypatch, dead, dead, dead, server.getsockname())
        with connector.connect("flux0.example", 80) as connected:
            assert connected.getpeername() == server.getsockname()
            assert connected.getsockname() == source
            assert 0 < (connected.gettimeout() or 0) <= SHORT_TIMEOUT / 4
            assert connected.getsockopt(*no_delay[:2])


@pytest.mark.parametrize("before", [False, True], ids=["meanwhile", "before"])
def test_interrupt_ends_connecting(monkeypatch: pytest.MonkeyPatch, *, before: bool) -> None:
    """After an interrupt, the second address is not tried."""
    interrupt, errors, tried = Interrupt(), list[OSError](), list[object]()

    class Recorder(Connector):
        def _connect(self, sock: socket.socket, address: Any, timeout: float | None, /) -> None:
            tried.append(address)
            super()._connect(sock, address, timeout)

    def connect() -> None:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the test checks errno
            Recorder(None, interrupt).connect("flux0.example", 80)
        errors.append(caught.value)

    with unreachable_address() as dead:
        resolve_to(monkeypatch, dead, dead)
        connecting = Thread(target=connect)
        if before:
            interrupt.fire()
        connecting.start()
        interrupt.fire()
        connecting.join(DEFAULT_TIMEOUT)
    assert [error.errno for error in errors] == [errno.ECONNABORTED]
    assert len(tried) == 1


def test_interrupted_connection_is_not_used() -> None:
    """The connection is closed, although the server accepts it."""
    interrupt = Interrupt()
    interrupt.fire()
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(ConnectionAbortedError),
    ):
        Connector(None, interrupt).connect(*server.getsockname())


def test_connection_without_a_timeout_has_no_limit() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        Connector(None, Interrupt()).connect(*server.getsockname()) as connected,
    ):
        assert connected.gettimeout() is None


def test_error_is_freed_without_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in a reference cycle keeps the objects of the caller's frames alive."""

    class UnreachableError(OSError):
        pass

    class Unreachable(Connector):
        def _connect(self, sock: socket.socket, address: object, timeout: float | None, /) -> None:
            raise UnreachableError

    def connect() -> ref[OSError]:
        try:
            Unreachable(None, Interrupt()).connect("flux0.example", 80)
        except UnreachableError as error:
            return ref(error)
        pytest.fail("no error")

    resolve_to(monkeypatch, ("127.0.0.1", 1))
    with no_garbage_collection():
        assert connect()() is None


def test_address_that_the_system_rejects_is_an_error() -> None:
    """The system does not even begin to connect to the broadcast address."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the test checks errno
        Connector(SHORT_TIMEOUT, Interrupt()).connect("255.255.255.255", 80)
    assert caught.value.errno in (errno.EACCES, errno.ENETUNREACH)


def test_error_of_the_last_address_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        refusing = server.getsockname()
    with unreachable_address() as dead:
        resolve_to(monkeypatch, dead, refusing)
        with pytest.raises(ConnectionRefusedError):
            Connector(SHORT_TIMEOUT, Interrupt()).connect("flux0.example", 80)


def test_each_address_may_use_an_equal_share_of_the_remaining_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, shares = [100.0], list[float | None]()

    class Unreachable(Connector):
        def _connect(self, sock: socket.socket, address: object, timeout: float | None, /) -> None:
            shares.append(timeout)
            now[0] += timeout or 0
            raise TimeoutError

    monkeypatch.setattr(connecting, "monotonic", lambda: now[0])
    resolve_to(monkeypatch, *[("127.0.0.1", 1)] * 4)
    with pytest.raises(TimeoutError):
        Unreachable(8.0, Interrupt()).connect("flux0.example", 80)
    assert shares == [2.0] * 4


# --- other systems


async def list_agents(transport: Any) -> object:
    async with Flux0("http://127.0.0.1:9", transport=transport) as client:
        return await client.agents.list_async()


@pytest.mark.parametrize("kind", [RequestsTransport, Urllib3Transport])
def test_transports_over_urllib3_name_the_missing_sockets_of_pyodide(
    kind: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "emscripten")
    with pytest.raises(Flux0Error, match=r"\(Pyodide\) has no sockets, so urllib3 cannot connect"):
        kind()


def test_sync_call_names_the_missing_sockets_of_pyodide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "emscripten")
    with Flux0("http://127.0.0.1:9") as client, pytest.raises(Flux0Error, match="use a transport"):
        client.agents.list()


@pytest.mark.parametrize("kind", [AiohttpTransport, HttpxTransport])
def test_async_call_names_the_missing_sockets_of_pyodide(
    kind: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "emscripten")
    with pytest.raises(Flux0Error, match="use a transport of your own that calls fetch"):
        asyncio.run(list_agents(kind()))


def test_interrupt_ends_connecting_if_shutting_the_socket_down_has_no_effect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On macOS and Windows, `shutdown` has no effect on a socket that still connects."""
    monkeypatch.setattr(connecting, "shut_down", Mock())
    monkeypatch.setattr(connecting, "_SECONDS_BETWEEN_LOOKS", 0.01)
    interrupt = Interrupt()
    connector = Connector(DEFAULT_TIMEOUT, interrupt)
    with unreachable_address() as dead:
        resolve_to(monkeypatch, dead)
        thread = Thread(target=interrupt.fire)
        thread.start()
        with pytest.raises(ConnectionAbortedError):
            connector.connect("flux0.example", 80)
        thread.join()


def test_message_of_an_error_number_that_only_windows_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "errorTab", {10060: "The operation timed out."}, raising=False)
    assert system_message(10060) == "The operation timed out."
    assert system_message(errno.ECONNREFUSED) == "Connection refused"
