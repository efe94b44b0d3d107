"""The stored events of a session, by way of the client, on the real server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flux0 import EventSource, EventType, HTTPValidationError
from flux0.models import Event, InvalidArgument
from integration.ways import few_ways
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


def having_type(*types: EventType | str) -> tuple[dict[str, Any], Callable[[Event], bool]]:
    # An iterator, since any iterable will do.
    return {"types": iter(types)}, lambda event: event.type in types


async def test_events_are_listed_by_what_they_are(make_client: MakeClient, session_id: str) -> None:
    async with make_client() as flux0:
        assert (await flux0.sessions.list_events_async(session_id=session_id)).data == ()
        for _ in range(2):
            await rest_of(await perform(flux0, session_id, *TURN))
        stored = (await flux0.sessions.list_events_async(session_id=session_id)).data
        assert [event.type for event in stored] == STORED * 2
        offsets = [event.offset for event in stored]
        assert offsets == sorted(set(offsets))
        first, second = dict.fromkeys(event.correlation_id for event in stored)
        everything: dict[str, Any] = {
            "min_offset": offsets[1],
            "source": "ai_agent",
            "correlation_id": second,
            "types": ["message"],
        }
        filters: list[tuple[dict[str, Any], Callable[[Event], bool]]] = [
            ({"min_offset": 0}, lambda event: True),
            ({"min_offset": offsets[2]}, lambda event: event.offset >= offsets[2]),
            ({"min_offset": offsets[-1] + 1}, lambda event: False),
            ({"source": "user"}, lambda event: event.source == "user"),
            ({"source": EventSource.AI_AGENT}, lambda event: event.source == "ai_agent"),
            ({"correlation_id": first}, lambda event: event.correlation_id == first),
            ({"correlation_id": "no"}, lambda event: False),
            having_type(EventType.MESSAGE),
            having_type("custom"),
            having_type("message", EventType.TOOL),
            having_type("status", "tool", "status"),
            having_type("message", "tool", "status", "custom"),
            (everything, lambda event: event in (stored[7], stored[9])),
        ]
        for given, fits in filters:
            events = await flux0.sessions.list_events_async(session_id=session_id, **given)
            assert [*events] == [event for event in stored if fits(event)]


@few_ways
async def test_a_type_that_the_server_does_not_know_reaches_it(
    make_client: MakeClient, session_id: str
) -> None:
    async with make_client() as flux0:
        with pytest.raises(HTTPValidationError, match="Input should be 'message'"):
            await flux0.sessions.list_events_async(session_id=session_id, types=["newer"])


@few_ways
@pytest.mark.parametrize("filters", [{"types": []}, {"types": "message"}, {"min_offset": -1}])
async def test_a_filter_without_a_meaning_is_not_sent(
    make_client: MakeClient, nowhere: str, filters: dict[str, Any]
) -> None:
    async with make_client(server_url=nowhere) as flux0:
        with pytest.raises(InvalidArgument, match=next(iter(filters))):
            await flux0.sessions.list_events_async(session_id="abcdefghij", **filters)
