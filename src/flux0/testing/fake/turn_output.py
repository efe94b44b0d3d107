"""The stream and the stored events of one turn of a fake agent."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

from attrs import define, field

from flux0.domain.enums import EventSource, EventType, SessionStatus
from flux0.domain.stream_events import ChunkEvent, JSONPatchOperation
from flux0.testing.fake import steps
from flux0.testing.fake.store import FakeStore, JSONObject, agent_data, status_data, without_nulls


@define(eq=False)
class TurnOutput:
    """Encodes and stores the events of one turn. The caller holds the lock of the fake."""

    message: steps.UserMessage
    store: FakeStore
    _has_status_times: bool
    # The time on the fake's clock at which the agent sends its next event.
    time: float
    # The stream's events that the reader has not received. An exception is the last item.
    unread: deque[bytes | Exception] = field(factory=deque[Any], init=False)
    # `completed` is True if the agent has ended the turn. Then its further events are dropped.
    completed: bool = field(default=False, init=False)
    # `closes_connection` is True if the server closes the connection after the last byte of the
    # turn's stream.
    closes_connection: bool = field(default=False, init=False)

    def send_chunk(self, step: steps.SendChunk) -> None:
        message = self.message
        agent = {"agent_id": message.agent_id, "agent_name": message.agent_name}
        data: JSONObject = {
            "correlation_id": message.correlation_id,
            "event_id": step.event_id,
            "seq": step.seq,
            "patches": step.patches,
            "metadata": without_nulls({**agent, **step.metadata}),
            "timestamp": self.time,
        }
        patches = tuple(
            JSONPatchOperation(patch["op"], patch["path"], patch.get("value"), patch.get("from"))
            for patch in step.patches
        )
        members: JSONObject = {**data, "patches": patches}
        if self.store.add_chunk(ChunkEvent(**members)):
            # Encode the dict `data` instead of the `ChunkEvent`, whose encoder reorders the members
            # of each patch.
            self._send(f"event: chunk\ndata: {json.dumps(data)}\n\n".encode())

    def send_status(self, step: steps.Report) -> None:
        if step.status == SessionStatus.READY:
            message = None if step.event_id is None else self.store.finish_message(step.event_id)
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
            **({"timestamp": self.time} if self._has_status_times else {}),
        }
        try:
            self._send(f"event: status\nid: {event['id']}\ndata: {json.dumps(event)}\n\n".encode())
        except UnicodeEncodeError:
            # Like the real server, end the body if the event's id contains a lone surrogate.
            self.completed = self.closes_connection = True

    def _send(self, event: bytes) -> None:
        if not self.completed:
            self.unread.append(event)

    def _store_event(self, type: EventType, data: JSONObject | None, metadata: Any = None) -> None:
        if not self.completed:
            source = EventSource.AI_AGENT
            self.store.create_event(self.message, type, source, data, metadata, self.time)
