"""Web pages read turns with JavaScript libraries: from a relay, and from a served fake."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from flux0 import Flux0
from flux0.relay_format import HEARTBEAT
from flux0.testing import FakeTransport, Gate, Report, Say, Truncate
from support.back_ends import asgi, wsgi
from support.npm import npm_install, run_in
from support.programs import needs

pytestmark = needs("npm")

# The server's React hook uses the first reader. The second reader follows the WHATWG standard.
READERS = {
    "fetch-event-source": "@microsoft/fetch-event-source@2.0.1",
    "eventsource-parser": "eventsource-parser@3.1.1",
}
SCRIPT = Path(__file__).parents[1] / "support" / "read_turn.cjs"
SEND = "sessions.create_event"
BackEnd = Callable[..., AbstractContextManager[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the readers."""
    folder = tmp_path_factory.mktemp("readers")
    npm_install(*READERS.values(), folder=folder)
    return folder


def turn_url(fake: FakeTransport, url: str) -> str:
    with Flux0(transport=fake) as flux0:
        session_id = flux0.sessions.create(agent_id=fake.agent_id).id
    return f"{url}/api/sessions/{session_id}/events/stream"


def read_turn(reader: str, url: str, folder: Path) -> list[tuple[str, Any]]:
    """Send a message, and return the name and the data of each event that the reader gets."""
    body = json.dumps({"type": "message", "source": "user", "content": "Hi"})
    events = json.loads(run_in(folder, "node", str(SCRIPT), reader, url, body))
    return [(name, data) for name, data in events]


def contents_of(events: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return the name and the content of each event."""
    return [
        (name, data["patches"][0]["value"] if name == "chunk" else data["data"]["status"])
        for name, data in events
    ]


@pytest.mark.parametrize("back_end", [asgi, wsgi])
@pytest.mark.parametrize("reader", READERS)
def test_reader_gets_each_event_of_a_relay_with_heartbeats_and_sends_one_request(
    folder: Path, reader: str, back_end: BackEnd
) -> None:
    """A blank line after a heartbeat would be an empty event for fetch-event-source."""
    gate = Gate()
    fake = FakeTransport([Report("typing"), Say("Hé"), gate, Say("\u2028llo")])
    heartbeats: list[bytes] = []

    def on_piece(piece: bytes) -> None:
        if piece == HEARTBEAT and gate.reached:
            heartbeats.append(piece)
            gate.open()

    with Flux0(transport=fake) as client, back_end(client, on_piece) as url:
        events = read_turn(reader, turn_url(fake, url), folder)

    assert contents_of(events) == [("status", "typing"), ("chunk", "Hé"), ("chunk", "\u2028llo")]
    assert heartbeats
    assert [call.operation for call in fake.calls[1:]] == [SEND]


@pytest.mark.parametrize("back_end", [asgi, wsgi])
@pytest.mark.parametrize("reader", READERS)
def test_reader_gets_the_error_of_a_relay_as_its_last_event_and_sends_one_request(
    folder: Path, reader: str, back_end: BackEnd
) -> None:
    fake = FakeTransport([Say("Half"), Say("never received")])
    fake.inject(Truncate(after_events=1), when=lambda call: call.operation == SEND)
    with Flux0(transport=fake) as client, back_end(client) as url:
        *events, (name, error) = read_turn(reader, turn_url(fake, url), folder)

    assert contents_of(events) == [("chunk", "Half")]
    assert (name, error["type"]) == ("error", "StreamInterrupted")
    assert [call.operation for call in fake.calls[1:]] == [SEND]


@pytest.mark.parametrize("reader", READERS)
def test_reader_gets_each_event_of_a_served_fake_and_sends_one_request(
    folder: Path, reader: str
) -> None:
    fake = FakeTransport([Report("typing"), Say("Hé"), Say("llo")])
    with fake.serve() as url:
        events = read_turn(reader, turn_url(fake, url), folder)

    assert contents_of(events) == [("status", "typing"), ("chunk", "Hé"), ("chunk", "llo")]
    assert [call.operation for call in fake.calls[1:]] == [SEND]
