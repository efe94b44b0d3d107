"""Streams over scripted bodies, without a client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from flux0.domain.headers import Headers
from flux0.domain.messages.accumulator import MessageAccumulator
from flux0.domain.stored_models import Events, Participant
from flux0.domain.stream_events import ChunkEvent, StreamEvent
from flux0.flows import CallRequest
from flux0.middleware.observing import Observers
from flux0.observers import Call, Observer
from flux0.runtime.time import SystemTime
from flux0.turns.streams import AsyncEventStream, EventStream
from flux0.turns.turn import Turn
from flux0.turns.turn_report import TurnReport
from support.in_memory import SSE, Tape, new_turn, response_from
from support.modes import in_mode
from support.transports import Mode

NO_EVENTS = Events(())
TIME = SystemTime()


def report_to(*observers: Observer) -> TurnReport:
    """Return the report of a turn to these observers."""
    call = Call("sessions.create_event", "POST", "", "")
    request = CallRequest("POST", "", Headers(), call=call)
    return TurnReport(Observers(observers, TIME), TIME.monotonic, request, "s", Participant())


def open_sync(
    recorded: Tape,
    asked: list[str] | None = None,
    *observers: Observer,
    turn: Turn | None = None,
    headers: Mapping[str, str] = SSE,
) -> EventStream:
    def list_stored(correlation_id: str) -> Events:
        if asked is not None:
            asked.append(correlation_id)
        return NO_EVENTS

    response = response_from(recorded, headers=headers)
    report = report_to(*observers)
    accumulator = MessageAccumulator()
    return EventStream(
        response, turn or new_turn(), accumulator, list_stored, report, TIME.monotonic
    )


def open_async(
    recorded: Tape,
    asked: list[str] | None = None,
    *observers: Observer,
    headers: Mapping[str, str] = SSE,
) -> AsyncEventStream:
    async def list_stored(correlation_id: str) -> Events:
        if asked is not None:
            asked.append(correlation_id)
        return NO_EVENTS

    response = response_from(recorded, headers=headers)
    report = report_to(*observers)
    accumulator = MessageAccumulator()
    return AsyncEventStream(response, new_turn(), accumulator, list_stored, report, TIME.monotonic)


def opened(
    mode: Mode,
    recorded: Tape,
    asked: list[str] | None = None,
    *observers: Observer,
    headers: Mapping[str, str] = SSE,
) -> AsyncEventStream:
    """Return a stream for this mode. A sync stream is wrapped, so that async tests can use it."""
    if mode == "sync":
        stream: Any = open_sync(recorded, asked, *observers, headers=headers)
        return cast("AsyncEventStream", in_mode(mode, stream))
    return open_async(recorded, asked, *observers, headers=headers)


def value_of(event: StreamEvent) -> object:
    assert isinstance(event, ChunkEvent)
    return event.patches[0].value
