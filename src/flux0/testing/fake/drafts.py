"""The messages that a fake server's agents are making, by the server's rules."""

from __future__ import annotations

from attrs import Factory, define, evolve

from flux0.domain.messages.accumulator import MessageAccumulator
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.stream_events import ChunkEvent


@define
class _Draft:
    content: MessageAccumulator = Factory(MessageAccumulator)
    last_seq: int = -1


class Drafts:
    """All messages in the making, of all sessions: the server does not keep turns apart."""

    def __init__(self) -> None:
        self._drafts: dict[str, _Draft] = {}

    def add(self, chunk: ChunkEvent) -> bool:
        """Apply `chunk`, and say whether the server sends it on.

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
