"""Bodies with long lists to models, against models of pydantic, as generated clients have."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from benchmarks import data
from benchmarks.measuring import Case, Cpu, Effort
from flux0 import models
from flux0.adapters.json import JsonCodec


class _Agent(BaseModel):
    id: str
    name: str
    type: str
    created_at: datetime
    description: str | None = None


class _ConsumptionOffsets(BaseModel):
    client: int | None = None


class _Session(BaseModel):
    id: str
    agent_id: str
    user_id: str
    created_at: datetime
    consumption_offsets: _ConsumptionOffsets
    title: str | None = None


class _ContentPart(BaseModel):
    type: Literal["content"]
    content: Any


class _ReasoningPart(BaseModel):
    type: Literal["reasoning"]
    reasoning: Any


class _ToolCallPart(BaseModel):
    type: Literal["tool_call"]
    tool_call_id: str
    tool_name: str
    args: Any


class _Participant(BaseModel):
    id: str | None = None
    name: str | None = None


class _MessageData(BaseModel):
    type: Literal["message"]
    parts: list[
        Annotated[_ContentPart | _ReasoningPart | _ToolCallPart, Field(discriminator="type")]
    ]
    participant: _Participant | None = None
    flagged: bool | None = None
    tags: list[str] | None = None


class _StatusData(BaseModel):
    type: Literal["status"]
    status: models.SessionStatus
    acknowledged_offset: int | None = None
    data: Any = None


class _ToolData(BaseModel):
    type: Literal["tool_call_result"]
    tool_calls: list[Any]


class _Event(BaseModel):
    id: str
    correlation_id: str
    type: models.EventType
    source: models.EventSource
    offset: int
    data: Annotated[_MessageData | _StatusData | _ToolData, Field(discriminator="type")]
    deleted: bool
    created_at: datetime
    metadata: dict[str, Any] | None = None


class _Agents(BaseModel):
    data: list[_Agent]


class _Sessions(BaseModel):
    data: list[_Session]


class _Events(BaseModel):
    data: list[_Event]


def lists(effort: Effort) -> Iterator[Case]:
    """The bodies of lists of 10,000."""
    count = 10_000
    decode = JsonCodec().decode
    for name, model, peer, kinds in (
        ("agents", models.Agents, _Agents, (data.AGENT,)),
        ("sessions", models.Sessions, _Sessions, (data.SESSION,)),
        ("events", models.Events, _Events, (data.MESSAGE, data.STATUS)),
    ):
        body = data.listing(count, *kinds)
        ours: Any = partial(decode, model, body)
        yield Case(
            "lists",
            f"10,000 {name}",
            Cpu(ours, effort.seconds, count),
            {"pydantic": Cpu(partial(peer.model_validate_json, body), effort.seconds, count)},
            "speed",
            1.5,
        )
