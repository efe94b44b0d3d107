"""What a fake agent does in a turn, step by step, as values.

`Say`, `Reason`, `CallTool`, `GiveResult` and `Fail` are in the words of a conversation; `Report`
and `SendChunk` are in the server's. `Wording` turns the first into the second.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from threading import Lock
from typing import Any, TypeAlias
from uuid import UUID

from attrs import Attribute, field, frozen

from flux0.domain.enums import SessionStatus
from flux0.domain.errors import InvalidArgument
from flux0.domain.messages.finalizing import REASONING

_NEEDS_VALUE = frozenset({"add", "replace", "test"})


def _can_be_cut(step: _Words, attribute: Attribute[int], pieces: int) -> None:
    if not 1 <= pieces <= len(step.text):
        raise InvalidArgument(
            attribute.name, f"must be from 1 to the text's {len(step.text)} characters: {pieces}"
        )


def _not_negative(_: object, attribute: Attribute[float], value: float) -> None:
    if value < 0:
        raise InvalidArgument(attribute.name, f"must not be negative, and is {value}")


@frozen
class _Words:
    text: str
    pieces: int = field(default=1, validator=_can_be_cut)
    pause: float = field(default=0.0, validator=_not_negative)


@frozen
class Say(_Words):
    """Say `text`, in so many pieces, with a pause of so many seconds after each but the last."""


@frozen
class Reason(_Words):
    """Think `text`, as `Say` says it."""


@frozen
class CallTool:
    """Ask for a tool. `id` joins the call and its result; by default each call gets its own."""

    name: str
    args: Mapping[str, Any] = field(factory=dict[str, Any])
    id: str | None = None


@frozen
class GiveResult:
    """Give the result of a tool that was called, as any JSON."""

    call: CallTool
    result: Any = None


@frozen
class Report:
    """Report a status.

    As on the server, `ready` stores the message `event_id` and `completed` ends the turn, and the
    stream shows neither. `data` may be any JSON; what is None is left out.
    """

    status: SessionStatus | str
    data: Any = None
    event_id: str | None = None
    acknowledged_offset: int | None = None


@frozen
class Fail:
    """Report the status `error`, with any JSON as its data. The turn goes on, and then ends."""

    data: Any = None


@frozen
class Pause:
    """Do nothing for so many seconds of the fake's clock."""

    seconds: float = field(validator=_not_negative)


class Gate:
    """A step at which an agent waits until the test calls `open`. Once open, it stays open.

    Nothing else waits meanwhile: the fake answers other calls, and time may pass.

    Args:
        patience: for how many real seconds a stream waits at the gate, before it raises an
            AssertionError because nobody opens it.

    Attributes:
        reached: whether an agent has come to the gate.
    """

    def __init__(self, *, patience: float = 10.0) -> None:
        self.patience: float = patience
        self.reached: bool = False
        self._lock = Lock()
        self._open = False
        self._waiting: list[Callable[[], object]] = []

    def open(self) -> None:
        """Let the agents that wait here go on, and all that come later."""
        with self._lock:
            self._open = True
            waiting, self._waiting = self._waiting, []
        for go_on in waiting:
            go_on()

    def holds(self, go_on: Callable[[], object]) -> bool:
        """Return whether an agent has to wait; `go_on` is then called when it need not any more."""
        with self._lock:
            self.reached = True
            if not self._open:
                self._waiting.append(go_on)
            return not self._open


@frozen
class FallSilent:
    """Never go on, and never end: what a client sees of an agent that crashes or hangs."""


def _patches(patches: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    return tuple(patches)


def _complete(_: object, attribute: Attribute[Any], patches: Iterable[Mapping[str, Any]]) -> None:
    for patch in patches:
        if "op" not in patch or "path" not in patch:
            raise InvalidArgument(attribute.name, f"needs op and path in {patch!r}")
        if patch["op"] in _NEEDS_VALUE and "value" not in patch:
            raise InvalidArgument(attribute.name, f"needs a value in {patch!r}")


@frozen
class SendChunk:
    """Patch the message `event_id`, with JSON Patch operations as on the wire.

    `metadata` adds to the agent's id and name; a None takes a key out. The message is stored once
    `Report("ready", event_id=...)` says so.
    """

    event_id: str
    patches: tuple[Mapping[str, Any], ...] = field(converter=_patches, validator=_complete)
    seq: int = 0
    metadata: Mapping[str, Any] = field(factory=dict[str, Any])


class LangChain:
    """What the server's own langchain adapter makes of one run of a model, or of a tool.

    `LangChain(Say(...), CallTool(...), CallTool(...))` is one message of a model, and
    `LangChain(GiveResult(...))` the end of a tool's run. All chunks of a run have `seq` 0 and the
    run's UUID as their `event_id`, and its statuses have that too. As with the adapter, a message
    with several tool calls is not stored, and its stream shows the first call whole.
    """

    def __init__(self, *steps: Say | CallTool | GiveResult) -> None:
        self.steps = steps


PlainStep: TypeAlias = Report | SendChunk | Pause | Gate | FallSilent
AgentStep: TypeAlias = PlainStep | Say | Reason | CallTool | GiveResult | Fail | LangChain


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
