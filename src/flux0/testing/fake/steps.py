"""The steps of a fake agent's turn, and the types of replies that define an agent."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, Awaitable, Callable, Generator, Iterable, Mapping
from itertools import count, pairwise, takewhile
from threading import Lock
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeAlias, cast, get_args
from uuid import UUID

from attrs import Attribute, field, frozen

from flux0.domain import arguments
from flux0.domain.enums import SessionStatus
from flux0.domain.errors import InvalidArgument
from flux0.domain.messages.finalizing import REASONING

if TYPE_CHECKING:
    from flux0.domain.stored_models import Event


def _check_pieces(step: _TextStep, attribute: Attribute[int], pieces: int) -> None:
    if not arguments.instance("text", str, step.text):
        problem = "must not be empty; to send no message, return no steps"
        raise InvalidArgument("text", f"of {type(step).__name__} {problem}")
    if arguments.integer(attribute.name, pieces, smallest=1) > len(step.text):
        problem = f"must be from 1 to {len(step.text)} (characters of text), not {pieces}"
        raise InvalidArgument(attribute.name, problem)


def checked_by(
    check: Callable[..., object], *options: Any
) -> Callable[[Any, Attribute[Any], Any], object]:
    """Return an attrs validator that calls `check` with the attribute's name and value."""
    return lambda _, attribute, value: check(attribute.name, *options, value)


check_interval: Callable[[Any, Attribute[Any], Any], object] = checked_by(arguments.interval)


@frozen
class _TextStep:
    text: str
    pieces: int = field(default=1, validator=_check_pieces)
    pause: float = field(default=0.0, validator=check_interval)


@frozen
class Say(_TextStep):
    """An agent's message, which the fake streams and then stores.

    Attributes:
        text: the message's text; not empty.
        pieces: the number of events (chunk events) into which the text is split.
        pause: the time between two pieces, in seconds on the fake's simulated clock.
    """


@frozen
class Reason(_TextStep):
    """An agent's reasoning, which the fake streams and then stores.

    Attributes:
        text: the reasoning's text; not empty.
        pieces: the number of events (chunk events) into which the text is split.
        pause: the time between two pieces, in seconds on the fake's simulated clock.
    """


@frozen(eq=False)
class CallTool:
    """Request a tool call. Two `CallTool` steps are equal only if they are the same object.

    Attributes:
        name: the called tool's name.
        args: the call's arguments, as plain JSON.
        id: the id that connects the call and its result. By default, each call gets a new id.
    """

    name: str = field(validator=checked_by(arguments.instance, str))
    args: Mapping[str, Any] = field(factory=dict[str, Any], validator=checked_by(arguments.members))
    id: str | None = None


@frozen
class GiveResult:
    """Send the result of a tool call.

    Attributes:
        call: the `CallTool` step to which the result belongs.
        result: the tool's result: any JSON value.
    """

    call: CallTool = field(validator=checked_by(arguments.instance, CallTool))
    result: Any = None


@frozen
class Report:
    """Report an agent's status.

    As on the real server, two statuses send no event: `ready` stores the message with the id
    `event_id`, and `completed` ends the turn.

    Attributes:
        status: the status to report: a `SessionStatus`, or another string.
        data: the details of the status: any JSON value. None omits the details.
        event_id: the id of the status event, or of the message that is ready.
        acknowledged_offset: the offset up to which the agent has handled events; None omits the
            offset.
    """

    status: SessionStatus | str
    data: Any = None
    event_id: str | None = None
    acknowledged_offset: int | None = None


class LangChainReport(Report):
    """A `Report` whose JSON has the members in the order of the server's LangChain adapter."""


@frozen
class Fail:
    """Report the status `error`. The agent's later steps still run.

    Attributes:
        data: the error's details: any JSON value. None omits the details.
    """

    data: Any = None


@frozen
class Pause:
    """Wait for some time on the fake's simulated clock.

    Attributes:
        seconds: the wait's duration in seconds.
    """

    seconds: float = field(validator=check_interval)


