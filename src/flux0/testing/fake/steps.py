"""What a fake agent does in a turn, step by step, as values.

`Say`, `Reason`, `CallTool`, `GiveResult` and `Fail` are in the words of a conversation; `Report`
and `SendChunk` are what the server has for words. The first become the second by `expanded`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, TypeAlias

from attrs import Attribute, field, frozen

from flux0.domain.enums import SessionStatus
from flux0.domain.errors import InvalidArgument
from flux0.domain.messages.finalizing import REASONING

_NEEDS_VALUE = frozenset({"add", "replace", "test"})


def _can_be_cut(step: Say | Reason, attribute: Attribute[int], pieces: int) -> None:
    if not 1 <= pieces <= len(step.text):
        raise InvalidArgument(
            attribute.name, f"must be from 1 to the text's {len(step.text)} characters: {pieces}"
        )


def _not_negative(_: object, attribute: Attribute[float], value: float) -> None:
    if value < 0:
        raise InvalidArgument(attribute.name, f"must not be negative, and is {value}")


@frozen
class Say:
    """Say `text`, in so many pieces, with a pause of so many seconds after each but the last."""

    text: str
    pieces: int = field(default=1, validator=_can_be_cut)
    pause: float = field(default=0.0, validator=_not_negative)


@frozen
class Reason:
    """Think `text`, as `Say` says it."""

    text: str
    pieces: int = field(default=1, validator=_can_be_cut)
    pause: float = field(default=0.0, validator=_not_negative)


@frozen
class CallTool:
    """Ask for a tool; `id` joins the call and its result."""

    name: str
    args: Mapping[str, Any] = field(factory=dict[str, Any])
    id: str = "call-1"


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


PlainStep: TypeAlias = Report | SendChunk | Pause | FallSilent
AgentStep: TypeAlias = PlainStep | Say | Reason | CallTool | GiveResult | Fail


@frozen
class UserMessage:
    """What a fake agent answers: the message of one turn, and whom it reached."""

    content: str
    session_id: str
    user_id: str
    agent_id: str
    agent_name: str
    agent_type: str
    correlation_id: str


# A plain text is said as it is. A function is called in each turn.
Reply: TypeAlias = str | Iterable[AgentStep] | Callable[[UserMessage], Iterable[AgentStep]]


def steps_of(reply: Reply) -> Callable[[UserMessage], Iterable[AgentStep]]:
    """Return what makes the steps of each turn that is answered with `reply`."""
    if callable(reply):
        return reply
    steps = (Say(reply),) if isinstance(reply, str) else tuple(reply)
    return lambda _: steps


def expanded(step: AgentStep, new_id: Callable[[], str]) -> Iterator[PlainStep]:
    """Return what `step` comes to in the server's words; each new message takes a `new_id`."""
    match step:
        case Say(text, pieces, pause):
            yield from _message(map(_appended, _cut(text, pieces)), new_id(), pause=pause)
        case Reason(text, pieces, pause):
            patches = map(_appended, _cut(text, pieces))
            yield from _message(patches, new_id(), pause=pause, metadata={"kind": REASONING})
        case CallTool(name, args, id):
            yield from _message(_tool_call(name, args, id), new_id())
        case GiveResult(CallTool(name, args, id), result):
            item = {
                "tool_call_id": id,
                "tool_name": name,
                "args": args,
                "data": {"result": result},
            }
            begin: dict[str, Any] = {"op": "add", "path": "/tool_call_results", "value": []}
            append = {"op": "add", "path": "/tool_call_results/-", "value": item}
            yield from _message([[begin, append]], new_id())
        case Fail(data):
            yield Report(SessionStatus.ERROR, data)
        case _:
            yield step


_Patches: TypeAlias = list[dict[str, Any]]


def _message(
    chunks: Iterable[_Patches],
    event_id: str,
    *,
    pause: float = 0.0,
    metadata: Mapping[str, Any] | None = None,
) -> Iterator[PlainStep]:
    for seq, patches in enumerate(chunks):
        if seq and pause:
            yield Pause(pause)
        yield SendChunk(event_id, patches, seq, metadata or {})
    yield Report(SessionStatus.READY, event_id=event_id)


def _appended(piece: str) -> _Patches:
    return [{"op": "add", "path": "/-", "value": piece}]


def _tool_call(name: str, args: Mapping[str, Any], id: str) -> Iterator[_Patches]:
    """Return the call, whose arguments come as pieces of JSON text, as from a language model."""
    call: dict[str, Any] = {"type": "tool_call", "tool_call_id": id, "tool_name": name, "args": []}
    yield [{"op": "add", "path": "/tool_calls/0", "value": call}]
    for piece in _cut(json.dumps(args), 2):
        yield [{"op": "add", "path": "/tool_calls/0/args/-", "value": piece}]


def _cut(text: str, pieces: int) -> Iterator[str]:
    marks = (len(text) * number // pieces for number in range(pieces + 1))
    return (text[start:end] for start, end in pairwise(marks))
