"""Decoding without a network: server-sent events, typed events, messages and lists."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from importlib import import_module
from itertools import product
from time import process_time
from typing import Annotated, Any, Generic, Literal, TypeAlias, TypeVar

import httpx
from pydantic import BaseModel, Field

from benchmarks import data
from benchmarks.measuring import Case, Effort
from flux0 import MessageAccumulator, models
from flux0.adapters.json import JsonCodec
from flux0.adapters.sse import SSEParser
from flux0.domain.headers import Headers
from flux0.domain.stream_events import ChunkEvent
from flux0.flows import CallRequest
from flux0.ports import ServerSentEvent
from flux0.turns.turn import Turn

REQUEST = CallRequest("POST", "http://127.0.0.1:8080/api/sessions/s/events/stream", Headers())
_SIZES = {"300 B": 300, "2 kB": 2000, "1 MB": 1_000_000}
_PIECES = {"1": 1, "64": 64, "1024": 1024, "65536": 65536, "one event": 0}
_TARGETS = {
    **{f"300 B, pieces of {piece}, LF": 2.2 for piece in ("one event", "1024", "65536")},
    "300 B, pieces of 64, LF": 1.2,
    "2 kB, pieces of 64, LF": 1.4,
}

_COUNT = 10_000
T = TypeVar("T")
Decoder: TypeAlias = Callable[[Iterable[bytes]], object]


def parse(effort: Effort) -> Iterator[Case]:
    """The SSE parser, for events and pieces of several sizes, and for each kind of line end."""
    decoders = _peers()
    for (end_name, end), (size_name, size), (piece_name, piece) in product(
        data.ENDS.items(), _SIZES.items(), _PIECES.items()
    ):
        count = max(1, (30_000 if piece == 1 else 300_000) // size)
        pieces = data.turn(size, count, end)
        if piece:
            stream = b"".join(pieces)
            pieces = [stream[at : at + piece] for at in range(0, len(stream), piece)]
        quick = {
            name: effort.cpu(count, decode, pieces)
            for name, decode in decoders.items()
            if _is_quick(decode, pieces, effort.max_peer_seconds)
        }
        slow = ", ".join(name for name in decoders if name not in quick)
        note = f"over {effort.max_peer_seconds} s: {slow}" if slow else ""
        name = f"{size_name}, pieces of {piece_name}, {end_name}"
        ours = effort.cpu(count, _decode, pieces)
        yield Case("parse", name, ours, quick, "speed", _TARGETS.get(name), note=note)


def _decode(pieces: Iterable[bytes]) -> object:
    feed = SSEParser().feed
    return [event for piece in pieces for event in feed(piece)]


def _peers() -> dict[str, Decoder]:
    """Return the decoders of other libraries. Only the environment `bench` of tox has them."""
    sse, client = import_module("httpx_sse"), import_module("sseclient")

    def httpx_sse(pieces: Iterable[bytes]) -> object:
        headers = {"content-type": "text/event-stream"}
        response = httpx.Response(200, headers=headers, content=iter(pieces))
        return list(sse.EventSource(response).iter_sse())

    def sdk_decoder(name: str) -> Decoder:
        module = import_module(f"{name}._streaming")
        return lambda pieces: list(module.SSEDecoder().iter_bytes(iter(pieces)))

    return {
        "anthropic": sdk_decoder("anthropic"),
        "openai": sdk_decoder("openai"),
        "httpx-sse": httpx_sse,
        "sseclient-py": lambda pieces: list(client.SSEClient(pieces).events()),
    }


def _is_quick(decode: Decoder, pieces: list[bytes], seconds: float) -> bool:
    """Return whether a decoder needs at most `seconds` of CPU time."""
    end = process_time() + seconds

    def limited() -> Iterator[bytes]:
        for piece in pieces:
            if process_time() > end:
                raise TimeoutError
            yield piece

    try:
        decode(limited())
    except TimeoutError:
        return False
    return True


def typed(effort: Effort) -> Iterator[Case]:
    """From bytes to typed events, compared with only `json.loads` of the same data."""
    codec = JsonCodec()

    def ours(events: list[bytes]) -> object:
        feed = Turn(SSEParser(), codec, REQUEST, 600.0).feed
        return [event for piece in events for event in feed(piece)[0]]

    def loads(texts: list[str]) -> object:
        return [json.loads(text) for text in texts]

    for name, size, count in (("300 B", 300, 1000), ("2 kB", 2000, 200)):
        events = data.turn(size, count)
        yield Case(
            "typed",
            f"{name}, one event per piece",
            effort.cpu(count, ours, events),
            {"json.loads": effort.cpu(count, loads, data.texts(events))},
            target=1.6,
        )


def accumulate(effort: Effort) -> Iterator[Case]:
    """Building a message from 100,000 chunk events, compared with joining their strings."""
    chunks = _chunks(100_000)

    def ours() -> object:
        accumulator = MessageAccumulator()
        for chunk in chunks:
            accumulator.feed(chunk)
        return accumulator.messages[0].text

    def joined() -> object:
        strings: list[str] = []
        for chunk in chunks:
            strings.append(chunk.patches[0].value)  # noqa: PERF401 - one by one, as they arrive
        return "".join(strings)

    peers = {"appended and joined": effort.cpu(len(chunks), joined)}
    yield Case("accumulate", "100,000 chunks", effort.cpu(len(chunks), ours), peers)


def look(effort: Effort) -> Iterator[Case]:
    """Reading `messages` after each event: the cost per event of a long and a short turn."""

    def read_messages(chunks: list[ChunkEvent]) -> None:
        accumulator = MessageAccumulator()
        for chunk in chunks:
            accumulator.feed(chunk)
            len(accumulator.messages)

    long, short = (effort.cpu(n, read_messages, _chunks(n)) for n in (200_000, 20_000))
    name = "messages, after each of 200,000 events"
    yield Case("look", name, long, {"of 20,000": short}, target=1.2, slow=True)


def _chunks(count: int) -> list[ChunkEvent]:
    decode: Any = JsonCodec().decode_event
    return [decode(ServerSentEvent("chunk", data.chunk(number))) for number in range(count)]


# --- lists


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
    """Lists of 10,000 items, compared with pydantic models, which generated clients use."""
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
