"""One turn of a fake agent: its steps become stream bytes and stored events.

As on the real server, the agent does not wait for the stream's reader. It runs as soon as the
message is sent, up to its next pause or gate, and continues when the clock has passed the pause or
the gate is open. Its events are stored when it produces them. If `_MAX_UNREAD` events are unread,
the agent waits for the reader. It fails after `_MAX_SILENT_STEPS` steps in a row that neither send
an event nor wait.

An agent is always in one of three states: `_Running`, `_Idle` or `_Stopped`. A new turn is in the
state `_Running`. An agent without an event loop is `_Idle` from each wait until `FakeTurn.resume`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractContextManager, closing, suppress
from functools import partial
from math import inf
from typing import Any, ClassVar

from attrs import define, evolve, field, frozen

from flux0.domain.enums import SessionStatus
from flux0.testing.fake import steps
from flux0.testing.fake.body import Starter
from flux0.testing.fake.clock import FakeClock, Wait
from flux0.testing.fake.turn_output import TurnOutput

# If the client has not read `_MAX_UNREAD` events, the agent waits for the client. The real server
# did not wait at 5,000 unread events.
_MAX_UNREAD = 10_000
# If an agent runs more than `_MAX_SILENT_STEPS` steps in a row that neither send an event nor wait,
# the agent's turn fails.
_MAX_SILENT_STEPS = 10_000
_UNTIL_READ = Wait()
_NEEDS_LOOP = (
    "an agent that awaits needs an event loop: "
    "use async methods of the client, such as create_event_async"
)


class _AgentPaused:
    def __await__(self) -> Generator[object, None, None]:
        yield self


@frozen(eq=False)
class _Task:
    """An agent that runs in a task of an event loop."""

    cancel: Callable[[], object]


@frozen(eq=False)
class _ThreadedAgent:
    """An agent that runs without an event loop. `call` runs it in a thread."""

    coroutine: Coroutine[object, None, None]
    call: Callable[[Callable[[], None]], None]


@frozen
class _Running:
    """The agent runs, or is about to see that it must wait for `wait`.

    `agent` is None until the agent's function has been called.
    """

    agent: _Task | _ThreadedAgent | None = None
    wait: Wait | None = None


@frozen
class _Idle:
    """The agent waits for a moment, a gate or the stream's reader, and no thread runs it."""

    agent: _ThreadedAgent
    wait: Wait


@frozen
class _Stopped:
    """The agent has ended, has raised `error`, or was cancelled. It never runs again."""

    wait: ClassVar[Wait] = Wait(inf)
    error: Exception | None = None


@define(eq=False)
class _Progress:
    """Facts about the steps that an agent has run."""

    # The time on the fake's clock at which the agent's own code continued after its last step.
    continued_at: float
    steps_done: int = 0
    # The number of steps that the agent has run since it last sent an event or waited.
    silent_steps: int = 0
    # `used_up` is True if the agent has reached the planned end of its steps.
    # `FakeTransport.assert_all_used` checks `used_up`.
    used_up: bool = False


