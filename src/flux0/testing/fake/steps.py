"""What may be an agent, and what it does in a turn, step by step, as values.

`Wording` turns the words of a conversation, such as `Say`, into the server's, such as `SendChunk`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, Awaitable, Callable, Generator, Iterable, Mapping
from itertools import count, pairwise, takewhile
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from uuid import UUID

from attrs import Attribute, field, frozen

from flux0.domain.enums import SessionStatus
from flux0.domain.errors import InvalidArgument
from flux0.domain.messages.finalizing import REASONING

if TYPE_CHECKING:
    from flux0.domain.models import Event


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

    Nothing else waits meanwhile: the fake answers other calls, and time may pass. If nobody opens
    it for `timeout` real seconds, a stream that waits here raises an AssertionError.
    """

    def __init__(self, *, timeout: float = 10.0) -> None:
        self.timeout: float = timeout
        self.reached: bool = False  # Whether an agent has come here.
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


def _complete(patches: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    several = tuple(patches)
    for patch in several:
        has_value = patch.get("op") in {"add", "replace", "test"}
        if missing := {"op", "path", *(("value",) if has_value else ())} - patch.keys():
            raise InvalidArgument("patches", f"needs {min(missing)} in {patch!r}")
    return several


@frozen
class SendChunk:
    """Patch the message `event_id`, with JSON Patch operations as on the wire.

    `metadata` adds to the agent's id and name; a None takes a key out. The message is stored once
    `Report("ready", event_id=...)` says so.
    """

    event_id: str
    patches: tuple[Mapping[str, Any], ...] = field(converter=_complete)
    seq: int = 0
    metadata: Mapping[str, Any] = field(factory=dict[str, Any])


class LangChain:
    """What the server's own langchain adapter makes of one run of a model, or of a tool.

    `LangChain(Say(...), CallTool(...), CallTool(...))` is one message of a model, and
    `LangChain(GiveResult(...))` the end of a tool's run. As with the adapter, a message with
    several tool calls is not stored, and its stream shows the first call whole.
    """

    def __init__(self, *steps: Say | CallTool | GiveResult) -> None:
        self.steps = steps


PlainStep: TypeAlias = Report | SendChunk | Pause | Gate | FallSilent
AgentStep: TypeAlias = PlainStep | Say | Reason | CallTool | GiveResult | Fail | LangChain


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
    stored: Callable[[], tuple[Event, ...]] = field(default=tuple, eq=False, repr=False)

    @property
    def history(self) -> tuple[Event, ...]:
        """What the session has stored before this message, oldest first."""
        own = self.correlation_id
        return tuple(takewhile(lambda event: event.correlation_id != own, self.stored()))


# What an agent does: a text is a `Say` of it.
SyncSteps: TypeAlias = str | AgentStep | Iterable[str | AgentStep] | None
AgentSteps: TypeAlias = SyncSteps | AsyncIterable[str | AgentStep]
# What is called in each turn.
AgentFunction: TypeAlias = Callable[[UserMessage], AgentSteps | Awaitable[AgentSteps]]
AgentReply: TypeAlias = str | AgentStep | Iterable[str | AgentStep] | AgentFunction


def agent_of(reply: AgentReply) -> AgentFunction:
    """Return the function that makes the steps of each turn that is answered with `reply`."""
    if callable(reply):
        return reply
    steps = tuple(steps_of(reply))
    return lambda _: steps


def steps_of(given: SyncSteps) -> Generator[AgentStep, None, None]:
    """Return the steps that an agent has returned, or yields."""
    one = isinstance(given, (str, AgentStep))
    try:
        for step in cast("Iterable[str | AgentStep]", (given,) if one else given or ()):
            if not isinstance(step, (str, AgentStep)):  # pyright: ignore[reportUnnecessaryIsInstance] - users yield what they like
                raise TypeError(f"an agent yields texts and steps of flux0.testing, not {step!r}")
            yield Say(step) if isinstance(step, str) else step
    finally:
        if isinstance(given, Generator):
            given.close()


_Patches: TypeAlias = list[dict[str, Any]]


class Wording:
    """The wording of one turn; `next_number` counts messages, runs and tool calls of the fake."""

    def __init__(self, next_number: Callable[[str], int]) -> None:
        self._next_number = next_number
        # By the identity of the step, since two calls of one tool may be equal.
        self._call_ids: dict[int, tuple[CallTool, str]] = {}

    def of(self, step: AgentStep) -> Iterable[PlainStep]:
        """Return what `step` comes to."""
        match step:
            case Say() | Reason() | CallTool() | GiveResult():
                event_id, seq = f"m{self._next_number('message'):09}", count()
                metadata = {"kind": REASONING} if isinstance(step, Reason) else {}
                for part in self._parts(step):
                    if isinstance(part, Pause):
                        yield part
                    else:
                        yield SendChunk(event_id, part, next(seq), metadata)
                yield Report(SessionStatus.READY, event_id=event_id)
            case Fail(data):
                yield Report(SessionStatus.ERROR, data)
            case LangChain():
                yield from self._langchain(step)
            case _:
                yield step

    def _langchain(self, run: LangChain) -> Iterable[PlainStep]:
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
            for part in self._parts(step, calls):
                yield part if isinstance(part, Pause) else SendChunk(run_id, part)
            calls += isinstance(step, CallTool)
        yield status(SessionStatus.READY)

    def _parts(
        self, step: Say | Reason | CallTool | GiveResult, index: int | None = None
    ) -> Iterable[_Patches | Pause]:
        match step:
            case CallTool():
                yield from _call_patches(step, self._new_call_id(step), index)
            case GiveResult(call, result):
                known = self._call_ids.get(id(call))
                own = self._new_call_id(call) if known is None else known[1]
                item = {"tool_call_id": own, "tool_name": call.name, "args": call.args}
                item["data"] = {"result": result}
                yield [_added("/tool_call_results", []), _added("/tool_call_results/-", item)]
            case _:
                for number, piece in enumerate(cut(step.text, step.pieces)):
                    if number and step.pause:
                        yield Pause(step.pause)
                    yield [_added("/-", piece)]

    def _new_call_id(self, call: CallTool) -> str:
        own = f"call-{self._next_number('call')}" if call.id is None else call.id
        self._call_ids[id(call)] = call, own
        return own


def cut(text: str, pieces: int) -> Iterable[str]:
    """Return `text` in so many pieces, which are as long as each other, give or take one."""
    marks = (len(text) * number // pieces for number in range(pieces + 1))
    return (text[start:end] for start, end in pairwise(marks))


def _added(path: str, value: Any) -> dict[str, Any]:
    return {"op": "add", "path": path, "value": value}


def _call_patches(call: CallTool, id: str, index: int | None) -> Iterable[_Patches]:
    """Return the call, its arguments in pieces of JSON; langchain's adapter sends names apart."""
    path = f"/tool_calls/{index or 0}"
    name = call.name if index is None else ""
    value: dict[str, Any] = {"type": "tool_call", "tool_call_id": id, "tool_name": name, "args": []}
    first: _Patches = [_added(path, value)]
    if index is not None:
        first.append({"op": "replace", "path": f"{path}/tool_name", "value": call.name})
    yield first
    for piece in cut(json.dumps(call.args), 2):
        yield [_added(f"{path}/args/-", piece)]
