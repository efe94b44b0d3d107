"""A session has one turn at a time: a client closes the open turn before it starts another."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import anyio
import pytest
from attrs import define, field

from flux0 import AsyncEventStream, EventStream, Flux0, RetryConfig
from flux0.domain.errors import ClientClosed, ConnectError, InvalidArgument, ReadTimeout
from flux0.ports import Request, Response
from support.in_memory import (
    SSE,
    Script,
    Tape,
    chunk,
    in_both_loops,
    in_every_mode,
    response_from,
    tape,
)
from support.modes import at_once, in_mode
from support.transports import Mode

OTHER_SERVER = "http://127.0.0.1:9090"
NO_RETRIES = RetryConfig("none")
# Three turns, one after another. Each row is for the moment when a message is sent: whether the
# streams of the three turns are closed.
ONE_BY_ONE = [[False, False, False], [True, False, False], [True, True, False]]


@define
class Turns(Script):
    """A transport that records, when it sends a message, which of its streams are closed."""

    tapes: list[Tape] = field(factory=list[Tape], kw_only=True)
    closed: list[list[bool]] = field(factory=list[list[bool]], kw_only=True)

    def send(self, request: Request) -> Response[Any]:
        self.closed.append([bool(recorded.releases) for recorded in self.tapes])
        return super().send(request)


def turns(number: int) -> Turns:
    tapes = [tape(chunk("a"), chunk("b")) for _ in range(number)]
    return Turns([response_from(recorded, headers=SSE) for recorded in tapes], tapes=tapes)


async def begin(flux0: Flux0, session_id: str = "s", **options: Any) -> AsyncEventStream:
    return await flux0.sessions.create_event_async(session_id=session_id, content="Hi", **options)


@in_every_mode
async def test_second_turn_on_a_session_closes_the_first_before_sending(mode: Mode) -> None:
    transport = turns(3)

    async with in_mode(mode, Flux0(transport=transport)) as flux0:
        first = await begin(flux0)
        await anext(first)
        second = await begin(flux0)
        with pytest.raises(ClientClosed):
            await anext(first)
        assert len([event async for event in second]) == 2
        await begin(flux0)

    assert transport.closed == ONE_BY_ONE


@in_every_mode
async def test_turns_of_other_sessions_and_servers_stay_open(mode: Mode) -> None:
    transport = turns(4)

    async with in_mode(mode, Flux0(OTHER_SERVER, transport=transport)) as flux0:
        streams = [
            await begin(flux0, "one"),
            await begin(flux0, "two"),
            await begin(flux0, "one", server_url="http://127.0.0.1:8080"),
        ]
        for stream in streams[1:]:
            assert len([event async for event in stream]) == 2
        assert not any(map(any, transport.closed))
        with pytest.raises(InvalidArgument):
            await flux0.sessions.create_event_async(session_id="one", content="")
        assert not transport.tapes[0].releases
        await begin(flux0, "one", server_url=f"{OTHER_SERVER}/")

    assert transport.closed[3][0], "a trailing slash does not change the server"


@in_every_mode
async def test_turn_can_be_opened_after_a_message_that_was_not_sent(mode: Mode) -> None:
    transport = turns(2)
    transport.responses.insert(1, ConnectError("refused"))

    async with in_mode(mode, Flux0(transport=transport)) as flux0:
        await begin(flux0)
        with pytest.raises(ConnectError):
            await begin(flux0, retries=NO_RETRIES)
        stream = await begin(flux0)

        assert len([event async for event in stream]) == 2


@pytest.mark.usefixtures("little_garbage")
@in_every_mode
async def test_unreferenced_stream_is_garbage_collected_and_closed(mode: Mode) -> None:
    transport = turns(1)

    async with in_mode(mode, Flux0(transport=transport)) as flux0:
        stream = await begin(flux0)
        await anext(stream)
        reference = weakref.ref(stream)
        del stream
        gc.collect()

        assert reference() is None
        assert transport.tapes[0].releases


# --- sync and async code with one client


@in_both_loops
async def test_sync_and_async_turns_on_a_session_close_each_other(mode: Mode) -> None:
    transport = turns(3)

    async with Flux0(transport=transport) as flux0:
        first: EventStream = flux0.sessions.create_event(session_id="s", content="Hi")
        second = await begin(flux0)
        with pytest.raises(ClientClosed):
            next(first)
        third = flux0.sessions.create_event(session_id="s", content="Hi")
        with pytest.raises(ClientClosed):
            await anext(second)
        assert len(list(third)) == 2

    assert transport.closed == ONE_BY_ONE


@define
class Slow(Turns):
    """A transport that responds when `may_respond` is released, and counts the requests."""

    may_respond: threading.Semaphore = field(factory=lambda: threading.Semaphore(0), kw_only=True)
    sending: int = field(default=0, kw_only=True)

    def send(self, request: Request) -> Response[Any]:
        self.sending += 1
        assert self.may_respond.acquire(timeout=20)
        return super().send(request)

    async def send_async(self, request: Request) -> Response[Any]:
        self.sending += 1
        while not self.may_respond.acquire(blocking=False):
            await anyio.lowlevel.checkpoint()
        return Turns.send(self, request)


@in_every_mode
async def test_concurrent_messages_on_a_session_are_sent_one_after_another(mode: Mode) -> None:
    tapes = [tape(chunk("a"), chunk("b")) for _ in range(3)]
    transport = Slow([response_from(each, headers=SSE) for each in tapes], tapes=tapes)
    streams: list[AsyncEventStream] = []

    async with in_mode(mode, Flux0(transport=transport)) as flux0:

        async def send() -> None:
            streams.append(await begin(flux0))
            # The next message is sent only after the response to this message was received.
            assert transport.sending == len(streams)

        async def respond() -> None:
            for _ in range(3):
                transport.may_respond.release()

        await at_once(mode, send, send, send, respond)
        for stream in streams[:2]:
            with pytest.raises(ClientClosed, match="closed by another message on its session"):
                await anext(stream)
        assert len([event async for event in streams[2]]) == 2

    assert transport.closed == ONE_BY_ONE


@in_every_mode
async def test_timeout_ms_limits_the_wait_for_another_message(mode: Mode) -> None:
    transport = Slow([response_from(tape(chunk("a")), headers=SSE)])

    async with in_mode(mode, Flux0(transport=transport)) as flux0:

        async def first() -> None:
            await begin(flux0)

        async def second() -> None:
            while not transport.sending:
                await anyio.lowlevel.checkpoint() if mode != "sync" else None
            with pytest.raises(ReadTimeout, match="timeout_ms"):
                await begin(flux0, timeout_ms=1)
            transport.may_respond.release()

        await at_once(mode, first, second)

    assert len(transport.requests) == 1
