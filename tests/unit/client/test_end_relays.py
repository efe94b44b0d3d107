"""`BackgroundTurns.end_relays`: in each mode and relay format."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from flux0 import Flux0, Flux0Format, StreamIdleTimeout
from flux0.adapters.ui import AgUiFormat, AiSdkFormat
from flux0.relay_format import RelayFormat
from flux0.runtime.turn_log import LogEnd, TurnLog
from flux0.testing import Gate, Say
from flux0.turns.background_turn import BackgroundTurn
from flux0.turns.log_relay import OpenRelays
from support.background import Server, gathered, reached, taken
from support.forking import in_child
from support.in_memory import in_every_mode
from support.modes import pause, run
from support.transports import ASYNC, SYNC, Mode

MESSAGE = "the application is being restarted: connect again to continue the turn"
FORMATS: dict[str, Callable[[], RelayFormat]] = {
    "flux0": Flux0Format,
    "ai-sdk": AiSdkFormat,
    "ag-ui": lambda: AgUiFormat("thread", "run"),
}
# The data of the last events of a relay, after its events.
ENDS: dict[str, list[Any]] = {
    "flux0": [{"type": "RelayEnded", "message": MESSAGE}],
    "ai-sdk": [
        {"type": "data-reconnect", "data": {}, "transient": True},
        {"type": "error", "errorText": MESSAGE},
        "[DONE]",
    ],
    "ag-ui": [{"type": "RUN_ERROR", "message": MESSAGE, "code": "RelayEnded"}],
}
FINISHED = b'"finish"', b"RUN_FINISHED"


def data_of(events: list[bytes]) -> list[Any]:
    """Return the data of each event. JSON is decoded."""
    texts = [event.split(b"data: ")[1].strip().decode() for event in events]
    return [json.loads(text) if text.startswith("{") else text for text in texts]


@pytest.mark.parametrize("mode", SYNC + ASYNC)
@pytest.mark.parametrize("name", FORMATS)
def test_open_and_later_relays_end_with_a_hint_and_the_turn_continues(
    mode: Mode, name: str
) -> None:
    async def check() -> None:
        gate = Gate()
        server = Server(mode, [Say("a"), gate, Say("b")])
        turn = await server.turns.start_async(await server.conversation(), "Hi")
        await reached(mode, gate)
        while not turn.event_count:
            await pause(mode)
        unread, begun, finished = (
            turn.relay_async(format=FORMATS[name](), heartbeat_ms=None) for _ in range(3)
        )
        assert await taken(begun, 1)
        server.real.end_relays()
        later = turn.relay_async(format=FORMATS[name](), heartbeat_ms=None)
        for relay in unread, begun, later:
            events = await gathered(relay)
            assert data_of(events)[-len(ENDS[name]) :] == ENDS[name]
            assert not any(mark in b"".join(events) for mark in FINISHED)

        assert turn.is_running
        gate.open()
        await server.turns.close_async(drain_seconds=20)
        assert (await turn.wait_async()).text == "a\nb"
        events = await gathered(finished)
        assert data_of(events)[-len(ENDS[name]) :] == ENDS[name]

    run(mode, check)


@in_every_mode
async def test_wait_returns_the_reply_after_the_relays_have_ended(mode: Mode) -> None:
    server = Server(mode, [Say("a")])
    server.real.end_relays()
    server.real.end_relays()
    turn = await server.turns.start_async(await server.conversation(), "Hi")
    assert (await turn.wait_async()).text == "a"


def test_hint_has_no_number_if_the_turn_has_ended_with_an_error() -> None:
    """With a number, a browser that connects again would miss the error."""
    log, relays = TurnLog("turn-1", 1000, lambda _: None), OpenRelays()
    log.append(b"id: 1\ndata: {}\n\n")
    log.finish(LogEnd(StreamIdleTimeout("no event")))
    turn = BackgroundTurn("session-1", log, relays)
    relay = turn.relay()
    assert next(relay).startswith(b"id: 1\n")
    relays.end()
    (hint,) = relay
    assert hint.startswith(b"event: reconnect\nretry: 1000\ndata: ")


def test_forked_child_has_its_own_relays() -> None:
    server = Server("sync", "Hi")
    server.real.end_relays()

    def use_in_child() -> None:
        with Flux0(transport=server.fake) as client:
            turn = server.real.start(client.conversation(agent=server.fake.agent_id), "Hi")
            assert b"reconnect" not in b"".join(turn.relay())
            server.real.close()

    in_child(use_in_child)
