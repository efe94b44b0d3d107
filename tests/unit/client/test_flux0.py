"""The options of a client and of a call, and closing."""

from __future__ import annotations

import copy
import gc
import inspect
import json
import pickle
import sys
from collections.abc import Callable
from typing import Any, cast

import anyio
import httpx
import pytest

from flux0 import (
    AsyncConversation,
    AsyncEventStream,
    BackgroundTurn,
    BackgroundTurns,
    ChunkEvent,
    Conversation,
    EventStream,
    Flux0,
    HttpxTransport,
    MemoryTurnStore,
    RetryConfig,
    __version__,
)
from flux0.domain.errors import (
    ClientClosed,
    ConnectError,
    EventTooLarge,
    Flux0Error,
    InvalidArgument,
    ResponseTooLarge,
)
from flux0.flows import CallRequest
from flux0.observers import Call, Observer, TurnEnd
from flux0.testing import FakeTransport, Respond
from support.driving import Slow, Time
from support.in_memory import (
    SESSION,
    SSE,
    Script,
    Step,
    chunk,
    in_both_loops,
    in_every_mode,
    response_from,
    script,
    scripted_response,
    tape,
)
from support.modes import in_mode, unwrapped
from support.named_transports import Async, Both, Sync
from support.transports import Mode

NO_AGENTS = b'{"data": []}'
DEFAULT_URL = "http://127.0.0.1:8080/api/agents"


def agents(number: int = 1) -> Script:
    return script(*(scripted_response(NO_AGENTS) for _ in range(number)))


def request_of(flux0: Flux0, transport: Script, **options: Any) -> CallRequest:
    """List the agents and return the request."""
    flux0.agents.list(**options)
    return transport.requests[-1]


# --- the server's URL


@pytest.mark.parametrize(
    ("environment", "argument", "url"),
    [
        (None, None, "http://127.0.0.1:8080"),
        ("", None, "http://127.0.0.1:8080"),
        ("https://example.org/base/", None, "https://example.org/base"),
        ("https://example.org", "http://127.0.0.1:9000/", "http://127.0.0.1:9000"),
        ("no URL", "http://127.0.0.1:9000", "http://127.0.0.1:9000"),
    ],
)
def test_server_url_comes_from_argument_or_environment_or_default(
    environment: str | None, argument: str | None, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLUX0_SERVER_URL", raising=False)
    if environment is not None:
        monkeypatch.setenv("FLUX0_SERVER_URL", environment)
    transport = agents(2)

    with Flux0(argument, transport=transport) as flux0:
        assert request_of(flux0, transport).url == f"{url}/api/agents"
        call = request_of(flux0, transport, server_url="https://other.example/")
        assert call.url == "https://other.example/api/agents"


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        ({}, "Basic bWU6c2VjcmV0"),
        ({"Authorization": "Bearer mine"}, "Bearer mine"),
        ({"Authorization": lambda: "Bearer mine"}, "Bearer mine"),
    ],
)
def test_authorization_header_takes_precedence_over_credentials_in_url(
    headers: dict[str, Any], sent: str
) -> None:
    transport = agents(4)
    elsewhere = "http://127.0.0.2"

    with Flux0("http://me:secret@127.0.0.1", transport=transport, headers=headers) as flux0:
        request = request_of(flux0, transport)
        assert "secret" not in repr((flux0, request))
        request_of(flux0, transport, server_url=elsewhere)
        request_of(flux0, transport, server_url=elsewhere, http_headers={"authorization": "own"})
        request_of(flux0, transport, server_url="http://me@127.0.0.2")

    own = None if sent.startswith("Basic") else sent
    authorizations = [request.headers.get("authorization") for request in transport.requests]
    assert authorizations == [sent, own, "own", own or "Basic bWU6"]


def test_credentials_in_server_url_of_a_call_are_sent_with_that_call() -> None:
    transport = agents(2)

    with Flux0("http://other:secret@127.0.0.1", transport=transport) as flux0:
        for headers, sent in ((None, "Basic bWU6"), ({"authorization": "Bearer 1"}, "Bearer 1")):
            request = request_of(flux0, transport, server_url="http://me@h", http_headers=headers)
            assert (request.url, request.headers["authorization"]) == ("http://h/api/agents", sent)


