"""Turns with the scripted agent, over a client."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

from flux0 import AsyncEventStream, ChunkEvent, Flux0
from flux0.models import Event, StreamEvent


async def perform(flux0: Flux0, session_id: str, *script: dict[str, Any]) -> AsyncEventStream:
    """Start a turn in which the agent performs `script`."""
    content = json.dumps(script)
    return await flux0.sessions.create_event_async(session_id=session_id, content=content)


def appended(event: StreamEvent) -> Any:
    """Return the value that a chunk appends to its message."""
    assert isinstance(event, ChunkEvent)
    (patch,) = event.patches
    assert (patch.op, patch.path) == ("add", "/-")
    return patch.value


async def rest_of(stream: AsyncEventStream) -> list[StreamEvent]:
    """Return the turn's remaining events."""
    return [event async for event in stream]


async def stored_by_agent(flux0: Flux0, session_id: str) -> tuple[Event, ...]:
    """Return the agent's stored events."""
    events = await flux0.sessions.list_events_async(session_id=session_id, source="ai_agent")
    return events.data


def new_user() -> dict[str, str]:
    """Return the cookie header of a new user, who has no sessions."""
    return {"cookie": f"flux0_user_sub={uuid4().hex}"}
