"""Background turns with the real server: the reply is stored although all readers leave."""

from __future__ import annotations

import json

import pytest

from flux0 import BackgroundTurn, BackgroundTurns, Flux0, TurnStopped
from support.modes import MakeClient, call_blocking, in_mode
from support.server import Flux0Server
from support.transports import Way
from support.turns import stored_by_agent


async def started(
    flux0: Flux0, turns: BackgroundTurns, session_id: str, *script: dict[str, str]
) -> BackgroundTurn:
    conversation = await flux0.conversation_async(session=session_id)
    return await turns.start_async(conversation, json.dumps(script))


async def stored_texts(flux0: Flux0, session_id: str) -> list[str]:
    stored = await stored_by_agent(flux0, session_id)
    return [event.text for event in stored if event.text]


async def test_whole_reply_is_stored_although_the_reader_leaves(
    make_client: MakeClient, server: Flux0Server, way: Way, session_id: str, fresh_name: str
) -> None:
    turns = in_mode(way.mode, BackgroundTurns())
    async with make_client() as flux0:
        script = {"text": "One"}, {"wait": fresh_name}, {"text": "Two"}
        turn = await started(flux0, turns, session_id, *script)
        relay = turn.relay_async()
        begin = await anext(relay)
        del relay
        await call_blocking(way.mode, server.release, fresh_name)
        joined = await turns.join_async(session_id)
        assert joined is not None
        reply = await joined.wait_async()
        assert (reply.text, reply.finished) == ("One\nTwo", True)
        assert await stored_texts(flux0, session_id) == ["One", "Two"]
        number = begin.count(b"\n\n")
        rest = [piece async for piece in joined.relay_async(after=number)]
        assert begin + b"".join(rest) == b"".join([piece async for piece in turn.relay_async()])
        await turns.close_async()


async def test_stopping_a_turn_cancels_the_agent(
    make_client: MakeClient, server: Flux0Server, way: Way, session_id: str, fresh_name: str
) -> None:
    turns = in_mode(way.mode, BackgroundTurns())
    async with make_client() as flux0:
        turn = await started(flux0, turns, session_id, {"text": "One"}, {"wait": fresh_name})
        await anext(turn.relay_async())
        assert await turns.stop_async(session_id)
        await call_blocking(way.mode, server.wait_cancelled, fresh_name)
        with pytest.raises(TurnStopped):
            await turn.wait_async()
        await turns.close_async()


async def test_second_message_stops_the_first_turn_and_is_answered_completely(
    make_client: MakeClient, server: Flux0Server, way: Way, session_id: str, fresh_name: str
) -> None:
    turns = in_mode(way.mode, BackgroundTurns())
    async with make_client() as flux0:
        first = await started(flux0, turns, session_id, {"text": "One"}, {"wait": fresh_name})
        await anext(first.relay_async())
        second = await started(flux0, turns, session_id, {"text": "Two"}, {"text": "Three"})
        assert (await second.wait_async()).text == "Two\nThree"
        with pytest.raises(TurnStopped):
            await first.wait_async()
        await call_blocking(way.mode, server.wait_cancelled, fresh_name)
        assert (await stored_texts(flux0, session_id))[-2:] == ["Two", "Three"]
        await turns.close_async()
