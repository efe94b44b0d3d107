"""What a fake agent does in a turn, step by step, as values.

`Say`, `Reason`, `CallTool`, `GiveResult` and `Fail` are in the words of a conversation; `Report`
and `SendChunk` are in the server's. `wording` turns the first into the second.
"""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from itertools import takewhile
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from attrs import Attribute, field, frozen

from flux0.domain.enums import SessionStatus
from flux0.domain.errors import InvalidArgument

if TYPE_CHECKING:
    from flux0.domain.models import Event

T = TypeVar("T")

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
Steps: TypeAlias = str | AgentStep | Iterable[str | AgentStep] | None
AsyncSteps: TypeAlias = AsyncIterable[str | AgentStep]
AgentFunction: TypeAlias = Callable[
    [UserMessage], Steps | AsyncSteps | Awaitable[Steps | AsyncSteps]
]
# A function is called in each turn.
Reply: TypeAlias = str | AgentStep | Iterable[str | AgentStep] | AgentFunction


def agent_of(reply: Reply) -> AgentFunction:
    """Return the function that makes the steps of each turn that is answered with `reply`."""
    if callable(reply):
        return reply
    steps = tuple(steps_of(reply))
    return lambda _: steps


def sync_or_async(
    given: Steps | AsyncSteps | Awaitable[Steps | AsyncSteps],
) -> Generator[AgentStep, None, None] | AsyncGenerator[AgentStep, None]:
    """Return the steps of what an agent has returned, whichever kind of code that is."""
    if isinstance(given, (Awaitable, AsyncIterable)):
        return _awaited(given)
    return steps_of(given)


def steps_of(given: Steps) -> Generator[AgentStep, None, None]:
    """Return the steps that an agent has returned, or yields."""
    if given is None:
        return
    one = isinstance(given, (str, AgentStep))
    try:
        for step in cast("Iterable[str | AgentStep]", (given,) if one else given):
            if not isinstance(step, (str, AgentStep)):  # pyright: ignore[reportUnnecessaryIsInstance] - users yield what they like
                raise TypeError(f"an agent yields texts and steps of flux0.testing, not {step!r}")
            yield Say(step) if isinstance(step, str) else step
    finally:
        if isinstance(given, Generator):
            given.close()


async def _awaited(
    given: AsyncSteps | Awaitable[Steps | AsyncSteps],
) -> AsyncGenerator[AgentStep, None]:
    made = await given if isinstance(given, Awaitable) else given
    if not isinstance(made, AsyncIterable):
        for step in steps_of(made):
            yield step
        return
    try:
        async for one in made:
            for step in steps_of(one):
                yield step
    finally:
        if isinstance(made, AsyncGenerator):
            await made.aclose()


def by_hand(steps: AsyncGenerator[AgentStep, None]) -> Generator[AgentStep, None, None]:
    """Return the steps of an agent that is asynchronous code and awaits nothing, without a loop."""
    try:
        while True:
            yield _result(anext(steps))
    except StopAsyncIteration:
        return
    finally:
        _result(steps.aclose())


def _result(awaitable: Awaitable[T]) -> T:
    running: Generator[Any, Any, T] = awaitable.__await__()
    try:
        next(running)
    except StopIteration as stop:
        result: T = stop.value
        return result
    refusal = TypeError("the agent awaits something: use the asynchronous methods of the client")
    running.throw(refusal)
    raise refusal


class Script:
    """A reply that is used once; calling it makes the steps of its turn."""

    def __init__(self, reply: Reply) -> None:
        self._agent = agent_of(reply)
        self._begun = False
        self._done = 0
        self._used = False

    def __call__(self, message: UserMessage) -> Iterable[AgentStep] | AsyncIterable[AgentStep]:
        """Return the steps, and count those that were done."""
        self._begun = True
        steps = sync_or_async(self._agent(message))
        return self._async(steps) if isinstance(steps, AsyncGenerator) else self._sync(steps)

    @property
    def problem(self) -> str | None:
        """What is left of it, in words; None if all of it was used."""
        if self._used:
            return None
        if not self._begun:
            return "no turn has used it"
        return f"its turn was left after {self._done} {'step' if self._done == 1 else 'steps'}"

    def _sync(self, steps: Generator[AgentStep, None, None]) -> Iterator[AgentStep]:
        try:
            for step in steps:
                self._used = isinstance(step, (FallSilent, Fail)) or self._used
                yield step
                self._done += 1
        except Exception:  # Which is told of an agent by itself.
            self._used = True
            raise
        finally:
            steps.close()
        self._used = True

    async def _async(self, steps: AsyncGenerator[AgentStep, None]) -> AsyncIterator[AgentStep]:
        try:
            async for step in steps:
                self._used = isinstance(step, (FallSilent, Fail)) or self._used
                yield step
                self._done += 1
        except Exception:
            self._used = True
            raise
        finally:
            await steps.aclose()
        self._used = True
