"""The types of the public names. mypy and pyright check this file; it is never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from typing_extensions import assert_never, assert_type

import flux0
from flux0 import (
    Agent,
    Agents,
    AsyncConversation,
    AsyncEventStream,
    BackgroundTurn,
    BackgroundTurns,
    ChunkEvent,
    Conversation,
    EventStream,
    Flux0,
    Flux0Error,
    MemoryTurnStore,
    MessageData,
    RedisTurnStore,
    Reply,
    StatusData,
    StatusEvent,
    StreamEvent,
    ToolData,
    UnknownEvent,
)
from flux0.flows import CallRequest, Flow, SendFlow, Sleep
from flux0.models import Event
from flux0.ports import AsyncByteStream, AsyncTransport, ByteStream, Request, Response, Transport
from flux0.testing import FakeTransport
from flux0.turn_steps import Step


def stream_events_can_be_matched_by_class(event: StreamEvent) -> None:
    match event:
        case StatusEvent():
            assert_type(event.data, StatusData)
        case ChunkEvent():
            assert_type(event.seq, int)
        case UnknownEvent():
            assert_type(event.event, str)
        case _:
            assert_never(event)


def stream_events_can_be_compared_by_type(event: StreamEvent) -> None:
    if event.type == "chunk":
        assert_type(event, ChunkEvent)
    elif event.type == "status":
        assert_type(event, StatusEvent)
    else:
        assert_type(event, UnknownEvent)


def steps_have_known_types(step: Step) -> None:
    if step.type == "text-delta":
        assert_type(step.text, str)
    if step.type == "error":
        assert_type(step.error, Flux0Error | None)


def event_data_can_be_matched_by_class(event: Event) -> None:
    match event.data:
        case MessageData() as message:
            assert_type(message, MessageData)
        case StatusData() as status:
            assert_type(status, StatusData)
        case ToolData() as tool:
            assert_type(tool, ToolData)
        case other:
            assert_type(other, Mapping[str, Any])


def sync_calls_return_models(client: Flux0) -> None:
    assert_type(client.agents.list(), Agents)
    assert_type(client.agents.list()[0], Agent)
    assert_type(client.agents.list()[1:], tuple[Agent, ...])
    assert_type(client.conversation(agent="a"), Conversation)
    with client.sessions.create_event(session_id="s", content="Hi") as stream:
        assert_type(stream, EventStream)
        for event in stream:
            assert_type(event, StreamEvent)


async def async_calls_return_models(client: Flux0) -> None:
    assert_type(await client.agents.list_async(), Agents)
    assert_type(await client.conversation_async(agent="a"), AsyncConversation)
    async with await client.sessions.create_event_async(session_id="s", content="Hi") as stream:
        assert_type(stream, AsyncEventStream)
        async for event in stream:
            assert_type(event, StreamEvent)
    client.agents.list_async().data  # type: ignore[attr-defined] # pyright: ignore  # noqa: B018


def background_turns_have_relays_and_replies(conversation: Conversation) -> None:
    turns = BackgroundTurns(MemoryTurnStore(keep_seconds=60))
    turn = turns.start(conversation, "Hi", running="refuse", timeout_ms=1000)
    assert_type(turn, BackgroundTurn)
    assert_type(turn.relay(after="7"), Iterator[bytes])
    assert_type(turn.wait(), Reply)
    assert_type(turns.join("session"), BackgroundTurn | None)


async def async_background_turns_have_relays_and_replies(conversation: AsyncConversation) -> None:
    turns = BackgroundTurns(RedisTurnStore.from_url("redis://127.0.0.1"))
    turn = await turns.start_async(conversation, "Hi")
    assert_type(turn.relay_async(), AsyncIterator[bytes])
    assert_type(await turn.wait_async(), Reply)
    assert_type(await turns.stop_async("session"), bool)
    turns.start(conversation, "Hi")  # type: ignore[arg-type] # pyright: ignore


class OwnTransport:
    """A transport without a base class."""

    def send(self, request: Request) -> Response[ByteStream]:
        raise NotImplementedError

    def close(self) -> None: ...


class OwnAsyncTransport:
    """An async transport without a base class."""

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        raise NotImplementedError

    async def close_async(self) -> None: ...


class NoTransport:
    """Not a transport, because it has no method `close`."""

    def send(self, request: Request) -> Response[ByteStream]:
        raise NotImplementedError


def delayed(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
    yield Sleep(0.1)
    return (yield from send(request))


def not_a_middleware(request: CallRequest) -> Response[Any]:
    raise NotImplementedError


def client_arguments_have_precise_types() -> None:
    sync_transport: Transport = OwnTransport()
    async_transport: AsyncTransport = OwnAsyncTransport()
    Flux0(transport=sync_transport, async_transport=async_transport, middleware=[delayed])
    Flux0(transport=FakeTransport())
    Flux0(transport=flux0.RequestsTransport())
    Flux0(transport=NoTransport())  # type: ignore[arg-type] # pyright: ignore
    Flux0(timeout=30)  # type: ignore[arg-type] # pyright: ignore
    Flux0().agents.list(timeout=30)  # type: ignore[call-arg] # pyright: ignore
    Flux0(middleware=[not_a_middleware])  # type: ignore[list-item] # pyright: ignore


def from_dict_returns_the_model_type(data: object) -> None:
    assert_type(flux0.from_dict(Agent, data), Agent)
