"""How a client chooses its transports from its arguments."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import httpx
import pytest
import requests
import urllib3

from flux0 import (
    AiohttpTransport,
    Flux0,
    HttpxTransport,
    RequestsTransport,
    RetryConfig,
    Urllib3Transport,
)
from flux0.domain.errors import Flux0Error, InvalidArgument, ReadTimeout
from flux0.ports import Shared
from flux0.testing import FakeTransport
from flux0.testing.contract.byte_server import ByteServer
from support.in_memory import in_every_mode
from support.modes import in_mode, run
from support.named_transports import NO_AGENTS, Async, Both, Sync
from support.sending import AGENTS
from support.transports import ASYNC, SYNC, Mode


def answering(name: str, served: list[str]) -> httpx.MockTransport:
    def respond(request: httpx.Request) -> httpx.Response:
        served.append(name)
        return httpx.Response(200, stream=httpx.ByteStream(NO_AGENTS))

    return httpx.MockTransport(respond)


ARGUMENTS: dict[str, Callable[[list[str]], dict[str, Any]]] = {
    "transport=sync": lambda served: {"transport": Sync("sync", served)},
    "transport=async": lambda served: {"transport": Async("async", served)},
    "transport=both": lambda served: {"transport": Both("both", served)},
    "async_transport=async": lambda served: {"async_transport": Async("other", served)},
    "async_transport=both": lambda served: {"async_transport": Both("other", served)},
    "client": lambda served: {"client": httpx.Client(transport=answering("client", served))},
    "async_client": lambda served: {
        "async_client": httpx.AsyncClient(transport=answering("async_client", served))
    },
    "transport=HttpxTransport(async_client=...)": lambda served: {
        "transport": HttpxTransport(
            async_client=httpx.AsyncClient(transport=answering("async_client", served))
        )
    },
}


def arguments(given: str, served: list[str]) -> dict[str, Any]:
    """Return keyword arguments for `Flux0`; `given` has their names, separated by commas."""
    made: dict[str, Any] = {}
    for name in filter(None, given.split(", ")):
        made.update(ARGUMENTS[name](served))
    return made


@pytest.fixture
def network() -> Iterator[ByteServer]:
    """A server on a socket. Only the built-in transport sends requests to it."""
    with ByteServer(AGENTS) as server:
        yield server


@pytest.mark.parametrize("mode", SYNC + ASYNC)
@pytest.mark.parametrize(
    ("given", "sync_by", "async_by"),
    [
        ("", "network", "network"),
        ("transport=sync", "sync", "sync"),
        ("transport=async", "nothing", "async"),
        ("transport=both", "both", "both"),
        ("async_transport=async", "nothing", "other"),
        ("async_transport=both", "nothing", "other"),
        ("client", "client", "client"),
        ("async_client", "nothing", "async_client"),
        ("transport=HttpxTransport(async_client=...)", "nothing", "async_client"),
        ("client, async_client", "client", "async_client"),
        ("client, async_transport=async", "client", "other"),
        ("transport=sync, async_transport=async", "sync", "other"),
        ("transport=both, async_transport=async", "both", "other"),
        ("transport=sync, async_client", "sync", "async_client"),
        ("transport=both, async_client", "both", "async_client"),
    ],
)
def test_sync_and_async_calls_use_the_transport_or_client_passed_for_them(
    mode: Mode, given: str, sync_by: str, async_by: str, network: ByteServer
) -> None:
    served: list[str] = []
    expected = sync_by if mode == "sync" else async_by

    async def test() -> None:
        made = arguments(given, served)
        async with in_mode(mode, Flux0(network.url, **made)) as either:
            if expected == "nothing":
                with pytest.raises(Flux0Error, match=r"only an async transport: .* end in _async"):
                    await either.agents.list_async()
            else:
                assert list(await either.agents.list_async()) == []
        for name in made.keys() & {"client", "async_client"}:
            assert not made[name].is_closed

    run(mode, test)

    assert served == [name for name in (expected,) if name not in ("network", "nothing")]
    assert len(network.requests) == (expected == "network")


@in_every_mode
async def test_errors_of_an_httpx2_client_are_converted(mode: Mode) -> None:
    httpx2 = pytest.importorskip("httpx2", reason="httpx2 needs Python 3.11")

    def fail(_request: object) -> object:
        raise httpx2.ReadTimeout("no response")

    network = httpx2.MockTransport(fail)
    options: dict[str, Any] = (
        {"client": httpx2.Client(transport=network)}
        if mode == "sync"
        else {"async_client": httpx2.AsyncClient(transport=network)}
    )
    flux0 = Flux0(**options, retry_config=RetryConfig("none"))
    with pytest.raises(ReadTimeout):
        await in_mode(mode, flux0).agents.list_async()


@in_every_mode
async def test_clients_of_a_shared_transport_are_closed_separately(mode: Mode) -> None:
    class Several(Both, Shared):
        def for_client(self) -> Both:
            own.append(Both("", []))
            return own[-1]

    own = list[Both]()
    shared = Several("", [])
    for options in ({"transport": shared}, {"async_transport": shared, "transport": Sync("", [])}):
        await in_mode(mode, Flux0(**cast("Any", options))).close_async()
    assert [bool(each.closes) for each in own] == [True, mode != "sync"]
    assert shared.closes == 0


# --- rejected arguments


@pytest.mark.parametrize(
    ("given", "argument"),
    [
        ("transport=sync, client", "client"),
        ("transport=both, client", "client"),
        ("transport=async, client", "client"),
        ("async_transport=async, async_client", "async_client"),
        ("transport=async, async_transport=async", "transport"),
        ("transport=async, async_client", "transport"),
    ],
)
def test_two_transports_for_the_same_calls_are_rejected(given: str, argument: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot be passed together") as caught:
        Flux0(**arguments(given, []))

    assert caught.value.argument == argument


class NoBuilder:
    def send(self, request: object) -> None: ...


class SyncSend(NoBuilder):
    def build_request(self, *args: object, **options: object) -> None: ...


class AsyncSend:
    async def send(self, request: object) -> None: ...

    def build_request(self, *args: object, **options: object) -> None: ...


@pytest.mark.parametrize(
    ("argument", "value", "problem"),
    [
        ("transport", object(), "must have a method send or send_async"),
        ("transport", "http://127.0.0.1:8080", "must have a method send or send_async"),
        ("transport", AsyncSend(), "has an async method send: rename it to send_async"),
        (
            "transport",
            httpx.Client(),
            r"pass it as client=, or transport=flux0.HttpxTransport\(it\)",
        ),
        ("transport", httpx.AsyncClient(), "pass it as async_client="),
        (
            "transport",
            httpx.HTTPTransport(),
            r"pass httpx.Client\(transport=it\) as client=, or .*\(httpx.Client\(transport=it\)\)",
        ),
        (
            "async_transport",
            httpx.AsyncHTTPTransport(),
            r"pass httpx.AsyncClient\(transport=it\) as async_client=",
        ),
        ("transport", requests.Session(), r"pass transport=flux0.RequestsTransport\(it\)"),
        ("transport", urllib3.PoolManager(), r"pass transport=flux0.Urllib3Transport\(it\)"),
        ("transport", Sync, r"is the class Sync: pass Sync\(\)"),
        ("async_transport", object(), "must have a method send_async"),
        ("async_transport", Sync("sync", []), "must have a method send_async"),
        ("client", object(), "has no build_request"),
        ("client", NoBuilder(), "has no build_request"),
        ("client", AsyncSend(), "pass it as async_client="),
        ("client", httpx.AsyncClient(), "pass it as async_client="),
        ("client", httpx.Client, r"is the class Client: pass Client\(\)"),
        ("client", requests.Session(), r"pass transport=flux0.RequestsTransport\(it\)"),
        ("async_client", object(), "has no build_request"),
        ("async_client", SyncSend(), "pass it as client="),
        ("async_client", httpx.Client(), "pass it as client="),
        ("client", HttpxTransport(), "is a transport: pass it as transport="),
    ],
)
def test_error_for_an_argument_of_wrong_type_says_how_to_fix_it(
    argument: str, value: object, problem: str
) -> None:
    with pytest.raises(InvalidArgument, match=problem) as caught:
        Flux0(**{argument: value})  # type: ignore[arg-type]

    assert caught.value.argument == argument


def test_repr_of_transports_names_the_class_of_their_client() -> None:
    async def over_aiohttp() -> str:
        async with aiohttp.ClientSession(headers={"authorization": "secret"}) as session:
            return repr(AiohttpTransport(session))

    assert asyncio.run(over_aiohttp()) == "AiohttpTransport(session=<ClientSession>)"
    shown: dict[object, str] = {
        HttpxTransport(): "HttpxTransport()",
        HttpxTransport(httpx.Client(auth=("ada", "secret"))): "HttpxTransport(client=<Client>)",
        HttpxTransport(async_client=httpx.AsyncClient()): (
            "HttpxTransport(async_client=<AsyncClient>)"
        ),
        RequestsTransport(requests.Session()): "RequestsTransport(session=<Session>)",
        Urllib3Transport(urllib3.PoolManager()): ("Urllib3Transport(pool_manager=<PoolManager>)"),
        FakeTransport(): "<FakeTransport, 0 calls>",
    }
    assert {transport: repr(transport) for transport in shown} == shown


@pytest.mark.parametrize("patched", [False, True])
def test_process_with_sockets_of_eventlet_is_rejected(
    monkeypatch: pytest.MonkeyPatch, *, patched: bool
) -> None:
    def is_monkey_patched(module: str) -> bool:
        return patched and module == "socket"

    patcher = SimpleNamespace(is_monkey_patched=is_monkey_patched)
    monkeypatch.setitem(sys.modules, "eventlet", SimpleNamespace(patcher=patcher))
    if patched:
        problem = r"eventlet has replaced the sockets .*: use threads or asyncio"
        with pytest.raises(Flux0Error, match=problem):
            Flux0()
    else:
        Flux0().close()
