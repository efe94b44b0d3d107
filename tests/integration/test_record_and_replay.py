"""Programs are recorded with the real server, and replayed without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flux0 import Flux0, StreamIdleTimeout
from flux0.models import APIError, BadRequestError, HTTPValidationError, NotFoundError
from flux0.testing import RecordingTransport, ReplayTransport
from flux0.testing.cassettes.cassette import read_cassette
from support.modes import MakeClient
from support.server import Flux0Server
from support.transports import Way
from support.turns import new_user, perform, rest_of

CALL: dict[str, Any] = {"id": "c1", "name": "get_weather", "args": {"location": "Zürich"}}
SCRIPT = (
    {"status": "processing", "data": {"detail": "Let me see"}},
    {"reason": "They ask about the weather.", "pieces": 3},
    {"tool_call": CALL},
    {"tool_result": {**CALL, "result": [{"sky": "neblig"}]}},
    {"error": "The wind is not known."},
    {"text": "Es ist neblig in Zürich.", "pieces": 5},
)


async def test_replay_returns_the_results_of_the_server(
    make_client: MakeClient, server: Flux0Server, way: Way, nowhere: str, tmp_path: Path
) -> None:
    user = new_user()

    async def program(flux0: Flux0) -> list[Any]:
        agents = await flux0.agents.list_async()
        session = await flux0.sessions.create_async(
            agent_id=server.agent_id, title="Zürich", http_headers=user
        )
        async with await perform(flux0, session.id, *SCRIPT) as stream:
            events = await rest_of(stream)
            stored = await stream.stored_events()
        found = await flux0.sessions.list_events_async(session_id=session.id, types=["message"])
        listed = await flux0.sessions.list_async(http_headers=user)
        return [agents, session, events, stream.messages, stream.tool_calls, stored, found, listed]

    path = tmp_path / "cassette.json"
    async with make_client(transport=RecordingTransport(way.make_transport(), path)) as flux0:
        results = await program(flux0)
    assert len(results[2]) > 8
    assert len(results[-1]) == 1

    replay = ReplayTransport(path)
    async with make_client(transport=replay, server_url=nowhere) as flux0:
        assert await program(flux0) == results
    replay.assert_all_used()

    text = path.read_text("utf-8")
    assert user["cookie"].partition("=")[2] not in text
    assert '"cookie": "***"' in text
    assert '"title": "Zürich"' in text  # JSON responses of the server are stored as JSON.
    assert '"base64"' not in text


@pytest.mark.parametrize("matching", ["strict", "loose"])
async def test_errors_of_the_server_are_replayed(
    make_client: MakeClient, way: Way, nowhere: str, tmp_path: Path, matching: Any
) -> None:
    async def program(flux0: Flux0) -> list[Any]:
        errors: list[Any] = []
        for call, error in (
            (flux0.agents.retrieve_async(agent_id="0123456789"), NotFoundError),
            (flux0.agents.retrieve_async(agent_id="short"), HTTPValidationError),
            (perform(flux0, "0123456789", {"text": "Hi"}), BadRequestError),
        ):
            with pytest.raises(APIError) as caught:
                await call
            assert type(caught.value) is error
            errors.append(
                (caught.value.problem, caught.value.body, getattr(caught.value, "data", None))
            )
        return errors

    path = tmp_path / "cassette.json"
    async with make_client(transport=RecordingTransport(way.make_transport(), path)) as flux0:
        results = await program(flux0)
    replay = ReplayTransport(path, matching)
    async with make_client(transport=replay, server_url=nowhere) as flux0:
        assert await program(flux0) == results
    replay.assert_all_used()


async def test_idle_timeouts_and_early_closes_are_replayed(
    make_client: MakeClient,
    server: Flux0Server,
    way: Way,
    nowhere: str,
    tmp_path: Path,
    fresh_name: str,
) -> None:
    async def program(flux0: Flux0) -> list[Any]:
        session = await flux0.sessions.create_async(agent_id=server.agent_id)
        idle = await perform(flux0, session.id, {"text": "One"}, {"wait": fresh_name})
        events = [await anext(idle)]
        with pytest.raises(StreamIdleTimeout) as caught:
            await anext(idle)
        async with await perform(flux0, session.id, {"text": "Two"}, {"wait": fresh_name}) as turn:
            events.append(await anext(turn))
        return [events, caught.value.event_count, caught.value.messages, turn.messages]

    path = tmp_path / "cassette.json"
    recording = RecordingTransport(way.make_transport(), path)
    async with make_client(transport=recording, stream_idle_timeout_ms=300) as flux0:
        results = await program(flux0)
    assert [exchange.end for exchange in read_cassette(path)] == ["whole", "ReadTimeout", "closed"]
    replay = ReplayTransport(path)
    start = replay.time.monotonic()
    async with make_client(transport=replay, server_url=nowhere) as flux0:
        assert await program(flux0) == results
    replay.assert_all_used()
    assert replay.time.monotonic() - start >= 0.3
