"""The body of an answer is read whole, within its limit, unless a stream is asked for."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve

from flux0 import Flux0
from flux0.domain.errors import ConnectionInterrupted, ResponseTooLarge
from flux0.domain.headers import Headers
from flux0.flows import Flow, chain
from flux0.middleware.bodies import WholeBody
from flux0.ports import Request, Response
from support.driving import Time, drive
from support.in_memory import (
    SSE,
    Hang,
    Step,
    answer,
    chunk,
    in_every_mode,
    recorded_answer,
    script,
    tape,
)
from support.modes import in_mode
from support.transports import Mode

REQUEST = Request("GET", "http://h/api/agents", Headers())


def sending(request: Request = REQUEST, *, limit: int = 10) -> Flow[Response[Any]]:
    return chain([WholeBody(limit)])(request)


@in_every_mode
async def test_a_body_becomes_bytes_and_the_rest_stays_as_it_is(mode: Mode) -> None:
    recorded = tape(b"some ", b"bytes")
    response = recorded_answer(recorded, status=201)

    whole = await drive(mode, sending(), script(response), Time())

    assert whole.body == b"some bytes"
    assert evolve(whole, body=response.body) == response
    assert recorded.releases


@in_every_mode
async def test_an_empty_body_is_no_bytes(mode: Mode) -> None:
    recorded = tape()

    whole = await drive(mode, sending(), script(recorded_answer(recorded, status=204)), Time())

    assert whole.body == b""
    assert recorded.releases


@in_every_mode
async def test_reading_stops_at_the_limit(mode: Mode) -> None:
    recorded = tape(b"five!", b"five!", b"!", b"never read")

    with pytest.raises(ResponseTooLarge, match="larger than 10 bytes"):
        await drive(mode, sending(), script(recorded_answer(recorded)), Time())

    assert recorded.reads == 3
    assert recorded.releases


@in_every_mode
async def test_a_body_that_breaks_off_is_a_failure(mode: Mode) -> None:
    recorded = tape(b"some", ConnectionInterrupted("reset"))

    with pytest.raises(ConnectionInterrupted):
        await drive(mode, sending(), script(recorded_answer(recorded)), Time())

    assert recorded.releases


@in_every_mode
async def test_a_stream_is_left_to_be_read(mode: Mode) -> None:
    recorded = tape(b"x" * 100, Hang())
    response = recorded_answer(recorded, headers=SSE)

    got = await drive(mode, sending(evolve(REQUEST, stream=True)), script(response), Time())

    assert got is response
    assert (recorded.reads, recorded.releases) == (0, 0)


@in_every_mode
async def test_a_client_has_a_limit_for_bodies_and_none_for_streams(mode: Mode) -> None:
    pieces: list[Step] = [chunk(f"{number}") for number in range(10)]
    transport = script(answer(b'{"data": []}', b" " * 989), answer(*pieces, headers=SSE))

    async with in_mode(mode, Flux0(transport=transport, max_body_bytes=1000)) as flux0:
        with pytest.raises(ResponseTooLarge) as caught:
            await flux0.agents.list_async()
        stream = await flux0.sessions.create_event_async(session_id="s", content="Hi")
        assert len([event async for event in stream]) == 10

    assert caught.value.limit == 1000