def test_token_of_the_environment_is_sent_to_the_servers_own_url_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLUX0_TOKEN", "secret")
    transport = script(*[scripted_response(NO_AGENTS) for _ in range(4)])
    Flux0(transport=transport).agents.list()
    Flux0(transport=transport).agents.list(server_url="http://other.example")
    Flux0("http://ada:pw@127.0.0.1:8080", transport=transport).agents.list()
    Flux0(transport=transport, headers={"Authorization": "Bearer own"}).agents.list()

    values = [request.headers.get("authorization") for request in transport.requests]
    assert values == ["Bearer secret", None, "Basic YWRhOnB3", "Bearer own"]


@pytest.mark.parametrize(("name", "sent"), [("x-team", "call"), ("cookie", "call=1; client=1")])
@pytest.mark.parametrize("computed", [(), ("client",), ("call",), ("client", "call")])
def test_fields_of_a_call_replace_the_fields_of_the_client_except_that_cookies_are_joined(
    name: str, sent: str, computed: tuple[str, ...]
) -> None:
    def field(value: str) -> Any:
        text = f"{value}=1" if name == "cookie" else value
        return (lambda: text) if value in computed else text

    transport = agents()
    with Flux0(transport=transport, headers={name: field("client")}) as flux0:
        request = request_of(flux0, transport, http_headers={name.upper(): field("call")})
    if len(computed) == 2:  # Each name has one function.
        sent = sent.partition("; ")[0]
    assert sorted(request.headers[name].split("; ")) == sent.split("; ")


# --- options


@in_every_mode
async def test_each_argument_of_a_new_conversation_is_sent(mode: Mode) -> None:
    transport = script(scripted_response(json.dumps(SESSION).encode()))
    new: dict[str, Any] = {"title": "Fog", "metadata": {"a": 1}, "mode": "record"}
    async with in_mode(mode, Flux0(transport=transport)) as flux0:
        conversation = await flux0.conversation_async(
            agent="agent12345", user="ada", **new, extra_body={"b": 2}, http_headers={"x-c": "3"}
        )
    (request,) = transport.requests
    assert json.loads(request.body or b"") == {"agent_id": "agent12345", **new, "b": 2}
    assert (request.headers["cookie"], request.headers["x-c"]) == ("flux0_user_sub=ada", "3")
    assert conversation.session_id == SESSION["id"]


@in_every_mode
async def test_options_of_the_new_client_apply_to_its_calls_only(mode: Mode) -> None:
    transport = script(*[scripted_response(NO_AGENTS) for _ in range(3)])
    client = Flux0(transport=transport, headers={"x-a": "1"}, timeout_ms=50_000)
    other = client.with_options(
        timeout_ms=30_000, http_headers={"x-b": "2"}, stream_idle_timeout_ms=7_000
    )

    await in_mode(mode, other).agents.list_async()
    await in_mode(mode, client).agents.list_async()
    await in_mode(mode, client.with_options()).agents.list_async()

    first, second, third = transport.requests
    assert (first.headers.get("x-a"), first.headers.get("x-b")) == ("1", "2")
    assert first.deadline is not None
    assert first.deadline.limit == 30
    for request in (second, third):
        assert "x-b" not in request.headers
        assert request.deadline is not None
        assert request.deadline.limit == 50


@in_every_mode
async def test_closing_a_client_with_other_options_has_no_effect(mode: Mode) -> None:
    transport = agents()
    async with in_mode(mode, Flux0(transport=transport)) as flux0:
        await in_mode(mode, unwrapped(flux0).with_options(timeout_ms=1000)).close_async()
        assert not flux0.is_closed
        assert transport.closes == 0
        assert list(await flux0.agents.list_async()) == []


@in_both_loops
async def test_client_uses_the_clock_of_its_transport(mode: Mode) -> None:
    for argument in ("transport", "async_transport"):
        fake = FakeTransport()
        before = fake.clock.now()
        fake.inject(Respond(503, retry_after=20))
        options: dict[str, Any] = {argument: fake}
        async with Flux0(**options) as flux0:
            await flux0.agents.list_async()
        assert fake.clock.now() - before == 20


