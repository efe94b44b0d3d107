"""Calls and streams of a client that are interrupted at any of their awaits.

Between the awaits, another task may close the client, or send a message on the same session.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import pytest
from attrs import evolve, frozen

from flux0 import AsyncConversation, ClientClosed, Flux0, Flux0Error
from flux0.observers import AttemptEnd, Call, CallEnd, Observer, TurnEnd
from flux0.ports import AsyncByteStream, Request, Response
from flux0.testing import FakeTransport
from support.ending import ends_soon
from support.interrupting import act_of, at_each_await, interrupt, with_modes
from support.transports import Mode


@frozen(eq=False)
class Suspending:
    """A transport whose methods, and the methods of whose bodies, suspend their task."""

    fake: FakeTransport

    async def send_async(self, request: Request) -> Response[Any]:
        await anyio.lowlevel.checkpoint()
        response = await self.fake.send_async(request)
        return evolve(response, body=SuspendingBody(response.body))

    async def close_async(self) -> None:
        await anyio.lowlevel.checkpoint()
        await self.fake.close_async()


@frozen(eq=False)
class SuspendingBody:
    body: AsyncByteStream

    async def read_async(self, timeout: float | None) -> bytes | None:
        await anyio.lowlevel.checkpoint()
        return await self.body.read_async(timeout)

    async def close_async(self) -> None:
        try:
            await anyio.lowlevel.checkpoint()
        finally:
            await self.body.close_async()


class Counts(Observer):
    """Counts the starts and ends of calls and attempts, and the ends of turns."""

    def __init__(self) -> None:
        self.open: Counter[str] = Counter()

    def on_call_start(self, call: Call) -> None:
        self.open["call"] += 1

    def on_call_end(self, call: Call, end: CallEnd) -> None:
        self.open["call"] -= 1
        self.open["turn"] += call.operation == "sessions.create_event" and end.error is None

    def on_attempt_start(self, call: Call, number: int) -> None:
        self.open["attempt"] += 1

    def on_attempt_end(self, call: Call, attempt: AttemptEnd) -> None:
        self.open["attempt"] -= 1

    def on_turn_end(self, call: Call, turn: TurnEnd) -> None:
        self.open["turn"] -= 1


async def ask(conversation: AsyncConversation) -> None:
    assert (await conversation.ask("Hi")).text == "a\nb"


async def leave(conversation: AsyncConversation) -> None:
    async with conversation.send("Hi") as stream:
        await anext(stream)


async def relay(conversation: AsyncConversation) -> None:
    stream = await conversation.send("Hi")
    assert [piece async for piece in stream.relay(heartbeat_ms=None)]


async def list_events(conversation: AsyncConversation) -> None:
    await conversation.history()


CALLS = (ask, leave, relay, list_events)
ACTIONS: Mapping[str, Callable[[Flux0, AsyncConversation], Coroutine[Any, Any, None]]] = {
    "close the client": lambda client, _: client.close_async(),
    "send a message": lambda _, conversation: ask(conversation),
}


async def interrupted(
    mode: Mode,
    call: Callable[[AsyncConversation], Coroutine[Any, Any, None]],
    action: str,
    number: int,
) -> bool:
    """Interrupt a call at its nth await, and check the later calls.

    Return whether the call had this await.
    """
    fake, counts, has_acted = FakeTransport(["a", "b"]), Counts(), True
    client = Flux0(async_transport=Suspending(fake), observers=[counts])
    conversation = await client.conversation_async(agent=fake.agent_id)

    async def act() -> None:
        with suppress(Flux0Error):
            await ACTIONS[action](client, conversation)

    async with anyio.create_task_group() as tasks:
        with suppress(Flux0Error, ZeroDivisionError), ends_soon():
            interruption = act_of(action, partial(tasks.start_soon, act))
            has_acted = await interrupt(mode, call(conversation), number, interruption)
    await anyio.wait_all_tasks_blocked()
    assert set(counts.open.values()) == {0}
    with ends_soon():
        if action == "close the client" and has_acted:
            with pytest.raises(ClientClosed):
                await ask(conversation)
        else:
            await ask(conversation)
        await client.close_async()
    fake.assert_no_open_streams()
    assert set(counts.open.values()) == {0}
    return has_acted


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("mode", "action"), with_modes(("cancel", "error", *ACTIONS)))
def test_client_works_and_reports_each_end_after_a_call_was_interrupted_at_any_await(
    mode: Mode,
    call: Callable[[AsyncConversation], Coroutine[Any, Any, None]],
    action: str,
) -> None:
    at_each_await(mode, partial(interrupted, mode, call, action))
