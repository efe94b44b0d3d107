"""Bytes to server-sent events, and on to typed events and messages, without a network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks import data, decoders
from benchmarks.measuring import Case, Cpu, Effort
from flux0 import MessageAccumulator
from flux0.adapters.json import JsonCodec
from flux0.adapters.sse import SSEParser
from flux0.domain.headers import Headers
from flux0.domain.stream_events import ChunkEvent
from flux0.ports import Request, ServerSentEvent
from flux0.usecases.turn import Turn

REQUEST = Request("POST", "http://127.0.0.1:8080/api/sessions/s/events/stream", Headers())
_SIZES = {"300 B": 300, "2 kB": 2000, "1 MB": 1_000_000}
_PIECES = {"1": 1, "64": 64, "1024": 1024, "65536": 65536, "one event": 0}
_TARGETS = {
    ("300 B", "one event"): 2.2,
    ("300 B", "1024"): 2.2,
    ("300 B", "65536"): 2.2,
    ("300 B", "64"): 1.2,
    ("2 kB", "64"): 1.4,
}


def parse(effort: Effort) -> Iterator[Case]:
    """Parsing alone: events of three sizes, in pieces of all sizes, with each end of a line."""
    for end_name, end in data.ENDS.items():
        for size_name, size in _SIZES.items():
            for piece_name, piece in _PIECES.items():
                total = 30_000 * (1 if piece == 1 else 10)
                count = max(1, total // size)
                events = data.turn(size, count, end)
                pieces = data.pieces(b"".join(events), piece) if piece else events
                quick = {
                    name: Cpu(partial(decode, pieces), effort.seconds, count)
                    for name, decode in decoders.PEERS.items()
                    if decoders.is_quick(decode, pieces, effort.patience)
                }
                slow = [name for name in decoders.PEERS if name not in quick]
                yield Case(
                    "parse",
                    f"{size_name}, pieces of {piece_name}, {end_name}",
                    Cpu(partial(decoders.flux0, pieces), effort.seconds, count),
                    quick,
                    "speed",
                    _TARGETS.get((size_name, piece_name)) if end_name == "LF" else None,
                    note=f"over {effort.patience} s: {', '.join(slow)}" if slow else "",
                )


def typed(effort: Effort) -> Iterator[Case]:
    """Bytes to typed events, against `json.loads` of the same data and nothing else."""
    codec = JsonCodec()
    for name, size, count in (("300 B", 300, 1000), ("2 kB", 2000, 200)):
        events = data.turn(size, count)
        texts = data.texts(events)

        def ours(events: list[bytes] = events) -> object:
            feed = Turn(SSEParser(), codec, REQUEST).feed
            return [event for piece in events for event in feed(piece)]

        loads = Cpu(partial(_loads, texts), effort.seconds, count)
        ours_timed = Cpu(ours, effort.seconds, count)
        yield Case(
            "typed", f"{name}, one event a piece", ours_timed, {"json.loads": loads}, target=1.5
        )


def accumulate(effort: Effort) -> Iterator[Case]:
    """100,000 chunks to one message, against joining their texts."""
    chunks = _chunks(100_000)

    def ours() -> object:
        accumulator = MessageAccumulator()
        for chunk in chunks:
            accumulator.feed(chunk)
        return accumulator.messages[0].text

    def joined() -> object:
        said: list[str] = []
        for chunk in chunks:
            said.append(chunk.patches[0].value)  # noqa: PERF401 - one by one, as they come
        return "".join(said)

    yield Case(
        "accumulate",
        "100,000 chunks",
        Cpu(ours, effort.seconds, len(chunks)),
        {"appended and joined": Cpu(joined, effort.seconds, len(chunks))},
    )


def look(effort: Effort) -> Iterator[Case]:
    """Looking at the messages after each event: a long turn against a short one, per event."""

    def looking(chunks: list[ChunkEvent]) -> None:
        accumulator = MessageAccumulator()
        for chunk in chunks:
            accumulator.feed(chunk)
            len(accumulator.messages)

    long, short = (
        Cpu(partial(looking, _chunks(count)), effort.seconds, count) for count in (200_000, 20_000)
    )
    name = "messages, at each of 200,000 events"
    yield Case("look", name, long, {"of 20,000": short}, target=1.2, slow=True)


def _chunks(count: int) -> list[ChunkEvent]:
    decode: Any = JsonCodec().decode_event
    texts = (data.chunk(number, f"word {number} ") for number in range(count))
    return [decode(ServerSentEvent("chunk", text)) for text in texts]


def _loads(texts: list[str]) -> object:
    return [json.loads(text) for text in texts]