def test_call_without_options_uses_the_defaults() -> None:
    transport = agents()

    with Flux0(transport=transport) as flux0:
        request = request_of(flux0, transport)

    timeout = request.timeout
    assert (timeout.connect, timeout.pool, timeout.read, timeout.write) == (10, 10, 60, 60)
    assert request.deadline is None
    assert request.retries is not None
    assert request.retries.max_attempts == 3
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert request.headers["user-agent"] == f"flux0-client/{__version__} Python/{python}"


MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("function", "parameter", "default"),
    [
        (Flux0, "max_event_bytes", 16 * MIB),
        (Flux0, "max_turn_bytes", 64 * MIB),
        (Flux0, "max_body_bytes", 64 * MIB),
        (BackgroundTurns, "max_turn_bytes", 16 * MIB),
        (MemoryTurnStore, "keep_seconds", 300),
        (Conversation.find_turn, "wait_ms", 1_000),
        (AsyncConversation.find_turn, "wait_ms", 1_000),
        (EventStream.relay, "heartbeat_ms", 15_000),
        (AsyncEventStream.relay, "heartbeat_ms", 15_000),
        (BackgroundTurn.relay, "heartbeat_ms", 15_000),
        (BackgroundTurn.relay_async, "heartbeat_ms", 15_000),
    ],
)
def test_default_of_a_limit_is_the_documented_default(
    function: Callable[..., object], parameter: str, default: int
) -> None:
    assert inspect.signature(function).parameters[parameter].default == default


@in_every_mode
async def test_timeout_ms_of_a_call_overrides_the_client(mode: Mode) -> None:
    for client, call, seconds in (
        (20_000, None, 20),
        (20_000, 5_000, 5),
        (5_000, 120_000, 120),
        (None, 5_000, 5),
    ):
        transport = agents()
        flux0 = Flux0(transport=transport, timeout_ms=client, retry_config=RetryConfig("none"))
        async with in_mode(mode, flux0) as opened:
            await opened.agents.list_async(timeout_ms=call)

        (request,) = transport.requests
        timeout = request.timeout
        for wait, longest in (
            (timeout.read, seconds),
            (timeout.write, seconds),
            (timeout.connect, min(seconds, 10)),
            (timeout.pool, min(seconds, 10)),
        ):
            assert wait is not None
            assert longest / 2 < wait <= longest
        assert request.deadline is not None


def test_user_agent_can_be_replaced() -> None:
    transport = agents()
    with Flux0(transport=transport, headers={"User-Agent": "mine"}) as flux0:
        assert request_of(flux0, transport).headers.get_all("user-agent") == ("mine",)


def test_sync_calls_wait_on_the_clock_of_the_sync_transport() -> None:
    time = Time()
    transport = Slow([ConnectError("refused"), scripted_response(NO_AGENTS)], time=time)
    with Flux0(transport=transport, async_transport=script()) as flux0:
        flux0.agents.list()
    assert len(time.waits) == 1


def test_retries_and_idle_timeout_of_a_call_override_the_client() -> None:
    bodies = [tape(chunk("a")) for _ in range(3)]
    transport = script(*(response_from(body, headers=SSE) for body in bodies))
    client, call = RetryConfig(max_attempts=7), RetryConfig("none")

    with Flux0(
        transport=transport, retry_config=client, stream_idle_timeout_ms=60_000, timeout_ms=30_000
    ) as flux0:
        for own in ({}, {"retries": call, "stream_idle_timeout_ms": 90_000}):
            options: dict[str, Any] = own
            list(flux0.sessions.create_event(session_id="s", content="Hi", **options))
    with Flux0(transport=transport) as flux0:
        list(flux0.sessions.create_event(session_id="s", content="Hi"))

    assert [request.retries for request in transport.requests][:2] == [client, call]
    assert [body.timeouts for body in bodies] == [[60, 60], [90, 90], [600, 600]]


