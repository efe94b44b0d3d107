"""Background turns of a fake, and functions that read their relays."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterable
from typing import Any

import anyio

from flux0 import AsyncConversation, BackgroundTurn, BackgroundTurns, Conversation, Flux0, TurnStore
from flux0.ports import Request, Response
from flux0.runtime.turn_log import LogEnd, TurnLog
from flux0.testing import AgentReply, FakeTransport, Gate
from flux0.turns.log_relay import OpenRelays
from support.modes import in_mode, pause, unwrapped
from support.transports import Mode

TIMEOUT = 20.0


class Server:
    """A fake, its client, and background turns. Everything has async methods in every mode."""

    def __init__(
        self, mode: Mode, reply: AgentReply = "Hi", store: TurnStore | None = None, **options: Any
    ) -> None:
        self.mode: Mode = mode
        self.fake = FakeTransport(reply)
        self.transport = Held(self.fake)
        self.client = in_mode(mode, Flux0(transport=self.transport))
        self.real = BackgroundTurns(store, **options)
        self.turns = in_mode(mode, self.real)

    async def conversation(self) -> AsyncConversation:
        return await self.client.conversation_async(agent=self.fake.agent_id)

    def fake_conversation(self) -> Conversation:
        client: Flux0 = unwrapped(self.client)
        return client.conversation(agent=self.fake.agent_id)

    def stored_by(self, conversation: AsyncConversation) -> list[str]:
        """Return the text of each agent message that the fake has stored."""
        with Flux0(transport=self.fake) as client:
            history = client.conversation(session=conversation.session_id).history()
        return [event.text for event in history if event.source == "ai_agent"]


class Held:
    """A transport that holds messages while `is_open` is not set."""

    def __init__(self, fake: FakeTransport) -> None:
        self._fake = fake
        self.time = fake.clock
        self.is_open = threading.Event()
        self.is_open.set()
        self.holds = False

    def send(self, request: Request) -> Response[Any]:
        if request.stream:
            self.holds = not self.is_open.is_set()
            assert self.is_open.wait(TIMEOUT)
        return self._fake.send(request)

    async def send_async(self, request: Request) -> Response[Any]:
        while request.stream and not self.is_open.is_set():
            self.holds = True
            await anyio.sleep(0.001)
        return await self._fake.send_async(request)

    def close(self) -> None:
        self._fake.close()

    async def close_async(self) -> None:
        await self._fake.close_async()


def background_turn(
    events: Iterable[bytes], end: LogEnd | None = None, max_bytes: int = 10_000
) -> BackgroundTurn:
    log = TurnLog("turn-1", max_bytes, lambda _: None)
    for event in events:
        log.append(event)
    if end is not None:
        log.finish(end)
    return BackgroundTurn("session-1", log, OpenRelays())


async def reached(mode: Mode, gate: Gate) -> None:
    while not gate.reached:
        await pause(mode)


async def gathered(pieces: AsyncIterator[bytes]) -> list[bytes]:
    """Return the events in the pieces. A piece may have several events."""
    data = b"".join([piece async for piece in pieces])
    return [event + b"\n\n" for event in data.split(b"\n\n")[:-1]]


async def taken(pieces: AsyncIterator[bytes], number: int) -> bytes:
    """Take pieces until they have `number` events."""
    data = b""
    while data.count(b"\n\n") < number:
        data += await anext(pieces)
    return data


def error_in(piece: bytes) -> tuple[str, str]:
    """Return the type and the message of an event named `error`."""
    assert piece.startswith(b"event: error\n")
    data = json.loads(piece.split(b"data: ")[1])
    return data["type"], data["message"]
