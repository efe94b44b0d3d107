"""One turn of a fake agent: its steps become the bytes of a stream, and what is stored.

As on the server, the agent runs ahead of its reader: from the moment the message is posted up to
its next pause or gate, and on as the clock moves. What it says is stored when it says it.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import (
    AsyncGenerator,
    Callable,
    Generator,
    Iterator,
    Mapping,
)
from contextlib import AbstractContextManager, closing
from math import inf
from typing import Any

from attrs import Factory, define, evolve

from flux0.adapters.support.event_loop import Loop, close_soon
from flux0.domain.enums import EventSource, EventType, SessionStatus
from flux0.domain.messages.accumulator import MessageAccumulator
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.stream_events import ChunkEvent, JSONPatchOperation
from flux0.testing.fake.clock import FakeClock
from flux0.testing.fake.steps import (
    AgentFunction,
    AgentStep,
    Gate,
    Pause,
    PlainStep,
    Report,
    SendChunk,
    UserMessage,
    by_hand,
    sync_or_async,
)
from flux0.testing.fake.store import FakeStore, JSONObject, agent_data, status_data
from flux0.testing.fake.waiting import Wait, call_soon
from flux0.testing.fake.wording import Wording


@define
class _Draft:
    content: MessageAccumulator = Factory(MessageAccumulator)
    last_seq: int = -1


class Drafts:
    """All messages in the making, of all sessions: the server does not keep turns apart."""

    def __init__(self) -> None:
        self._drafts: dict[str, _Draft] = {}

    def add(self, chunk: ChunkEvent) -> bool:
        """Apply `chunk`, and return whether the server sends it on.

        It does not if a patch does not apply; or if the chunk does not append to anything, and its
        `seq` does not follow that of the last chunk that was sent (flux0-stream 0.1.0b2).
        """
        draft = self._drafts.get(chunk.event_id)
        if draft is None:
            draft = self._drafts[chunk.event_id] = _Draft()
        appends = any(patch.path.endswith("/-") for patch in chunk.patches)
        if not appends and chunk.seq != draft.last_seq + 1:
            # Nothing of it counts but, if it is the first, its metadata.
            draft.content.feed(evolve(chunk, patches=()))
            return False
        before = len(draft.content.problems)
        draft.content.feed(chunk)
        if len(draft.content.problems) > before:
            return False
        draft.last_seq = chunk.seq
        return True

    def finish(self, event_id: str) -> TurnMessage | None:
        """Return what the server stores of a message that is ready, if anything, and forget it."""
        draft = self._drafts.pop(event_id, None)
        messages = () if draft is None else draft.content.finish()
        return messages[0] if messages else None


class FakeTurn:
    """A turn, and an iterator over what comes out of it: each event as bytes, or a wait for one.

    A wait until infinity is a silence that nothing ends. An exception that the agent raises comes
    out where its next event would.

    Args:
        message: what the agent answers.
        agent: returns or yields the steps.
        store, drafts: what the server has.
        clock: moves the agent on after a pause.
        lock: is held while the agent does a step, but not while its code decides on the next.
        on_error: is told what the agent raises.
    """

    def __init__(
        self,
        message: UserMessage,
        agent: AgentFunction,
        store: FakeStore,
        drafts: Drafts,
        clock: FakeClock,
        lock: AbstractContextManager[Any],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self.message = message
        self._agent = agent
        self._store = store
        self._drafts = drafts
        self._clock = clock
        self._lock = lock
        self._on_error = on_error
        # The agent's own time: its pauses begin when it comes to them.
        self._time = clock.now()
        self._output: deque[bytes | BaseException] = deque()
        self._wording = Wording(store.next_number)
        self._plain: Generator[PlainStep, None, None] | None = None
        self._cancel_task: Callable[[], None] | None = None
        self._running = False
        # Where the agent rests: until a moment, or until a gate is opened.
        self._rest: Wait | None = None
        self._completed = False
        self._cancelled = False

    def __iter__(self) -> Iterator[bytes | Wait]:
        return self

    def __next__(self) -> bytes | Wait:
        if self._output:
            outcome = self._output.popleft()
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome
        if self._completed:
            raise StopIteration
        if self._cancelled:
            return Wait(inf)
        return Wait() if self._rest is None else self._rest

    def begin(self, loop: Loop | None) -> None:
        """Run the agent up to its first rest; one that is asynchronous code runs in `loop`."""
        try:
            steps = sync_or_async(self._agent(self.message))
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, Exception):
                raise
            return
        if isinstance(steps, AsyncGenerator) and loop is not None:
            self._running = True
            close_soon(loop, lambda: self._run_async(steps, loop))  # It makes a task of this.
        else:
            given = by_hand(steps) if isinstance(steps, AsyncGenerator) else steps
            self._plain = self._worded(given)
            self.go_on()

    def go_on(self) -> None:
        """Run the agent on, up to its next rest, unless somebody else does."""
        with self._lock:
            self._rest = None
            if self._running or self._plain is None:
                self._clock.changes.tell()
                return
            self._running = True
            plain = self._plain
        rests = False
        try:
            while not rests and not self._cancelled:
                self._do(next(plain))
                with (
                    self._lock
                ):  # Another thread may end the rest, and run the agent, from here on.
                    rests = self._rest is not None
                    self._running = not rests
        except StopIteration:
            self._complete()
        except BaseException as error:  # A bug of the script, which the test is to see.
            self._fail(error)
            if not isinstance(error, Exception):
                raise
        finally:
            if not rests:
                if self._cancelled:
                    plain.close()
                self._running = False
            self._clock.changes.tell()

    def cancel(self) -> None:
        """Stop the agent where it is; whoever reads gets what it has said, and nothing more."""
        with self._lock:
            if self._cancelled:
                return
            self._cancelled = True
            self._rest = None
            # Whoever runs the agent closes it.
            idle, self._running = not self._running, True
        if idle and self._plain is not None:
            self._plain.close()
        if self._cancel_task is not None:
            self._cancel_task()
        self._clock.changes.tell()

    @property
    def completed(self) -> bool:
        """Whether the agent has ended the turn, so that leaving it cancels nothing."""
        return self._completed

    # --- the agent

    def _worded(self, steps: Generator[AgentStep, None, None]) -> Generator[PlainStep, None, None]:
        with closing(steps):
            for step in steps:
                yield from self._wording.of(step)

    async def _run_async(self, steps: AsyncGenerator[AgentStep, None], loop: Loop) -> None:
        """Run an agent that is asynchronous code."""
        from anyio import CancelScope  # noqa: PLC0415 - slow to import

        with CancelScope() as scope:
            self._cancel_task = lambda: call_soon(loop, scope.cancel)
            try:
                async for step in steps:
                    for plain in self._wording.of(step):
                        if self._cancelled:
                            return
                        self._do(plain)
                        seen = self._clock.changes.count
                        while self._rest is not None:
                            await self._clock.changes.wait_async(Wait(seen=seen))
                            seen = self._clock.changes.count
                self._complete()
            except Exception as error:  # noqa: BLE001 - as above
                self._fail(error)
            finally:
                self._cancelled = self._cancelled or not self._completed
                self._clock.changes.tell()
                await steps.aclose()

    def _complete(self) -> None:
        with self._lock:
            self._completed = True
        self._clock.changes.tell()

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._output.append(error)
            self._cancelled = True
            self._on_error(error)
        self._clock.changes.tell()

    # --- its steps

    def _do(self, step: PlainStep) -> None:
        """Do a step, after which the agent may rest."""
        with self._lock:
            if self._cancelled:
                return
            match step:
                case SendChunk():
                    self._chunk(step)
                case Report(SessionStatus.COMPLETED):
                    self._completed = True  # The agent goes on, though nobody hears it.
                case Report():
                    self._report(step)
                case Pause(seconds):
                    self._pause(seconds)
                case Gate():
                    self._rest = Wait(patience=step.patience)
                    if not step.holds(self.go_on):
                        self._rest = None
                case _:  # FallSilent
                    self._rest = Wait(inf)
        self._clock.changes.tell()

    def _pause(self, seconds: float) -> None:
        self._time += seconds
        if self._time > self._clock.now():
            self._rest = Wait(self._time)
            self._clock.at(self._time, self._after_pause)

    def _after_pause(self) -> None:
        if self._rest is not None and not self._cancelled:
            self.go_on()

    def _chunk(self, step: SendChunk) -> None:
        message = self.message
        metadata: dict[str, Any] = {
            "agent_id": message.agent_id,
            "agent_name": message.agent_name,
            **step.metadata,
        }
        chunk = ChunkEvent(
            message.correlation_id,
            step.event_id,
            step.seq,
            tuple(map(_operation, step.patches)),
            {key: value for key, value in metadata.items() if value is not None},
            self._time,
        )
        if self._drafts.add(chunk):
            data = {
                "correlation_id": chunk.correlation_id,
                "event_id": chunk.event_id,
                "seq": chunk.seq,
                "patches": step.patches,
                "metadata": chunk.metadata,
                "timestamp": chunk.timestamp,
            }
            self._send(f"event: chunk\ndata: {json.dumps(data)}\n\n")

    def _report(self, step: Report) -> None:
        if step.status == SessionStatus.READY:
            message = self._drafts.finish(step.event_id or "")
            if message is not None:
                self._keep(message.type, agent_data(message), message.metadata)
            return
        data: JSONObject = {"type": "status", "status": step.status}
        if step.acknowledged_offset is not None:
            data["acknowledged_offset"] = step.acknowledged_offset
        if step.data is not None:
            data["data"] = step.data
        event: JSONObject = {
            "id": step.event_id or "",
            "source": "ai_agent",
            "type": "status",
            "correlation_id": self.message.correlation_id,
            "data": data,
            "metadata": None,
        }
        listed = status_data(step.status, step.acknowledged_offset, step.data)
        self._keep(EventType.STATUS, listed)
        self._send(f"event: status\nid: {event['id']}\ndata: {json.dumps(event)}\n\n")

    def _send(self, event: str) -> None:
        if not self._completed:
            self._output.append(event.encode())

    def _keep(self, type: EventType, data: JSONObject | None, metadata: Any = None) -> None:
        if not self._completed:
            self._store.create_event(
                self.message.session_id,
                correlation_id=self.message.correlation_id,
                type=type,
                source=EventSource.AI_AGENT,
                data=data,
                metadata=metadata,
                at=self._time,
            )


def _operation(patch: Mapping[str, Any]) -> JSONPatchOperation:
    return JSONPatchOperation(patch["op"], patch["path"], patch.get("value"), patch.get("from"))
