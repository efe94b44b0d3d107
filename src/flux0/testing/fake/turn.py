"""One turn of a fake agent: its steps become the bytes of a stream, and what is stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from inspect import GEN_RUNNING, getgeneratorstate
from math import inf
from typing import Any

from flux0.domain.enums import EventSource, EventType, SessionStatus
from flux0.domain.stream_events import ChunkEvent, JSONPatchOperation
from flux0.testing.fake.drafts import Drafts
from flux0.testing.fake.steps import (
    AgentStep,
    FallSilent,
    Pause,
    PlainStep,
    Report,
    SendChunk,
    UserMessage,
    expanded,
)
from flux0.testing.fake.store import FakeStore
from flux0.testing.fake.stored_json import JSONObject, agent_data, status_data


class FakeTurn:
    """An iterator over what comes out of a turn: one event as bytes, or a moment to wait for.

    The moment is in seconds since 1970, and infinite where nothing will come any more. The agent
    goes on only as far as it is asked to: nothing that it says after the last event that was read
    is stored.

    Attributes:
        message: what the agent answers.
    """

    def __init__(
        self,
        message: UserMessage,
        agent: Callable[[UserMessage], Iterable[AgentStep]],
        store: FakeStore,
        drafts: Drafts,
        began: float,
    ) -> None:
        self.message = message
        self._store = store
        self._drafts = drafts
        # The agent's own time: it does not wait until somebody reads what it said.
        self._time = began
        self._silent = False
        self._outcomes = self._run(agent)

    def __iter__(self) -> Iterator[bytes | float]:
        return self

    def __next__(self) -> bytes | float:
        if self._silent:
            return inf
        try:
            outcome = next(self._outcomes)
        except StopIteration:
            raise
        except BaseException:  # A bug of the script, which the test is to see.
            self._silent = True
            raise
        return self._unless_cancelled(outcome)

    def cancel(self) -> None:
        """Stop the agent where it is; whoever still reads hears nothing more."""
        self._silent = True
        if getgeneratorstate(self._outcomes) != GEN_RUNNING:
            self._outcomes.close()

    def _unless_cancelled(self, outcome: bytes | float) -> bytes | float:
        """Return `outcome`, unless what the agent did meanwhile has cancelled its own turn."""
        if not self._silent:
            return outcome
        self._outcomes.close()
        return inf

    def _run(
        self, agent: Callable[[UserMessage], Iterable[AgentStep]]
    ) -> Generator[bytes | float, None, None]:
        steps = iter(agent(self.message))
        try:
            for step in steps:
                for plain in expanded(step, self._new_id):
                    if isinstance(plain, Report) and plain.status == SessionStatus.COMPLETED:
                        next(steps, None)  # The agent goes on, though nobody hears it.
                        return
                    yield from self._done(plain)
        finally:
            if isinstance(steps, Generator):
                steps.close()

    def _new_id(self) -> str:
        return self._store.new_id("message")

    def _done(self, step: PlainStep) -> Iterator[bytes | float]:
        match step:
            case SendChunk():
                yield from self._chunk(step)
            case Report():
                yield from self._report(step)
            case Pause(seconds):
                self._time += seconds
                yield self._time
            case FallSilent():
                while True:
                    yield inf
            case _:
                raise TypeError(f"an agent yields steps of flux0.testing, and not {step!r}")

    def _chunk(self, step: SendChunk) -> Iterator[bytes]:
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
            yield f"event: chunk\ndata: {json.dumps(data)}\n\n".encode()

    def _report(self, step: Report) -> Iterator[bytes]:
        if step.status == SessionStatus.READY:
            self._store_message(step.event_id or "")
            return
        message = self.message
        data: JSONObject = {"type": "status", "status": step.status}
        if step.acknowledged_offset is not None:
            data["acknowledged_offset"] = step.acknowledged_offset
        if step.data is not None:
            data["data"] = step.data
        event: JSONObject = {
            "id": step.event_id or "",
            "source": "ai_agent",
            "type": "status",
            "correlation_id": message.correlation_id,
            "data": data,
            "metadata": None,
        }
        self._store_event(
            EventType.STATUS, status_data(step.status, step.acknowledged_offset, step.data)
        )
        yield f"event: status\nid: {event['id']}\ndata: {json.dumps(event)}\n\n".encode()

    def _store_message(self, event_id: str) -> None:
        message = self._drafts.finish(event_id)
        if message is not None:
            self._store_event(message.type, agent_data(message), message.metadata)

    def _store_event(self, type: EventType, data: JSONObject | None, metadata: Any = None) -> None:
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
