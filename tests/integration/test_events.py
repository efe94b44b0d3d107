"""The stored events of a session, by way of the client, on the real server."""

from __future__ import annotations

from typing import Any

import pytest

from flux0 import EventSource, EventType, Flux0, HTTPValidationError
from flux0.models import BadRequestError, Event, InvalidArgument
from support.modes import MakeClient
from support.turns import perform, rest_of

# A turn with each type of event, in the order in which they are stored.
WEATHER = {"id": "c1", "name": "get_weather", "args": {"location": "San Francisco"}}
TURN: list[dict[str, Any]] = [
    {"status": "processing"},
    {"tool_call": WEATHER},
    {"tool_result": {**WEATHER, "result": {"sky": "foggy"}}},
    {"text": "It is foggy."},
]
STORED = ["message", "status", "message", "tool", "message"]


async def have_turns(flux0: Flux0, session_id: str, turns: int = 1) -> tuple[Event, ...]:
    """Have so many turns of `TURN`, and return all that is stored."""
    for _ in range(turns):
        async with await perform(flux0, session_id, *TURN) as stream:
            await rest_of(stream)
    events = await flux0.sessions.list_events_async(session_id=session_id)
    assert [event.type for event in events] == STORED * turns
    return events.data


async def test_events_are_listed_by_offset(make_client: MakeClient, session_id: str) -> None:
    async with make_client() as flux0:
        assert (await flux0.sessions.list_events_async(session_id=session_id)).data == ()
        stored = await have_turns(flux0, session_id)
        for offset in (0, stored[2].offset, stored[-1].offset, stored[-1].offset + 1):
            events = await flux0.sessions.list_events_async(
                session_id=session_id, min_offset=offset
            )
            assert [*events] == [event for event in stored if event.offset >= offset]
    offsets = [event.offset for event in stored]
    assert offsets == sorted(set(offsets))


async def test_events_are_listed_by_source(make_client: MakeClient, session_id: str) -> None:
    async with make_client() as flux0:
        stored = await have_turns(flux0, session_id)
        for source, expected in (("user", stored[:1]), (EventSource.AI_AGENT, stored[1:])):
            events = await flux0.sessions.list_events_async(session_id=session_id, source=source)
            assert events.data == expected
            assert {event.source for event in events} == {source}


async def test_events_are_listed_by_turn(make_client: MakeClient, session_id: str) -> None:
    async with make_client() as flux0:
        stored = await have_turns(flux0, session_id, turns=2)
        first, second = dict.fromkeys(event.correlation_id for event in stored)
        for correlation_id, expected in ((first, stored[:5]), (second, stored[5:]), ("no", ())):
            events = await flux0.sessions.list_events_async(
                session_id=session_id, correlation_id=correlation_id
            )
            assert events.data == expected


@pytest.mark.parametrize(
    "types",
    [
        [EventType.MESSAGE],
        ["tool"],
        ["status"],
        ["custom"],
        ["message", EventType.TOOL],
        ("status", "tool", "status"),
        ["message", "tool", "status", "custom"],
    ],
    ids=str,
)
async def test_events_are_listed_by_type(
    make_client: MakeClient, session_id: str, types: list[EventType | str]
) -> None:
    async with make_client() as flux0:
        stored = await have_turns(flux0, session_id)
        events = await flux0.sessions.list_events_async(session_id=session_id, types=iter(types))
    assert [*events] == [event for event in stored if event.type in types]


async def test_a_type_that_the_server_does_not_know_reaches_it(
    make_client: MakeClient, session_id: str
) -> None:
    async with make_client() as flux0:
        with pytest.raises(HTTPValidationError, match="Input should be 'message'"):
            await flux0.sessions.list_events_async(session_id=session_id, types=["newer"])


async def test_filters_add_up(make_client: MakeClient, session_id: str) -> None:
    async with make_client() as flux0:
        stored = await have_turns(flux0, session_id, turns=3)
        events = await flux0.sessions.list_events_async(
            session_id=session_id,
            min_offset=1,
            source="ai_agent",
            correlation_id=stored[5].correlation_id,
            types=["message"],
        )
    assert events.data == (stored[7], stored[9])


@pytest.mark.parametrize(
    ("filters", "named"),
    [({"types": []}, "types"), ({"types": "message"}, "types"), ({"min_offset": -1}, "min_offset")],
)
async def test_a_filter_without_a_meaning_is_not_sent(
    make_client: MakeClient, nowhere: str, filters: dict[str, object], named: str
) -> None:
    async with make_client(server_url=nowhere) as flux0:
        with pytest.raises(InvalidArgument, match=named):
            await flux0.sessions.list_events_async(session_id="abcdefghij", **filters)  # type: ignore[arg-type]  # wrong ones on purpose


async def test_a_session_that_does_not_exist_has_no_events(make_client: MakeClient) -> None:
    async with make_client() as flux0:
        with pytest.raises(BadRequestError, match="abcdefghij"):
            await flux0.sessions.list_events_async(session_id="abcdefghij")
