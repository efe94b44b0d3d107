"""Puts what a fake agent says into the server's words: statuses, and chunks of messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
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
            case Say() | Reason() | CallTool() | GiveResult():
                event_id = f"m{self._next_number('message'):09}"
                metadata = {"kind": REASONING} if isinstance(step, Reason) else {}
                yield from self._chunks(step, event_id, metadata)
                yield Report(SessionStatus.READY, event_id=event_id)
            case Fail(data):
                yield Report(SessionStatus.ERROR, data)
            case LangChain():
                yield from self._langchain(step)
            case _:
                yield step

    def _langchain(self, run: LangChain) -> Iterator[PlainStep]:
        """As flux0_stream.frameworks.langchain (flux0-stream 0.1.0b2) does."""
        run_id = str(UUID(int=self._next_number("run"), version=4))

        def status(name: SessionStatus) -> Report:
            return Report(name, {}, event_id=run_id, acknowledged_offset=0)

        if not any(isinstance(step, GiveResult) for step in run.steps):
            yield status(SessionStatus.PROCESSING)
        is_typing, calls = False, 0
        for step in run.steps:
            if isinstance(step, Say) and not is_typing:
                yield status(SessionStatus.TYPING)
                is_typing = True
            for part in self._chunks(step, run_id, {}, call=calls):
                # The adapter counts nothing.
                yield SendChunk(run_id, part.patches) if isinstance(part, SendChunk) else part
            calls += isinstance(step, CallTool)
        yield status(SessionStatus.READY)

    def _chunks(
        self,
        step: Say | Reason | CallTool | GiveResult,
        event_id: str,
        metadata: Mapping[str, Any],
        *,
        call: int | None = None,
    ) -> Iterator[SendChunk | Pause]:
        match step:
            case CallTool():
                patches, pause = _call_patches(step, self._new_call_id(step), call), 0.0
            case GiveResult():
                patches, pause = iter([self._result(step)]), 0.0
            case _:
                patches = ([_added("/-", piece)] for piece in cut(step.text, step.pieces))
                pause = step.pause
        for seq, each in enumerate(patches):
            if seq and pause:
                yield Pause(pause)
            yield SendChunk(event_id, each, seq, metadata)

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
        return [_added("/tool_call_results", []), _added("/tool_call_results/-", item)]


def cut(text: str, pieces: int) -> Iterator[str]:
    """Return `text` in so many pieces, which are as long as each other, give or take one."""
    marks = (len(text) * number // pieces for number in range(pieces + 1))
    return (text[start:end] for start, end in pairwise(marks))


def _added(path: str, value: Any) -> dict[str, Any]:
    return {"op": "add", "path": path, "value": value}


def _call_patches(call: CallTool, id: str, index: int | None) -> Iterator[_Patches]:
    """Return the call, whose arguments come as pieces of JSON text, as from a language model.

    The langchain adapter numbers the calls of a message, and sends their names apart.
    """
    path = f"/tool_calls/{index or 0}"
    name = call.name if index is None else ""
    value: dict[str, Any] = {"type": "tool_call", "tool_call_id": id, "tool_name": name, "args": []}
    first: _Patches = [_added(path, value)]
    if index is not None:
        first.append({"op": "replace", "path": f"{path}/tool_name", "value": call.name})
    yield first
    for piece in cut(json.dumps(call.args), 2):
        yield [_added(f"{path}/args/-", piece)]
