"""If the user's code raises an error of flux0 during a call, the call is not retried."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from typing import Any

import aiohttp
import pytest
import requests
import urllib3
from attrs import define, field
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

from flux0 import BackoffStrategy, ConnectError, Flux0, Flux0Error, RetryConfig
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import http_response
from support import modes
from support.in_memory import SSE, chunk, in_every_mode, script, scripted_response
from support.modes import in_mode, run
from support.over_httpx import FAMILY, OverHttpx
from support.sending import OK, over
from support.transports import LIBRARIES, TRANSPORTS, Mode, Way

EAGER = RetryConfig("backoff", BackoffStrategy(1, 1, 1, 60_000), max_attempts=3)
NO_RETRIES = RetryConfig("none")
SERVER_IS_DOWN = "http://127.0.0.1:1"
TURN = http_response(chunk("a"), headers=list(SSE.items()), framing="chunked")
AGENT = b'{"id": "a", "type": "t", "name": "n", "created_at": "2026-01-01T00:00:00Z"}'


@define
class Audit:
    """User code that calls a server which is down, and records the errors of these calls."""

    way: Way
    errors: list[Flux0Error] = field(factory=list[Flux0Error])

    def __call__(self, *_: object, **__: object) -> Any:
        with Flux0(SERVER_IS_DOWN, transport=self.way.make_transport()) as other:
            try:
                other.agents.list(retries=NO_RETRIES)
            except Flux0Error as error:
                self.errors.append(error)
                raise

    async def call_async(self, *_: object, **__: object) -> Any:
        async with Flux0(SERVER_IS_DOWN, transport=self.way.make_transport()) as other:
            try:
                await other.agents.list_async(retries=NO_RETRIES)
            except Flux0Error as error:
                self.errors.append(error)
                raise


# The keys are libraries. Each function returns a client that calls `audit` at the place `where`.


def httpx_client(audit: Audit, where: str) -> Any:
    library: Any = import_module(audit.way.transport)
    prefix = "" if audit.way.mode == "sync" else "Async"

    class Auth(library.Auth):  # type: ignore[misc]
        def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:
            if where == "after: auth":
                yield request
            audit()

        async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
            if where == "after: auth":
                yield request
            await audit.call_async()

    options: dict[str, Any] = {"auth": Auth()} if "auth" in where else {}
    if "hook" in where:
        options["event_hooks"] = {where.split()[1]: [audit.call_async if prefix else audit]}
    return getattr(library, f"{prefix}Client")(**options)


def requests_client(audit: Audit, where: str) -> Any:
    session = requests.Session()
    if where == "after: hook":
        session.hooks["response"] = audit
    elif where == "before: auth":
        session.auth = type("Auth", (AuthBase,), {"__call__": audit})()
    else:

        class Adapter(HTTPAdapter):
            def send(self, *args: Any, **options: Any) -> Any:
                if where.startswith("after"):
                    super().send(*args, **options).close()
                audit()

        session.mount("http://", Adapter())
    return session


def urllib3_client(audit: Audit, where: str) -> Any:
    class Manager(urllib3.PoolManager):
        def urlopen(self, *args: Any, **options: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            if where.startswith("after"):
                super().urlopen(*args, **options).release_conn()
            audit()

    return Manager()


def aiohttp_client(audit: Audit, where: str) -> Any:
    async def middleware(request: Any, handler: Any) -> Any:
        if where.startswith("after"):
            (await handler(request)).release()
        await audit.call_async()

    trace = aiohttp.TraceConfig()
    if "trace" in where:
        on = trace.on_request_end if where.startswith("after") else trace.on_request_start
        on.append(audit.call_async)
        return aiohttp.ClientSession(trace_configs=[trace])
    return aiohttp.ClientSession(middlewares=[middleware])


CLIENTS: dict[str, tuple[Callable[[Audit, str], Any], tuple[str, ...]]] = {
    "httpx": (
        httpx_client,
        ("before: request hook", "after: response hook", "before: auth", "after: auth"),
    ),
    "requests": (
        requests_client,
        ("after: hook", "before: auth", "before: adapter", "after: adapter"),
    ),
    "urllib3": (urllib3_client, ("before: manager", "after: manager")),
    "aiohttp": (
        aiohttp_client,
        ("before: middleware", "after: middleware", "before: trace", "after: trace"),
    ),
}
CLIENTS["httpx2"] = CLIENTS["httpx"]


@asynccontextmanager
async def transport_with(audit: Audit, where: str) -> AsyncGenerator[Any, None]:
    client = CLIENTS[audit.way.transport][0](audit, where)
    kind: Any = getattr(import_module("flux0"), TRANSPORTS[audit.way.transport][0])
    has_async_client = "httpx" in audit.way.transport and audit.way.mode != "sync"
    yield kind(async_client=client) if has_async_client else kind(client)
    if has_async_client:
        await client.aclose()
    elif audit.way.transport == "aiohttp":
        await client.close()
    elif audit.way.transport != "urllib3":
        client.close()


def cases() -> list[tuple[Way, str]]:
    return [(way, where) for way in LIBRARIES for where in CLIENTS[way.transport][1]]


@pytest.mark.parametrize(("way", "where"), cases(), ids=str)
@pytest.mark.parametrize("message", [True, False], ids=["message", "session"])
def test_post_is_sent_once_if_user_code_raises_an_error_of_flux0(
    way: Way, where: str, *, message: bool
) -> None:
    audit = Audit(way)

    async def test() -> None:
        async with transport_with(audit, where) as transport:
            flux0 = Flux0(server.url, transport=transport, retry_config=EAGER)
            client = in_mode(way.mode, flux0)
            sessions = client.sessions
            send = partial(sessions.create_event_async, session_id="s", content="Hi")
            create = partial(sessions.create_async, agent_id="a")
            with pytest.raises(ConnectError) as caught:
                await (send if message else create)()
        (raised,) = audit.errors
        assert caught.value is raised
        assert raised.from_user_code
        assert raised.sent == ("maybe" if where.startswith("after") else "no")
        assert raised.operation == "agents.list"

    with ByteServer(TURN) as server:
        run(way.mode, test)
        assert len(server.requests) == where.startswith("after")


@pytest.mark.parametrize(
    ("way", "is_async"),
    [(way, False) for way in LIBRARIES] + [(way, True) for way in LIBRARIES if way.mode != "sync"],
    ids=str,
)
def test_header_function_that_raises_an_error_of_flux0_is_called_once(
    way: Way, *, is_async: bool
) -> None:
    # aiohttp has no sync calls, so the sync header function makes its call over httpx.
    audit = Audit(way if is_async or way.transport != "aiohttp" else Way("httpx", "sync"))

    async def test() -> None:
        token = audit.call_async if is_async else audit
        flux0 = Flux0(
            server.url,
            transport=way.make_transport(),
            retry_config=EAGER,
            headers={"authorization": token},
        )
        async with in_mode(way.mode, flux0) as client:
            with pytest.raises(ConnectError) as caught:
                await client.sessions.create_async(agent_id="a")
        (raised,) = audit.errors
        assert caught.value is raised
        assert (raised.sent, raised.from_user_code, raised.attempts) == ("no", True, 1)

    with ByteServer(TURN) as server:
        run(way.mode, test)
        assert server.requests == ()


class FailingLogger:
    """A logger that raises an error when it logs a response."""

    def debug(self, msg: str, *args: Any) -> None:
        if "returned" in msg:
            raise ConnectError("the log server is down")


@in_every_mode
async def test_post_is_sent_once_if_the_debug_logger_raises_an_error_of_flux0(mode: Mode) -> None:
    transport = script(*(scripted_response(b"{}", status=201) for _ in range(3)))
    real = Flux0(transport=transport, retry_config=EAGER, debug_logger=FailingLogger())
    async with in_mode(mode, real) as flux0:
        with pytest.raises(ConnectError, match="log server") as caught:
            await flux0.sessions.create_async(agent_id="a")
    assert caught.value.sent == "maybe"
    assert len(transport.requests) == 1


@in_every_mode
async def test_errors_of_a_custom_transport_are_retried(mode: Mode) -> None:
    transport = script(ConnectError("refused"), scripted_response(AGENT, status=201))
    real = Flux0(transport=transport, retry_config=EAGER)
    async with in_mode(mode, real) as flux0:
        await flux0.agents.create_async(name="a", type_="t")
    assert len(transport.requests) == 2


@over(*FAMILY)
async def test_get_is_not_retried_if_a_trace_function_fails_while_the_body_is_read(
    way: OverHttpx,
) -> None:
    """A hook can add a trace function to the request. httpcore calls the trace function."""
    raised = ConnectError("the trace server is down")

    def trace(event: str, _: Any) -> None:
        if event == "http11.receive_response_body.started":
            raise raised

    def add_trace(request: Any) -> None:
        own = request.extensions["trace"]

        def both(event: str, info: Any) -> Any:
            trace(event, info)
            return own(event, info)

        request.extensions["trace"] = both

    hooks = {"request": [way.act(add_trace)]}
    with ByteServer(OK) as server:
        async with way.closing(way.client(event_hooks=hooks)) as transport:
            client = modes.in_mode(way.mode, Flux0(server.url, transport=transport))
            with pytest.raises(ConnectError) as caught:
                await client.agents.list_async()
        assert caught.value is raised
        assert len(server.requests) == 1
