"""What a fake agent does in a turn, step by step, as values.

`Say`, `Reason`, `CallTool`, `GiveResult` and `Fail` are in the words of a conversation; `Report`
and `SendChunk` are in the server's. `wording` turns the first into the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from threading import Lock
from typing import Any, TypeAlias

from attrs import Attribute, field, frozen

from flux0.domain.enums import SessionStatus
from flux0.domain.errors import InvalidArgument

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
    """

    def __init__(self, *, patience: float = 10.0) -> None:
        self.patience = patience
        self._lock = Lock()
        self._open = False
        self._reached = False
        self._waiting: list[Callable[[], object]] = []

    @property
    def reached(self) -> bool:
        """Whether an agent has come to the gate."""
        return self._reached

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
            self._reached = True
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
