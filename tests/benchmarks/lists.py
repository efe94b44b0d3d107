"""Bodies with long lists to models, against models of pydantic, as generated clients have."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field

from benchmarks import data
from benchmarks.measuring import Case, Effort
from flux0 import models
from flux0.adapters.json import JsonCodec

T = TypeVar("T")
_COUNT = 10_000


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


class _Participant(BaseModel):
    id: str | None = None
    name: str | None = None


class _MessageData(BaseModel):
    type: Literal["message"]
    parts: list[Annotated[_ContentPart | _ReasoningPart, Field(discriminator="type")]]
    participant: _Participant | None = None
    flagged: bool | None = None
    tags: list[str] | None = None


class _StatusData(BaseModel):
    type: Literal["status"]
    status: models.SessionStatus
    acknowledged_offset: int | None = None
    data: Any = None


class _Event(BaseModel):
    id: str
    correlation_id: str
    type: models.EventType
    source: models.EventSource
    offset: int
    data: Annotated[_MessageData | _StatusData, Field(discriminator="type")]
    deleted: bool
    created_at: datetime
    metadata: dict[str, Any] | None = None


class _List(BaseModel, Generic[T]):
    data: list[T]


def lists(effort: Effort) -> Iterator[Case]:
    """The bodies of lists of 10,000."""
    decode: Any = JsonCodec().decode
    for name, model, peer, kinds in (
        ("agents", models.Agents, _List[_Agent], (data.AGENT,)),
        ("sessions", models.Sessions, _List[_Session], (data.SESSION,)),
        ("events", models.Events, _List[_Event], data.EVENTS),
    ):
        body = data.listing(_COUNT, *kinds)
        ours = effort.cpu(_COUNT, decode, model, body)
        pydantic = effort.cpu(_COUNT, peer.model_validate_json, body)
        yield Case("lists", f"10,000 {name}", ours, {"pydantic": pydantic}, "speed", 1.5)