class Gate:
    """A step at which an agent waits until the test calls `open`. An opened gate stays open.

    While an agent waits at the gate, the fake still handles other calls, and tests can still move
    the fake's simulated clock.

    Args:
        timeout: the longest wait, in real seconds. After this time, reading the agent's stream
            raises AssertionError.

    Attributes:
        reached: whether an agent has reached the gate.
    """

    def __init__(self, *, timeout: float = 10.0) -> None:
        self.timeout: float = timeout
        self.reached: bool = False
        self._lock = Lock()
        self._open = False
        self._waiting: list[Callable[[], object]] = []

    def open(self) -> None:
        """Resume the agents that wait at the gate. Agents that reach it later do not wait."""
        with self._lock:
            self._open = True
            waiting, self._waiting = self._waiting, []
        for resume in waiting:
            resume()

    def must_wait(self, resume: Callable[[], object]) -> bool:
        """Return whether the gate is closed. If so, `open` will call `resume`."""
        with self._lock:
            self.reached = True
            if not self._open:
                self._waiting.append(resume)
            return not self._open


@frozen
class FallSilent:
    """Send no more events and never end the turn, like a real agent that crashes or hangs."""


def _check_patches(patches: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    several = tuple(patches)
    for patch in several:
        has_value = patch.get("op") in {"add", "replace", "test"}
        if missing := {"op", "path", *(("value",) if has_value else ())} - patch.keys():
            problem = f"must have the key {min(missing)!r} in each operation: {patch!r}"
            raise InvalidArgument("patches", problem)
    return several


@frozen
class SendChunk:
    """Send a chunk event with your own JSON Patch operations (RFC 6902).

    The message is stored only if a later step `Report("ready", event_id=...)` has its id.

    Attributes:
        event_id: the id of the message that the operations change.
        patches: the operations, such as `{"op": "add", "path": "/-", "value": "Hi"}`.
        seq: the sequence number in the chunk event.
        metadata: further metadata, in addition to `agent_id` and `agent_name`. A value of None
            removes the key.
    """

    event_id: str
    patches: tuple[Mapping[str, Any], ...] = field(converter=_check_patches)
    seq: int = 0
    metadata: Mapping[str, Any] = field(factory=dict[str, Any])


class LangChain:
    """The events that the server's LangChain adapter sends for one run of a model or a tool.

    `LangChain(Say(...), CallTool(...), CallTool(...))` is one message of a model.
    `LangChain(GiveResult(...))` is the result of a tool. The adapter does not store a message with
    several tool calls, and only the first of these calls is complete in the stream.
    """

    def __init__(self, *steps: Say | CallTool | GiveResult) -> None:
        self.steps = steps


PlainStep: TypeAlias = Report | SendChunk | Pause | Gate | FallSilent
AgentStep: TypeAlias = PlainStep | Say | Reason | CallTool | GiveResult | Fail | LangChain
"""A step of a fake agent."""
_STEP_TYPES = (str, *get_args(AgentStep))  # isinstance() is faster with a tuple than with a union.


@frozen
class UserMessage:
    """The user's message of one turn, as a fake agent receives it.

    Attributes:
        content: the message's text.
        session_id: the id of the session with the message.
        user_id: the id of the session's user.
        agent_id: the replying agent's id.
        agent_name: the replying agent's name.
        agent_type: the replying agent's type.
        correlation_id: the id that all events in the turn share.
        stored: a function that returns the session's stored events. `history` calls it.
    """

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
        """The session's events from before this message, oldest first."""
        own = self.correlation_id
        return tuple(takewhile(lambda event: event.correlation_id != own, self.stored()))


# The steps of a fake agent. The string `s` means `Say(s)`.
SyncSteps: TypeAlias = str | AgentStep | Iterable[str | AgentStep] | None
AgentSteps: TypeAlias = SyncSteps | AsyncIterable[str | AgentStep]
# An agent is a function that is called with the user's message in each turn.
AgentFunction: TypeAlias = Callable[[UserMessage], AgentSteps | Awaitable[AgentSteps]]
AgentReply: TypeAlias = str | AgentStep | Iterable[str | AgentStep] | AgentFunction
"""A reply of a fake agent: a string, a step, several of both, or a function that returns them."""


def as_agent(reply: AgentReply) -> AgentFunction:
    if callable(reply) and reply not in get_args(AgentStep):
        return reply
    try:  # An agent function can return None, but the argument `reply` must not be None.
        steps = tuple(iter_steps(cast("SyncSteps", (None,) if reply is None else reply)))
    except TypeError as error:
        raise InvalidArgument("reply", f"is not valid: {error}") from None
    return lambda _: steps


def iter_steps(result: SyncSteps) -> Generator[AgentStep, None, None]:
    """Yield the steps of an agent's result. If the result is a generator, close it at the end."""
    is_single = isinstance(result, _STEP_TYPES) or not isinstance(result, (Iterable, NoneType))
    try:
        for step in cast("Iterable[str | AgentStep]", (result,) if is_single else result or ()):
            if not isinstance(step, _STEP_TYPES):
                problem = f"an agent must yield strings or steps of flux0.testing, not {step!r}"
                raise TypeError(problem)
            yield Say(step) if isinstance(step, str) else step
    finally:
        if isinstance(result, Generator):
            result.close()


_Patches: TypeAlias = list[dict[str, Any]]


class StepExpander:
    """Expands steps such as `Say` into steps of the server's protocol, such as `SendChunk`.

    Each turn has its own expander. `next_number` returns the next number for the id of a "message",
    a "run" or a "call".
    """

    def __init__(self, next_number: Callable[[str], int]) -> None:
        self._next_number = next_number
        self._call_ids: dict[CallTool, str] = {}

    def expand(self, step: AgentStep) -> Iterable[PlainStep]:
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
        # Yield the same steps as the LangChain adapter of flux0-stream 0.1.0b2.
        run_id = str(UUID(int=self._next_number("run"), version=4))

        def status(name: SessionStatus) -> Report:
            return LangChainReport(name, {}, event_id=run_id, acknowledged_offset=0)

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
                call_id = self._call_ids.get(call) or self._new_call_id(call)
                item: dict[str, Any] = {"tool_call_id": call_id, "tool_name": call.name}
                item |= {"data": {"result": result}, "args": call.args}
                results = "/tool_call_results"
                yield [_add_patch(results, []), _add_patch(f"{results}/-", item)]
            case _:
                for number, piece in enumerate(split_text(step.text, step.pieces)):
                    if number and step.pause:
                        yield Pause(step.pause)
                    yield [_add_patch("/-", piece)]

    def _new_call_id(self, call: CallTool) -> str:
        call_id = f"call-{self._next_number('call')}" if call.id is None else call.id
        self._call_ids[call] = call_id
        return call_id


def split_text(text: str, pieces: int) -> Iterable[str]:
    marks = (len(text) * number // pieces for number in range(pieces + 1))
    return (text[start:end] for start, end in pairwise(marks))


def _add_patch(path: str, value: Any) -> dict[str, Any]:
    return {"op": "add", "path": path, "value": value}


def _call_patches(call: CallTool, id: str, index: int | None) -> Iterable[_Patches]:
    """Yield the patches that add a tool call, and then its arguments as JSON in two pieces.

    If the call is in a `LangChain` message, `index` is its position in this message, and a separate
    patch sets the tool's name. For other calls, `index` is None.
    """
    path = f"/tool_calls/{index or 0}"
    name = call.name if index is None else ""
    value: dict[str, Any] = {"type": "tool_call", "tool_call_id": id, "tool_name": name, "args": []}
    first: _Patches = [_add_patch(path, value)]
    if index is not None:
        first.append({"op": "replace", "path": f"{path}/tool_name", "value": call.name})
    yield first
    for piece in split_text(json.dumps(call.args), 2):
        yield [_add_patch(f"{path}/args/-", piece)]
