"""Puts what a fake agent says into the server's words: statuses, and chunks of messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, TypeAlias
from uuid import UUID

from flux0.domain.enums import SessionStatus
from flux0.domain.messages.finalizing import REASONING
from flux0.testing.fake.steps import (
    AgentStep,
    CallTool,
    Fail,
    GiveResult,
    LangChain,
    Pause,
    PlainStep,
    Reason,
    Report,
    Say,
    SendChunk,
)

_Patches: TypeAlias = list[dict[str, Any]]


class Wording:
    """The wording of one turn.

    Args:
        next_number: counts the messages and the tool calls of the fake, by those names.
    """

    def __init__(self, next_number: Callable[[str], int]) -> None:
        self._next_number = next_number
        # By the identity of the step, since two calls of one tool may be equal.
        self._call_ids: dict[int, tuple[CallTool, str]] = {}

    def of(self, step: AgentStep) -> Iterator[PlainStep]:
        """Return what `step` comes to."""
        match step:
            case Say(text, pieces, pause):
                yield from self._message(map(_appended, cut(text, pieces)), pause=pause)
            case Reason(text, pieces, pause):
                chunks = map(_appended, cut(text, pieces))
                yield from self._message(chunks, pause=pause, metadata={"kind": REASONING})
            case CallTool():
                yield from self._message(_call_chunks(step, self._new_call_id(step), 0))
            case GiveResult():
                yield from self._message([self._result(step)])
            case Fail(data):
                yield Report(SessionStatus.ERROR, data)
            case LangChain():
                yield from self._langchain(step)
            case _:
                yield step

    def _message(
        self,
        chunks: Iterable[_Patches],
        *,
        pause: float = 0.0,
        metadata: Mapping[str, Any] | None = None,
    ) -> Iterator[PlainStep]:
        event_id = f"m{self._next_number('message'):09}"
        for seq, patches in enumerate(chunks):
            if seq and pause:
                yield Pause(pause)
            yield SendChunk(event_id, patches, seq, metadata or {})
        yield Report(SessionStatus.READY, event_id=event_id)

    def _new_call_id(self, call: CallTool) -> str:
        own = f"call-{self._next_number('call')}" if call.id is None else call.id
        self._call_ids[id(call)] = call, own
        return own

    def _result(self, step: GiveResult) -> _Patches:
        call = step.call
        known = self._call_ids.get(id(call))
        item = {
            "tool_call_id": self._new_call_id(call) if known is None else known[1],
            "tool_name": call.name,
            "args": call.args,
            "data": {"result": step.result},
        }
        return [
            {"op": "add", "path": "/tool_call_results", "value": []},
            {"op": "add", "path": "/tool_call_results/-", "value": item},
        ]

    def _langchain(self, run: LangChain) -> Iterator[PlainStep]:
        """As flux0_stream.frameworks.langchain (flux0-stream 0.1.0b2) does."""
        run_id = str(UUID(int=self._next_number("run"), version=4))

        def status(name: SessionStatus) -> Report:
            return Report(name, {}, event_id=run_id, acknowledged_offset=0)

        is_model = not any(isinstance(step, GiveResult) for step in run.steps)
        if is_model:
            yield status(SessionStatus.PROCESSING)
        is_typing, calls = False, 0
        for step in run.steps:
            if isinstance(step, Say):
                chunks: Iterable[_Patches] = map(_appended, cut(step.text, step.pieces))
                if not is_typing:
                    yield status(SessionStatus.TYPING)
                is_typing = True
            elif isinstance(step, CallTool):
                chunks = _call_chunks(step, self._new_call_id(step), calls, name_apart=True)
                calls += 1
            else:
                chunks = [self._result(step)]
            for number, patches in enumerate(chunks):
                if number and isinstance(step, Say) and step.pause:
                    yield Pause(step.pause)
                yield SendChunk(run_id, patches)
        yield status(SessionStatus.READY)


def cut(text: str, pieces: int) -> Iterator[str]:
    """Return `text` in so many pieces, which are as long as each other, give or take one."""
    marks = (len(text) * number // pieces for number in range(pieces + 1))
    return (text[start:end] for start, end in pairwise(marks))


def _appended(piece: str) -> _Patches:
    return [{"op": "add", "path": "/-", "value": piece}]


def _call_chunks(
    call: CallTool, id: str, index: int, *, name_apart: bool = False
) -> Iterator[_Patches]:
    """Return the call, whose arguments come as pieces of JSON text, as from a language model."""
    path = f"/tool_calls/{index}"
    name = "" if name_apart else call.name
    value: dict[str, Any] = {"type": "tool_call", "tool_call_id": id, "tool_name": name, "args": []}
    first: _Patches = [{"op": "add", "path": path, "value": value}]
    if name_apart:
        first.append({"op": "replace", "path": f"{path}/tool_name", "value": call.name})
    yield first
    for piece in cut(json.dumps(call.args), 2):
        yield [{"op": "add", "path": f"{path}/args/-", "value": piece}]
