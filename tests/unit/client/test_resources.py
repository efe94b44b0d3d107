"""The sync and the async version of each method are equal, and sessions belong to a user."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest

from flux0 import (
    AsyncConversation,
    AsyncEventStream,
    BackgroundTurn,
    BackgroundTurns,
    Conversation,
    EventStream,
    Flux0,
)
from flux0.adapters.httpx import HttpxTransport
from flux0.client.resources import AgentsResource, SessionsResource
from flux0.domain.errors import ClientClosed, EventTooLarge, Flux0Error, InvalidArgument
from flux0.ports import Request, Response
from flux0.testing import FakeTransport
from support.driving import Slow
from support.in_memory import (
    SSE,
    Script,
    chunk,
    in_both_loops,
    in_every_mode,
    response_from,
    script,
    scripted_response,
    tape,
)
from support.modes import in_mode, result_of
from support.transports import Mode

# For each annotation of a sync method, the async version's annotation.
ASYNC_NAMES = {
    "EventStream": "AsyncEventStream",
    "Conversation": "AsyncConversation",
    "Iterator[str]": "AsyncIterator[str]",
    "Iterator[bytes]": "AsyncIterator[bytes]",
    "Response[ByteStream]": "Response[AsyncByteStream]",
}
OPTIONS = ("retries", "server_url", "timeout_ms", "http_headers", "extra_query", "extra_body")


def methods(kind: type[Any]) -> dict[str, Any]:
    """Return the public methods that a class defines, by name."""
    return {
        name: member
        for name, member in vars(kind).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }


RESOURCES: tuple[type[Any], ...] = (AgentsResource, SessionsResource)
PAIRS = {
    f"{kind.__name__}.{name}": (method, getattr(kind, f"{name}_async", None))
    for kind in (*RESOURCES, Flux0, HttpxTransport, BackgroundTurns, BackgroundTurn)
    for name, method in methods(kind).items()
    # These methods never wait, so they need no async version.
    if not name.endswith("_async") and name not in ("with_options", "stats", "end_relays")
} | {
    f"Conversation.{name}": (method, getattr(AsyncConversation, name, None))
    for name, method in methods(Conversation).items()
}


@pytest.mark.parametrize(("method", "async_method"), PAIRS.values(), ids=PAIRS)
def test_sync_and_async_methods_have_matching_signatures(
    method: Callable[..., Any], async_method: Callable[..., Any] | None
) -> None:
    assert async_method is not None, "the method has no async version"
    one, other = inspect.signature(method), inspect.signature(async_method)
    opens = other.return_annotation in {"UnawaitedTurn", "AsyncIterator[bytes]"}
    assert inspect.iscoroutinefunction(inspect.unwrap(async_method)) is not opens
    assert not inspect.iscoroutinefunction(method)

    assert list(other.parameters.values()) == [
        each.replace(annotation=ASYNC_NAMES.get(each.annotation, each.annotation))
        for each in one.parameters.values()
    ]
    expected = ASYNC_NAMES.get(one.return_annotation, one.return_annotation)
    returned = other.return_annotation.replace("UnawaitedTurn", "AsyncEventStream")
    assert returned == expected


def test_sync_and_async_streams_have_the_same_public_names() -> None:
    def public(kind: type[Any]) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(AsyncEventStream) - public(EventStream) == {"close_async", "close_soon"}
    assert public(EventStream) - public(AsyncEventStream) == {"close"}
    for name in public(EventStream) & public(AsyncEventStream):
        one, other = getattr(EventStream, name), getattr(AsyncEventStream, name)
        if inspect.isfunction(one):
            signatures = inspect.signature(one), inspect.signature(other)
            assert signatures[0].parameters == signatures[1].parameters, name
            expected = ASYNC_NAMES.get(
                signatures[0].return_annotation, signatures[0].return_annotation
            )
            assert signatures[1].return_annotation == expected, name


# Public methods that send no request, or that read the stream of a call.
OTHER_METHODS = {
    *("close", "close_async", "close_soon", "with_options"),
    *("text", "final_messages", "confirm", "relay"),
}


@pytest.mark.parametrize(
    "kind",
    [*RESOURCES, Flux0, Conversation, AsyncConversation, EventStream, AsyncEventStream],
)
def test_every_call_accepts_the_call_options(kind: type[Any]) -> None:
    for name in methods(kind).keys() - OTHER_METHODS:
        parameters = inspect.signature(getattr(kind, name)).parameters
        assert set(OPTIONS) <= parameters.keys(), name


@pytest.mark.parametrize("kind", RESOURCES)
def test_all_arguments_of_a_resource_are_passed_by_name(kind: type[Any]) -> None:
    for method in methods(kind).values():
        _, *parameters = inspect.signature(method).parameters.values()
        assert all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in parameters)


class Calls:
    """Records the use cases instead of running them."""

    def __init__(self) -> None:
        self.made: list[tuple[object, object, tuple[object, ...]]] = []

    def run(self, usecase: object, options: object, *args: object) -> None:
        self.made.append((usecase, options, args))

    async def run_async(self, usecase: object, options: object, *args: object) -> None:
        self.run(usecase, options, *args)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind in RESOURCES
        for name in methods(kind)
        if not name.startswith("create_event") and not name.endswith("_async")
    ],
)
def test_each_argument_is_passed_to_the_use_case(kind: type[Any], name: str) -> None:
    calls = Calls()
    resource = kind(calls)
    parameters = inspect.signature(getattr(kind, name)).parameters.keys() - {"self", "user"}
    values = {each: object() for each in parameters - set(OPTIONS)}
    getattr(resource, name)(**values, timeout_ms=1)
    asyncio.run(getattr(resource, f"{name}_async")(**values, timeout_ms=1))
    sync_call, async_call = calls.made
    assert sync_call == async_call
    _, options, args = sync_call
    assert options == {"timeout_ms": 1}
    assert set(args) == set(values.values())


@in_every_mode
async def test_each_argument_of_a_message_is_sent(mode: Mode) -> None:
    transport = script(
        scripted_response(chunk("a"), headers=SSE), scripted_response(b'{"data": []}')
    )
    options: dict[str, Any] = {"transport" if mode == "sync" else "async_transport": transport}
    async with in_mode(mode, Flux0(**options)) as flux0:
        stream = await flux0.sessions.create_event_async(
            session_id="s", content="Hi", type_="custom", source="system", http_headers={"x-a": "1"}
        )
        await anext(stream)
        assert len(await result_of(stream.stored_events())) == 0
    request, listing = transport.requests
    assert json.loads(request.body or b"") == {
        "type": "custom",
        "source": "system",
        "content": "Hi",
    }
    assert "/sessions/s/events?" in listing.url
    assert [each.headers.get("x-a") for each in transport.requests] == ["1", "1"]


@in_every_mode
async def test_size_limits_of_the_client_apply_to_a_turn(mode: Mode) -> None:
    pieces = [chunk("a"), chunk("b" * 1000), chunk("c" * 2000)]
    transport = script(scripted_response(*pieces, headers=SSE))
    client = Flux0(transport=transport, max_event_bytes=2000, max_turn_bytes=1000)
    async with in_mode(mode, client) as flux0:
        stream = await flux0.sessions.create_event_async(session_id="s", content="Hi")
        await anext(stream)
        await anext(stream)
        assert [message.text for message in stream.messages] == ["a"]
        with pytest.raises(EventTooLarge):
            await anext(stream)


@in_every_mode
async def test_seconds_of_a_stream_include_the_wait_for_the_response(mode: Mode) -> None:
    transport = Slow([scripted_response(chunk("a"), headers=SSE)], seconds=2.0)
    async with in_mode(mode, Flux0(transport=transport)) as flux0:
        stream = await flux0.sessions.create_event_async(session_id="s", content="Hi")
        assert len([event async for event in stream]) == 1
    assert stream.seconds == 2.0


@in_every_mode
async def test_next_message_of_a_session_closes_the_open_stream(mode: Mode) -> None:
    turns = [tape(chunk("a"), chunk("b")) for _ in range(2)]
    responses = [response_from(turn, headers=SSE) for turn in turns]
    async with in_mode(mode, Flux0(transport=script(*responses))) as flux0:
        first, second = [
            await flux0.sessions.create_event_async(session_id="s", content="Hi") for _ in turns
        ]
        assert [turn.releases for turn in turns] == [1, 0]
        with pytest.raises(ClientClosed):
            await anext(first)
        await anext(second)


@in_every_mode
async def test_stream_is_closed_if_the_client_is_closed_with_its_response(mode: Mode) -> None:
    class Closing(Script):
        def send(self, request: Request) -> Response[Any]:
            client.close()
            return super().send(request)

    turn = tape(chunk("a"))
    response = response_from(turn, headers=SSE)
    client = Flux0(transport=Closing([response]))
    stream = await in_mode(mode, client).sessions.create_event_async(session_id="s", content="Hi")
    with pytest.raises(ClientClosed):
        await anext(stream)
    assert turn.releases
    assert response.body is not None  # Its finalizer has not released the body.


@in_both_loops
async def test_sync_message_of_an_async_client_is_rejected_and_keeps_the_open_turn(
    mode: Mode,
) -> None:
    transport = script(scripted_response(chunk("a"), headers=SSE))
    async with Flux0(async_transport=transport) as flux0:
        stream = await flux0.sessions.create_event_async(session_id="s", content="Hi")
        with pytest.raises(Flux0Error, match="only an async transport"):
            flux0.sessions.create_event(session_id="s", content="Hi")
        assert len([event async for event in stream]) == 1


def test_repr_of_resources_shows_the_url_without_credentials() -> None:
    with Flux0("http://ann:secret@localhost:1", transport=script()) as flux0:
        assert repr(flux0.agents) == "AgentsResource('http://localhost:1')"
        assert repr(flux0.sessions) == "SessionsResource('http://localhost:1')"


# --- the user of a session


@in_every_mode
async def test_user_of_sessions_is_the_user_of_a_conversation(mode: Mode) -> None:
    fake = FakeTransport()

    async with in_mode(mode, Flux0(transport=fake, headers={"cookie": "a=1"})) as flux0:
        for user in ("ada", "Ada Lovelace", "José", "100%", 'a"b;c,d\\e'):
            chat = await flux0.conversation_async(agent=fake.agent_id, user=user)
            created = await flux0.sessions.create_async(agent_id=fake.agent_id, user=user)
            listed = await flux0.sessions.list_async(
                user=user, agent_id=fake.agent_id, http_headers={"cookie": "flux0_user_sub=eve"}
            )
            assert [session.id for session in listed] == [chat.session_id, created.id]
        await flux0.sessions.create_async(agent_id=fake.agent_id)
        assert len(await flux0.sessions.list_async()) == 1

    cookies = [call.headers["cookie"] for call in fake.calls]
    assert cookies[:3] == ["a=1; flux0_user_sub=ada"] * 3
    assert cookies[-1] == "a=1"


@in_every_mode
async def test_wrong_user_is_rejected_before_a_request_is_sent(mode: Mode) -> None:
    fake = FakeTransport()
    wrong: list[Any] = ["", 7, "\ud800"]

    async with in_mode(mode, Flux0(transport=fake)) as flux0:
        for user in wrong:
            with pytest.raises(InvalidArgument, match="user"):
                await flux0.sessions.list_async(user=user)
            with pytest.raises(InvalidArgument, match="user"):
                await flux0.sessions.create_async(agent_id=fake.agent_id, user=user)

    assert fake.calls == ()
