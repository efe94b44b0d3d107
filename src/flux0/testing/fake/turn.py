"""One turn of a fake agent: its steps become the bytes of a stream, and what is stored.

As on the server, the agent runs ahead of its reader: from the moment the message is posted up to
its next pause or gate, and on as the clock moves. What it says is stored when it says it.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractContextManager, closing
from functools import partial
from math import inf
from typing import Any

from attrs import define, field

from flux0.domain.enums import EventSource, EventType, SessionStatus
from flux0.domain.models import StatusData
from flux0.domain.stream_events import ChunkEvent, JSONPatchOperation, StatusEvent
from flux0.runtime.event_loop import Loop, call_soon, start_task
from flux0.testing.fake import steps
from flux0.testing.fake.clock import FakeClock, Wait
from flux0.testing.fake.store import FakeStore, JSONObject, agent_data, status_data, without_nulls


class _Resting:
    """What an agent awaits at a rest if it does not run in a loop."""

    def __await__(self) -> Generator[object, None, None]:
        yield self


@define(eq=False)
class FakeTurn:
    """A turn. Iterating gives what comes out of it: each event as bytes, or a wait for one.

    A wait until infinity is a silence that nothing ends. An exception that the agent raises comes
    out where its next event would.
    """

    message: steps.UserMessage
    _store: FakeStore
    _clock: FakeClock
    # Is held while the agent does a step, but not while its code decides on the next.
    _lock: AbstractContextManager[Any]
    # Whether the agent has ended the turn, so that leaving it cancels nothing; what it has raised.
    completed: bool = field(default=False, init=False)
    error: BaseException | None = field(default=None, init=False)
    # How many steps were done, and whether none is left that counts.
    _done: int = field(default=0, init=False)
    _used: bool = field(default=False, init=False)
    # The agent's own time: its pauses begin when it comes to them.
    _time: float = field(init=False)
    _output: deque[bytes | BaseException] = field(factory=deque[Any], init=False)
    _wording: steps.Wording = field(init=False)
    _given: steps.AgentSteps | Awaitable[steps.AgentSteps] = field(default=None, init=False)
    # What runs the agent: this, a step at a time, or a task, which `_cancel_task` cancels.
    _agent: Coroutine[object, None, None] | None = field(default=None, init=False)
    _cancel_task: Callable[[], None] | None = field(default=None, init=False)
    _running: bool = field(default=False, init=False)
    # Where the agent rests: until a moment, or until a gate is opened; once cancelled, for ever.
    _rest: Wait | None = field(default=None, init=False)
    _cancelled: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._time = self._clock.now()
        self._wording = steps.Wording(self._store.next_number)

    def __iter__(self) -> Generator[bytes | Wait, None, None]:
        while self._output or not self.completed:
            outcome = self._output.popleft() if self._output else self._rest or Wait()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome

    @property
    def left(self) -> str | None:
        """What of its agent's steps is left, in words; None if it came to its end."""
        done = f"{self._done} {'step' if self._done == 1 else 'steps'}"
        return None if self._used else f"its turn was left after {done}"

    def begin(self, agent: steps.AgentFunction, loop: Loop | None) -> None:
        """Run the agent up to its first rest; one that is asynchronous code runs in `loop`."""
        try:
            self._given = agent(self.message)
        except BaseException as error:  # noqa: BLE001 - kept for the test
            self._fail(error)
            return
        if loop is None or not isinstance(self._given, (Awaitable, AsyncIterable)):
            self.go_on()
            return
        self._running = True
        self._cancel_task = partial(call_soon, loop, start_task(self._run_in_task))

    def go_on(self) -> None:
        """Run the agent on, up to its next rest, unless somebody else does."""
        with self._lock:
            if not self._cancelled:
                self._rest = None
            runs, self._running = not self._running, True
        if runs:
            self._run_on()
        self._clock.tell()

    def cancel(self) -> None:
        """Stop the agent where it is; whoever reads gets what it has said, and nothing more."""
        with self._lock:
            if self._cancelled:
                return
            self._cancelled = True
            self._rest = Wait(inf)
            # Whoever runs the agent closes it.
            idle, self._running = not self._running, True
        if idle and self._agent is not None:
            self._agent.close()
        if self._cancel_task is not None:
            self._cancel_task()
        self._clock.tell()

    # --- the agent

    def _run_on(self) -> None:
        agent = self._agent = self._agent or self._run()
        cancelled = rests = False
        try:
            while not rests:
                if not isinstance(agent.send(None), _Resting):
                    way = "use the asynchronous methods of the client"
                    agent.throw(TypeError(f"the agent awaits something: {way}"))
                with self._lock:  # Another thread may end the rest, and run the agent, from here.
                    rests, cancelled = self._rest is not None, self._cancelled
                    self._running = cancelled or not rests
        except StopIteration:
            pass
        except BaseException as error:  # noqa: BLE001 - as above
            self._fail(error)
        if cancelled:
            agent.close()

    async def _run_in_task(self) -> None:
        try:
            await self._run()
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(error)
        finally:
            if not self.completed:
                self.cancel()

    async def _run(self) -> None:
        made = await self._given if isinstance(self._given, Awaitable) else self._given
        if isinstance(made, AsyncIterable):
            try:
                async for one in made:
                    for step in steps.steps_of(one):
                        await self._take(step)
            finally:
                if isinstance(made, AsyncGenerator):
                    await made.aclose()
        else:
            with closing(steps.steps_of(made)) as taken:
                for step in taken:
                    await self._take(step)
        self.completed = self._used = True
        self._clock.tell()

    async def _take(self, step: steps.AgentStep) -> None:
        self._used |= isinstance(step, (steps.FallSilent, steps.Fail))
        for plain in self._wording.of(step):
            self._do(plain)
            seen = self._clock.changes
            while self._rest is not None:
                if self._cancel_task is None:
                    await _Resting()
                else:
                    await self._clock.wait_async(Wait(seen=seen))
                    seen = self._clock.changes
        self._done += 1

    def _fail(self, error: BaseException) -> None:
        """Have whoever reads get an error of the agent, which the test is to see."""
        with self._lock:
            self.error = error
            self._output.append(error)
            self._used = self._cancelled = True
            self._rest = Wait(inf)
        self._clock.tell()
        if not isinstance(error, Exception):
            raise error

    # --- its steps

    def _do(self, step: steps.PlainStep) -> None:
        """Do a step, after which the agent may rest."""
        with self._lock:
            if self._cancelled:
                return
            match step:
                case steps.SendChunk():
                    self._chunk(step)
                case steps.Report(SessionStatus.COMPLETED):
                    self.completed = True  # The agent goes on, though nobody hears it.
                case steps.Report():
                    self._report(step)
                case steps.Pause(seconds):
                    self._time += seconds
                    if self._time > self._clock.now():
                        self._rest = Wait(self._time)
                        self._clock.at(self._time, self.go_on)
                case steps.Gate():
                    if step.holds(self.go_on):
                        self._rest = Wait(patience=step.timeout)
                case _:  # FallSilent
                    self._rest = Wait(inf)
        self._clock.tell()

    def _chunk(self, step: steps.SendChunk) -> None:
        message = self.message
        agent = {"agent_id": message.agent_id, "agent_name": message.agent_name}
        data: JSONObject = {
            "correlation_id": message.correlation_id,
            "event_id": step.event_id,
            "seq": step.seq,
            "patches": step.patches,
            "metadata": without_nulls({**agent, **step.metadata}),
            "timestamp": self._time,
        }
        patches = tuple(
            JSONPatchOperation(one["op"], one["path"], one.get("value"), one.get("from"))
            for one in step.patches
        )
        members: JSONObject = {**data, "patches": patches}
        if self._store.add_chunk(ChunkEvent(**members)):
            # As the agent spells it; the model would put the members in order.
            self._send(f"event: chunk\ndata: {json.dumps(data)}\n\n".encode())

    def _report(self, step: steps.Report) -> None:
        if step.status == SessionStatus.READY:
            message = self._store.finish_message(step.event_id or "")
            if message is not None:
                self._keep(message.type, agent_data(message), message.metadata)
            return
        data = StatusData(step.status, step.acknowledged_offset, step.data)
        self._keep(EventType.STATUS, status_data(data))
        ids = (step.event_id or "", self.message.correlation_id)
        self._send(StatusEvent(*ids, EventSource.AI_AGENT, data).to_sse())

    def _send(self, event: bytes) -> None:
        if not self.completed:
            self._output.append(event)

    def _keep(self, type: EventType, data: JSONObject | None, metadata: Any = None) -> None:
        if not self.completed:
            source = EventSource.AI_AGENT
            self._store.create_event(self.message, type, source, data, metadata, self._time)
