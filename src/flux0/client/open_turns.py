"""Which turns a client has open, so that a session never has two.

The server runs one turn a session. A second one silences the first for ever, and closing the
first after that kills the second (measured, 0.1.0b4). So the first is closed before.
"""

from __future__ import annotations

from typing import TypeAlias
from weakref import WeakValueDictionary

from flux0.client.streams import AsyncEventStream, EventStream

Session: TypeAlias = tuple[str, str]  # the server's URL and the session's id


class OpenTurns:
    """The streams that this client has handed out and somebody still holds."""

    def __init__(self) -> None:
        self._streams: WeakValueDictionary[Session, EventStream | AsyncEventStream]
        self._streams = WeakValueDictionary()

    def add(self, session: Session, stream: EventStream | AsyncEventStream) -> None:
        """Take note of the stream that is now open on `session`."""
        self._streams[session] = stream

    def close(self, session: Session) -> None:
        """Close the stream that is open on `session`, if there is one, from synchronous code.

        An asynchronous one is closed when its event loop gets to it, which may be too late for the
        turn that follows.
        """
        stream = self._streams.pop(session, None)
        if isinstance(stream, EventStream):
            stream.close()
        elif stream is not None:
            stream.close_soon()

    async def close_async(self, session: Session) -> None:
        """Close the stream that is open on `session`, if there is one."""
        stream = self._streams.pop(session, None)
        if isinstance(stream, EventStream):
            stream.close()
        elif stream is not None:
            await stream.close_async()
