"""One turn of a fake agent: its steps become stream bytes and stored events.

As on the real server, the agent does not wait for the stream's reader. It runs as soon as the
message is sent, up to its next pause or gate, and continues when the clock has passed the pause or
the gate is open. Its events are stored when it produces them. If `_MAX_UNREAD` events are unread,
the agent waits for the reader. It fails after `_MAX_SILENT_STEPS` steps in a row that neither send
an event nor wait.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractContextManager, closing, suppress
from functools import partial
from math import inf
from typing import Any

from attrs import define, field

from flux0.domain.enums import EventSource, EventType, SessionStatus
from flux0.domain.stream_events import ChunkEvent, JSONPatchOperation
from flux0.testing.fake import steps
from flux0.testing.fake.body import Starter
from flux0.testing.fake.clock import FakeClock, Wait
from flux0.testing.fake.store import FakeStore, JSONObject, agent_data, status_data, without_nulls

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


@define(eq=False)
class FakeTurn:
    """A turn of a scripted agent. Iterating yields events as bytes, or a `Wait` before an event.

    A `Wait` until infinity means that no more events will follow. If the agent raises an exception,
    the iteration raises it instead of the agent's next event.
    """

    message: steps.UserMessage
    _store: FakeStore
    _clock: FakeClock
    # The lock is held while an agent's step takes effect, but not while the agent's own code runs.
    _lock: AbstractContextManager[Any]
    _has_status_times: bool
    # `completed` is True if the agent has ended the turn. If it is True, closing the stream cancels
    # nothing.
    completed: bool = field(default=False, init=False)
    # `closes_connection` is True if the server closes the connection after the last byte of the
    # turn's stream.
    closes_connection: bool = field(default=False, init=False)
    error: Exception | None = field(default=None, init=False)
    _steps_done: int = field(default=0, init=False)
    # `_used_up` is True if the agent has reached the planned end of its steps.
    # `FakeTransport.assert_all_used` checks `_used_up`.
    _used_up: bool = field(default=False, init=False)
    # The number of steps that the agent has run since it last sent an event or waited.
    _silent_steps: int = field(default=0, init=False)
    # The time on the fake's clock at which the agent sends its next event.
    _time: float = field(init=False)
    # The time on the fake's clock at which the agent's own code continued after its last step.
    _continued_at: float = field(init=False)
    _output: deque[bytes | Exception] = field(factory=deque[Any], init=False)
    _expander: steps.StepExpander = field(init=False)
    _starter: Starter = field(init=False)
    # The coroutine of an agent that runs without an event loop. Any other agent runs in a task.
    _agent: Coroutine[object, None, None] | None = field(default=None, init=False)
    _cancel_task: Callable[[], object] | None = field(default=None, init=False)
    # `_running` is True if a thread runs `_agent`. The value stays True after the agent has ended,
    # so that no thread runs the agent again.
    _running: bool = field(default=False, init=False)
    # The agent's current wait for a moment or a gate; None while the agent runs. After the agent
    # was cancelled, the wait is infinite.
    _wait: Wait | None = field(default=None, init=False)
    _cancelled: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._time = self._clock.now()
        self._expander = steps.StepExpander(self._store.next_number)

    def __iter__(self) -> Generator[bytes | Wait, None, None]:
        while self._output or not self.completed:
            if self._wait is _UNTIL_READ:
                # `resume` runs the agent's own code, which must not run while the stream's reader
                # holds a lock. Therefore, the `FakeClock` calls `resume` without the lock.
                now = self._clock.now()
                self._wait = Wait(now)
                self._clock.call_at(now, self.resume)
            outcome = self._output.popleft() if self._output else self._wait or Wait()
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome

    def mark_used_up(self) -> None:
        self._used_up = True

    @property
    def unused_steps(self) -> str | None:
        done = f"{self._steps_done} {'step' if self._steps_done == 1 else 'steps'}"
        return None if self._used_up else f"its turn stopped after {done}"

    def start(self, agent: steps.AgentFunction, starter: Starter) -> None:
        self._starter = starter
        starter.call(partial(self._start, agent))

    def _start(self, agent: steps.AgentFunction) -> None:
        try:
            result = agent(self.message)
        except Exception as error:  # noqa: BLE001 - agents can raise any exception
            self._fail(error)
            return
        run, start_task = partial(self._run, result), self._starter.start_task
        if start_task is not None and isinstance(result, (Awaitable, AsyncIterable)):
            self._cancel_task = start_task(run)
            if self._cancelled:  # Another message can have cancelled this turn already.
                self._cancel_task()
        else:
            self._agent = run()
            if self._cancelled:
                self._agent.close()
            self.resume()

    def resume(self) -> None:
        with self._lock:
            if not self._cancelled:
                self._time, self._wait = self._clock.now(), None
            runs, self._running = not self._running, True
        if runs and self._agent is not None:
            self._starter.call(partial(self._run_until_wait, self._agent))
        self._clock.notify()

    def cancel(self) -> None:
        """Cancel the agent. The reader still receives the events that were already produced."""
        with self._lock:
            self._cancelled = True
            self._wait = Wait(inf)
            # If another thread is running the agent, the other thread closes the agent.
            idle, self._running = not self._running, True
        if idle and self._agent is not None:
            self._agent.close()
        if self._cancel_task is not None:
            self._cancel_task()
        self._clock.notify()

    def _run_until_wait(self, agent: Coroutine[object, None, None]) -> None:
        cancelled = waits = False
        with suppress(StopIteration):
            while not waits:
                if not isinstance(agent.send(None), _AgentPaused):
                    agent.throw(TypeError(_NEEDS_LOOP))
                # While this thread holds the lock, no other thread can resume the agent.
                with self._lock:
                    waits, cancelled = self._wait is not None, self._cancelled
                    self._running = cancelled or not waits
        if cancelled:
            agent.close()

    async def _run(self, result: steps.AgentSteps | Awaitable[steps.AgentSteps]) -> None:
        self._continued_at = self._clock.now()
        try:
            if isinstance(result, Awaitable):
                result = await result
            items = result if isinstance(result, AsyncIterable) else _only(result)
            try:
                async for item in items:
                    with closing(steps.iter_steps(item)) as remaining:
                        for step in remaining:
                            await self._run_step(step)
            finally:
                if isinstance(items, AsyncGenerator):
                    await items.aclose()
            self.completed = self._used_up = True
            self._clock.notify()
        except Exception as error:  # noqa: BLE001 - agents can raise any exception
            self._fail(error)
        finally:
            if not self.completed:
                # If the garbage collector is closing this coroutine, `cancel` must not close the
                # coroutine a second time. Therefore, set `_running`.
                self._running = True
                self.cancel()

    async def _run_step(self, step: steps.AgentStep) -> None:
        self._used_up |= isinstance(step, (steps.FallSilent, steps.Fail))
        # If the clock has moved since the agent's last step, because the agent's own code has
        # waited, the agent's next event has the clock's time.
        if self._clock.now() > self._continued_at:
            self._time = self._clock.now()
        self._silent_steps += 1
        if self._silent_steps > _MAX_SILENT_STEPS:
            problem = f"the agent ran {_MAX_SILENT_STEPS:,} steps in a row that sent no event"
            advice = "an agent without an end must send events, or wait in a Pause or Gate"
            raise RuntimeError(f"{problem}: {advice}")
        for plain in self._expander.expand(step):
            self._apply_step(plain)
            seen = self._clock.changes
            while self._wait is not None:
                self._silent_steps = 0
                if self._agent is not None:
                    await _AgentPaused()
                else:
                    await self._clock.wait_async(Wait(seen=seen))
                    seen = self._clock.changes
        self._steps_done += 1
        self._continued_at = self._clock.now()

    def _fail(self, error: Exception) -> None:
        # Append the error to the output, so that the stream's reader gets the error after all
        # events that were produced before.
        with self._lock:
            self.error = error
            self._output.append(error)
            self._used_up = self._cancelled = True
        self._clock.notify()

    def _apply_step(self, step: steps.PlainStep) -> None:
        with self._lock:
            if self._cancelled:
                return
            match step:
                case steps.SendChunk():
                    self._send_chunk(step)
                case steps.Report(SessionStatus.COMPLETED):
                    # After the agent has reported the status `completed`, the agent continues, but
                    # its further events are dropped.
                    self.completed = True
                case steps.Report():
                    self._send_status(step)
                case steps.Pause(seconds):
                    self._time += seconds
                    if self._time > self._clock.now():
                        self._wait = Wait(self._time)
                        self._clock.call_at(self._time, self.resume)
                case steps.Gate():
                    if step.must_wait(self.resume):
                        self._wait = Wait(real_timeout=step.timeout)
                case steps.FallSilent():  # pragma: no branch - pyright checks that all are handled
                    self._wait = Wait(inf)
            if len(self._output) >= _MAX_UNREAD:
                self._wait = _UNTIL_READ
        self._clock.notify()

    def _send_chunk(self, step: steps.SendChunk) -> None:
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
            JSONPatchOperation(patch["op"], patch["path"], patch.get("value"), patch.get("from"))
            for patch in step.patches
        )
        members: JSONObject = {**data, "patches": patches}
        if self._store.add_chunk(ChunkEvent(**members)):
            # Encode the dict `data` instead of the `ChunkEvent`, whose encoder reorders the members
            # of each patch.
            self._send(f"event: chunk\ndata: {json.dumps(data)}\n\n".encode())

    def _send_status(self, step: steps.Report) -> None:
        if step.status == SessionStatus.READY:
            message = None if step.event_id is None else self._store.finish_message(step.event_id)
            if message is not None:
                self._store_event(message.type, agent_data(message), message.metadata)
            return
        self._store_event(EventType.STATUS, status_data(step))
        offset = step.acknowledged_offset
        data = {"status": step.status, "acknowledged_offset": offset, "data": step.data}
        if isinstance(step, steps.LangChainReport):
            data = {"acknowledged_offset": offset, **data}
        event: JSONObject = {
            "id": step.event_id or "",
            "source": EventSource.AI_AGENT,
            "type": EventType.STATUS,
            "correlation_id": self.message.correlation_id,
            "data": {"type": "status", **without_nulls(data)},
            "metadata": None,
            **({"timestamp": self._time} if self._has_status_times else {}),
        }
        try:
            self._send(f"event: status\nid: {event['id']}\ndata: {json.dumps(event)}\n\n".encode())
        except UnicodeEncodeError:
            # Like the real server, end the body if the event's id contains a lone surrogate.
            self.completed = self.closes_connection = True

    def _send(self, event: bytes) -> None:
        if not self.completed:
            self._output.append(event)
            self._silent_steps = 0

    def _store_event(self, type: EventType, data: JSONObject | None, metadata: Any = None) -> None:
        if not self.completed:
            source = EventSource.AI_AGENT
            self._store.create_event(self.message, type, source, data, metadata, self._time)


async def _only(item: steps.SyncSteps) -> AsyncGenerator[steps.SyncSteps, None]:
    yield item