@define(eq=False)
class FakeTurn:
    """A turn of a scripted agent. Iterating yields events as bytes, or a `Wait` before an event.

    A `Wait` until infinity means that no more events will follow. If the agent raises an exception,
    the iteration raises it instead of the agent's next event.
    """

    _output: TurnOutput
    _clock: FakeClock
    # The lock is held while an agent's step takes effect, but not while the agent's own code runs.
    _lock: AbstractContextManager[Any]
    _expander: steps.StepExpander = field(init=False)
    _progress: _Progress = field(init=False)
    # The state changes only while the lock is held.
    _state: _Running | _Idle | _Stopped = field(default=_Running(), init=False)

    def __attrs_post_init__(self) -> None:
        self._expander = steps.StepExpander(self._output.store.next_number)
        self._progress = _Progress(self._clock.now())

    def __iter__(self) -> Generator[bytes | Wait, None, None]:
        output = self._output
        while output.unread or not output.completed:
            state = self._state
            if not isinstance(state, _Stopped) and state.wait is _UNTIL_READ:
                # `resume` runs the agent's own code, which must not run while the stream's reader
                # holds a lock. Therefore, the `FakeClock` calls `resume` without the lock.
                now = self._clock.now()
                self._state = evolve(state, wait=Wait(now))
                self._clock.call_at(now, self.resume)
            outcome = output.unread.popleft() if output.unread else self._state.wait or Wait()
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome

    @property
    def message(self) -> steps.UserMessage:
        return self._output.message

    @property
    def completed(self) -> bool:
        return self._output.completed

    @property
    def closes_connection(self) -> bool:
        return self._output.closes_connection

    @property
    def error(self) -> Exception | None:
        return self._state.error if isinstance(self._state, _Stopped) else None

    @property
    def unused_steps(self) -> str | None:
        done = self._progress.steps_done
        steps_done = f"{done} {'step' if done == 1 else 'steps'}"
        return None if self._progress.used_up else f"its turn stopped after {steps_done}"

    def mark_used_up(self) -> None:
        self._progress.used_up = True

    def start(self, agent: steps.AgentFunction, starter: Starter) -> None:
        starter.call(partial(self._start, agent, starter))

    def _start(self, agent: steps.AgentFunction, starter: Starter) -> None:
        try:
            result = agent(self.message)
        except Exception as error:  # noqa: BLE001 - agents can raise any exception
            self._fail(error)
            return
        start_task = starter.start_task
        if start_task is not None and isinstance(result, (Awaitable, AsyncIterable)):
            task = _Task(start_task(partial(self._run, result, self._clock.wait_async)))
            if not self._set_agent(task):
                task.cancel()
        else:
            threaded = _ThreadedAgent(self._run(result, _pause_agent), starter.call)
            if self._set_agent(threaded):
                self._output.time = self._clock.now()
                self._run_until_wait(threaded)
            else:
                threaded.coroutine.close()

    def _set_agent(self, agent: _Task | _ThreadedAgent) -> bool:
        """Store `agent` in the state. Return False if another message has cancelled this turn."""
        with self._lock:
            if not isinstance(self._state, _Running):
                return False
            # An eager task has already run its first steps, and can have set `wait`.
            self._state = evolve(self._state, agent=agent)
            return True

    def resume(self) -> None:
        with self._lock:
            state = self._state
            if not isinstance(state, _Stopped):
                self._output.time = self._clock.now()
                self._state = _Running(state.agent)
        if isinstance(state, _Idle):
            state.agent.call(partial(self._run_until_wait, state.agent))
        self._clock.notify()

    def cancel(self) -> None:
        """Cancel the agent. The reader still receives the events that were already produced."""
        with self._lock:
            state = self._state
            if not isinstance(state, _Stopped):
                self._state = _Stopped()
        if isinstance(state, _Idle):
            state.agent.coroutine.close()
        elif isinstance(state, _Running) and isinstance(state.agent, _Task):
            state.agent.cancel()
        # Otherwise, if a thread is running the agent, this thread closes the agent.
        self._clock.notify()

    def _run_until_wait(self, agent: _ThreadedAgent) -> None:
        with suppress(StopIteration):
            while True:
                if not isinstance(agent.coroutine.send(None), _AgentPaused):
                    agent.coroutine.throw(TypeError(_NEEDS_LOOP))
                # While this thread holds the lock, no other thread can resume the agent.
                with self._lock:
                    state = self._state
                    if isinstance(state, _Running) and state.wait is not None:
                        self._state = _Idle(agent, state.wait)
                        return
                if isinstance(state, _Stopped):
                    agent.coroutine.close()
                    return

    async def _run(
        self,
        result: steps.AgentSteps | Awaitable[steps.AgentSteps],
        wait: Callable[[Wait], Awaitable[None]],
    ) -> None:
        self._progress.continued_at = self._clock.now()
        try:
            if isinstance(result, Awaitable):
                result = await result
            items = result if isinstance(result, AsyncIterable) else _only(result)
            try:
                async for item in items:
                    with closing(steps.iter_steps(item)) as remaining:
                        for step in remaining:
                            await self._run_step(step, wait)
            finally:
                if isinstance(items, AsyncGenerator):
                    await items.aclose()
            self._output.completed = self._progress.used_up = True
        except Exception as error:  # noqa: BLE001 - agents can raise any exception
            self._fail(error)
        finally:
            # The garbage collector may be closing this coroutine, so nothing closes it again.
            with self._lock:
                if not isinstance(self._state, _Stopped):
                    self._state = _Stopped()
            self._clock.notify()

    async def _run_step(
        self, step: steps.AgentStep, wait: Callable[[Wait], Awaitable[None]]
    ) -> None:
        progress = self._progress
        progress.used_up |= isinstance(step, (steps.FallSilent, steps.Fail))
        # If the clock has moved since the agent's last step, because the agent's own code has
        # waited, the agent's next event has the clock's time.
        if self._clock.now() > progress.continued_at:
            self._output.time = self._clock.now()
        progress.silent_steps += 1
        if progress.silent_steps > _MAX_SILENT_STEPS:
            problem = f"the agent ran {_MAX_SILENT_STEPS:,} steps in a row that sent no event"
            advice = "an agent without an end must send events, or wait in a Pause or Gate"
            raise RuntimeError(f"{problem}: {advice}")
        for plain in self._expander.expand(step):
            self._apply_step(plain)
            seen = self._clock.changes
            while self._state.wait is not None:
                progress.silent_steps = 0
                await wait(Wait(seen=seen))
                seen = self._clock.changes
        progress.steps_done += 1
        progress.continued_at = self._clock.now()

    def _fail(self, error: Exception) -> None:
        # Append the error to the output, so that the stream's reader gets the error after all
        # events that were produced before.
        with self._lock:
            self._state = _Stopped(error)
            self._output.unread.append(error)
            self._progress.used_up = True
        self._clock.notify()

    def _apply_step(self, step: steps.PlainStep) -> None:
        output, clock = self._output, self._clock
        with self._lock:
            if isinstance(self._state, _Stopped):
                return
            unread = len(output.unread)
            match step:
                case steps.SendChunk():
                    output.send_chunk(step)
                case steps.Report(SessionStatus.COMPLETED):
                    # After the agent has reported the status `completed`, the agent continues, but
                    # its further events are dropped.
                    output.completed = True
                case steps.Report():
                    output.send_status(step)
                case steps.Pause(seconds):
                    output.time += seconds
                    if output.time > clock.now():
                        self._state = evolve(self._state, wait=Wait(output.time))
                        clock.call_at(output.time, self.resume)
                case steps.Gate():
                    if step.must_wait(self.resume):
                        self._state = evolve(self._state, wait=Wait(real_timeout=step.timeout))
                case steps.FallSilent():  # pragma: no branch - pyright checks that all are handled
                    self._state = evolve(self._state, wait=Wait(inf))
            if len(output.unread) > unread:
                self._progress.silent_steps = 0
            if len(output.unread) >= _MAX_UNREAD:
                self._state = evolve(self._state, wait=_UNTIL_READ)
        clock.notify()


async def _pause_agent(_: Wait) -> None:
    await _AgentPaused()


async def _only(item: steps.SyncSteps) -> AsyncGenerator[steps.SyncSteps, None]:
    yield item