BAD_OPTIONS: list[tuple[str, Any]] = [
    *(("timeout_ms", value) for value in (0, -1, "5", True)),
    *(("stream_idle_timeout_ms", value) for value in (0, float("inf"))),
    *(("server_url", value) for value in ("", 8080, "ftp://example.org")),
]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *BAD_OPTIONS,
        ("retry_config", "none"),
        ("headers", {"a": "b\r\nc: d"}),
        ("headers", {"Cookie": "a=1", "cookie": lambda: "b=2"}),
        ("max_event_bytes", 0),
        ("max_body_bytes", 1.5),
    ],
)
def test_client_rejects_invalid_options(option: str, value: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Flux0(**{option: value})

    assert caught.value.argument == option


def test_invalid_server_url_in_environment_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUX0_SERVER_URL", "127.0.0.1:8080")

    with pytest.raises(InvalidArgument, match=r"^server_url "):
        Flux0()


@in_every_mode
async def test_call_rejects_invalid_options_before_sending(mode: Mode) -> None:
    transport = script()
    bad: list[tuple[str, Any]] = [
        *BAD_OPTIONS,
        ("retries", {"strategy": "none"}),
        ("http_headers", {"a b": "c"}),
        ("http_headers", "a: b"),
        ("extra_query", "a=b"),
        ("extra_query", {"\ud800": "a"}),
        ("extra_query", {"a": "\ud800"}),
        ("extra_body", [("a", "b")]),
    ]

    async with in_mode(mode, Flux0(transport=transport)) as flux0:
        for option, value in bad:
            with pytest.raises(InvalidArgument) as caught:
                await flux0.sessions.create_event_async(
                    session_id="s", content="Hi", **{option: value}
                )
            assert caught.value.argument == option

    assert transport.requests == []


@in_every_mode
async def test_size_limits_apply_to_events_and_bodies_but_not_to_streams(mode: Mode) -> None:
    pieces: list[Step] = [chunk(f"{number}") for number in range(10)]
    transport = script(
        scripted_response(b'{"data": []}', b" " * 989),
        scripted_response(*pieces, chunk("x" * 1000), headers=SSE),
    )

    client = Flux0(transport=transport, max_body_bytes=1000, max_event_bytes=1000)
    async with in_mode(mode, client) as flux0:
        with pytest.raises(ResponseTooLarge) as too_large:
            await flux0.agents.list_async()
        stream = await flux0.sessions.create_event_async(session_id="s", content="Hi")
        for _ in pieces:
            await anext(stream)
        with pytest.raises(EventTooLarge) as caught:
            await anext(stream)

    assert too_large.value.limit == caught.value.limit == 1000


def test_signature_of_the_client_shows_only_options_that_exist() -> None:
    kinds = {each.kind for each in inspect.signature(Flux0).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds


# --- pickle, copy and repr


@in_both_loops
async def test_objects_with_connections_cannot_be_pickled_or_copied(mode: Mode) -> None:
    async with Flux0(transport=FakeTransport()) as flux0:
        agent = flux0.agents.first()
        chats = flux0.conversation(agent=agent), await flux0.conversation_async(agent=agent)
        streams = chats[0].send("Hi"), await chats[1].send("Hi")
        for each in (flux0, flux0.agents, flux0.sessions, *chats, *streams):
            for copied in (pickle.dumps, copy.copy, copy.deepcopy):
                name = type(each).__name__
                with pytest.raises(TypeError, match=f"^{name} cannot be pickled or copied, "):
                    copied(each)
        assert [type(event) for event in streams[0]] == [ChunkEvent]


# --- closing


class Recorder(Observer):
    """Records the started calls with their agents, and the ends of turns."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str | None]] = []
        self.turns: list[str] = []

    def on_call_start(self, call: Call) -> None:
        self.calls.append((call.operation, call.agent_id))

    def on_turn_end(self, call: Call, turn: TurnEnd) -> None:
        self.turns.append(turn.ending)


@in_every_mode
async def test_closing_the_client_ends_the_turn_of_a_conversation_and_reports_it(
    mode: Mode,
) -> None:
    turn, recorder = tape(chunk("a"), chunk("b")), Recorder()
    response = response_from(turn, headers=SSE)
    transport = script(scripted_response(json.dumps(SESSION).encode()), response)
    async with in_mode(mode, Flux0(transport=transport, observers=[recorder])) as flux0:
        new = await flux0.conversation_async(agent="agent12345")
        same = await flux0.conversation_async(session=new.session)
        stream = await same.send("Hi")
        await anext(stream)

    operations = ("sessions.create", "sessions.create_event")
    assert recorder.calls == [(operation, "agent12345") for operation in operations]
    while not recorder.turns:  # The event loop closes an async stream after `close_async`.
        await anyio.lowlevel.checkpoint()
    assert recorder.turns == ["closed"]
    assert turn.releases
    assert response.body is not None  # Its finalizer has not released the body.
    with pytest.raises(ClientClosed):
        await anext(stream)


@pytest.mark.usefixtures("little_garbage")
def test_turn_of_a_garbage_collected_stream_is_reported_when_the_client_is_closed() -> None:
    recorder = Recorder()
    transport = script(scripted_response(chunk("a"), headers=SSE))
    with Flux0(transport=transport, observers=[recorder]) as flux0:
        flux0.sessions.create_event(session_id="s", content="Hi")
        gc.collect()
        assert recorder.turns == []
    assert recorder.turns == ["closed"]


def test_readers_get_client_closed_even_while_the_transport_is_being_closed() -> None:
    class Closing(Script):
        def close(self) -> None:
            with pytest.raises(ClientClosed):
                next(stream)
            super().close()

    transport = Closing([scripted_response(chunk("a"), chunk("b"), headers=SSE)])
    flux0 = Flux0(transport=transport)
    stream = flux0.sessions.create_event(session_id="s", content="Hi")
    flux0.close()
    assert transport.closes == 1


@in_every_mode
async def test_calls_of_a_closed_client_raise_and_closing_it_again_has_no_effect(
    mode: Mode,
) -> None:
    transport = script()
    flux0 = in_mode(mode, Flux0(transport=transport))
    async with flux0:
        pass
    assert flux0.is_closed
    await flux0.close_async()

    calls: list[Callable[[], Any]] = [
        flux0.agents.list_async,
        lambda: flux0.agents.create_async(name="n", type_="t"),
        lambda: flux0.agents.retrieve_async(agent_id="a"),
        lambda: flux0.sessions.create_async(agent_id="a"),
        flux0.sessions.list_async,
        lambda: flux0.sessions.retrieve_async(session_id="s"),
        lambda: flux0.sessions.create_event_async(session_id="s", content="Hi"),
        lambda: flux0.sessions.list_events_async(session_id="s"),
        lambda: flux0.conversation_async(agent="a"),
    ]
    for call in calls:
        with pytest.raises(ClientClosed, match="closed"):
            await call()
    assert transport.requests == []


def test_sync_call_of_a_client_with_only_an_async_client_is_rejected() -> None:
    client = httpx.AsyncClient()
    for options in ({"async_client": client}, {"transport": HttpxTransport(async_client=client)}):
        advice = "has only an async transport: call the methods that end in _async"
        with pytest.raises(Flux0Error, match=advice):
            Flux0(**cast("Any", options)).agents.list()


def test_close_closes_only_the_sync_transport() -> None:
    sync, asynchronous = Sync("sync", []), Async("async", [])
    for flux0 in (
        Flux0(transport=sync, async_transport=asynchronous),
        Flux0(transport=Async("", [])),
    ):
        flux0.close()
        with pytest.raises(ClientClosed):
            flux0.agents.list()

    assert (sync.closes, asynchronous.both.closes) == (1, 0)


@in_both_loops
async def test_close_async_closes_both_transports(mode: Mode) -> None:
    sync, asynchronous = Sync("sync", []), Async("async", [])
    flux0 = Flux0(transport=sync, async_transport=asynchronous)

    await flux0.close_async()

    assert (sync.closes, asynchronous.both.closes) == (1, 1)
    with pytest.raises(ClientClosed):
        await flux0.agents.list_async()


@in_every_mode
async def test_with_block_closes_transport_after_an_exception(mode: Mode) -> None:
    transport = Both("both", [])

    with pytest.raises(ZeroDivisionError):
        async with in_mode(mode, Flux0(transport=transport)):
            raise ZeroDivisionError

    assert transport.closes
