"""Server-sent events: the bytes of a `text/event-stream` become events.

After WHATWG HTML, section 9.2.6, "Interpreting an event stream".
"""

from __future__ import annotations

import sys
from typing import Final

from flux0.domain.construction import mutable_twin
from flux0.domain.errors import EventTooLarge, InvalidArgument
from flux0.ports import ServerSentEvent

_MutableEvent: Final = mutable_twin(ServerSentEvent)

_BOM: Final = b"\xef\xbb\xbf"
_LF: Final = 0x0A
_CR: Final = 0x0D
_COLON: Final = 0x3A
_NUL: Final = 0x00
_FIELDS: Final = frozenset((b"data", b"event", b"id", b"retry"))

# Python at its strictest converts no longer digit string, and nobody waits 10**640 milliseconds.
_MAX_RETRY_DIGITS: Final = 640


class SSEParser:
    """An incremental parser of one event stream; an `EventStreamParser`.

    What comes out depends on the bytes alone, not on how they were split. An event is returned by
    the feed that brings the CR or LF of its blank line; a CR is not held back to see whether LF
    follows. Cost is linear in the bytes, however small the pieces, and only the unfinished event is
    kept. A `retry` of more than 640 digits, leading zeros aside, is ignored.

    `max_event_bytes` limits one event; None lifts the limit. What counts are all lines since the
    last blank line, comments and unknown fields too, each with one byte for its end, and the
    unfinished line. As soon as they pass the limit, `feed` raises `EventTooLarge`, reads nothing
    from there on, and raises again whenever it is called; `pending` is then True. Only where the
    same feed completed other events before, it returns those, and the next feed raises, even one of
    no bytes: so where `pending` is True at the end of the input, feed `b""`.

    Raises:
        InvalidArgument: `max_event_bytes` is not positive.
    """

    def __init__(self, *, max_event_bytes: int | None = 16 * 1024 * 1024) -> None:
        if max_event_bytes is not None and max_event_bytes <= 0:
            raise InvalidArgument("max_event_bytes", f"must be positive, and is {max_event_bytes}")
        self._limit = sys.maxsize if max_event_bytes is None else max_event_bytes
        self._too_large = False
        # What may yet become the byte order mark; None once that is settled.
        self._start: bytes | None = b""
        self._after_cr = False
        # The unfinished line; appending to a bytearray costs the same however long it is.
        self._line = bytearray()
        # The whole lines since the last blank line: how much they are, and what they said.
        self._block_bytes = 0
        self._block_has_fields = False
        self._event = ""
        self._data: list[str] = []
        self._block_retry: int | None = None
        self._id = ""  # the last event id as of the next blank line
        self._last_event_id = ""
        self._retry: int | None = None

    @property
    def last_event_id(self) -> str:
        """The last event id in force: that of the last block a blank line ended, or empty."""
        return self._last_event_id

    @property
    def retry(self) -> int | None:
        """The last valid reconnection time in milliseconds, or None; its line alone sets it."""
        return self._retry

    @property
    def pending(self) -> bool:
        """Whether the stream, ending here, would be cut short within a line or a block.

        A comment is complete with its line. A part of a byte order mark is a part of a line.
        """
        return self._block_has_fields or bool(self._line) or bool(self._start) or self._too_large

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """Take the next bytes, of any number, and return the events they complete.

        Raises:
            EventTooLarge: one event grew past the limit.
        """
        if self._too_large:
            raise EventTooLarge(self._limit)
        if self._start is not None:
            data = self._without_bom(data)
        if self._after_cr and data:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if not data:
            return []
        held = self._block_bytes + len(self._line)
        near_limit = held + len(data) > self._limit
        if not held and not near_limit and _CR not in data:
            # Servers mostly send, and HTTP libraries hand over, one event at a time: a name and one
            # line of data. The lines below would say the same of it, for half as much again.
            head, _, rest = data.partition(b"\ndata: ")
            if head[:7] == b"event: " and _LF not in head:
                value, _, end = rest.partition(b"\n")
                if end == b"\n":
                    event = head[7:].decode("utf-8", "replace") or "message"
                    text = value.decode("utf-8", "replace")
                    dispatched = _MutableEvent(event, text, self._last_event_id)
                    dispatched.__class__ = ServerSentEvent
                    return [dispatched]
        lines = data.splitlines()  # of bytes: at CR, LF and CRLF, and nowhere else
        rest = b""
        if data[-1] == _CR:
            self._after_cr = True
        elif data[-1] != _LF:
            rest = lines.pop()
        if lines and self._line:
            lines[0] = b"".join((self._line, lines[0]))
            self._line.clear()
        if rest:
            self._line += rest
        if near_limit:
            return self._interpret_within_limit(lines)
        return self._interpret(lines)

    def _without_bom(self, data: bytes) -> bytes:
        start = (self._start or b"") + data
        if len(start) < len(_BOM) and _BOM.startswith(start):
            self._start = start
            return b""
        self._start = None
        return start.removeprefix(_BOM)

    def _interpret_within_limit(self, lines: list[bytes]) -> list[ServerSentEvent]:
        """Do as `_interpret` does, up to the line that makes its event too large."""
        size = self._block_bytes
        fitting = 0
        for line in lines:
            size = size + len(line) + 1 if line else 0
            if size > self._limit:
                break
            fitting += 1
        else:
            size += len(self._line)
        events = self._interpret(lines[:fitting])
        if size > self._limit:
            self._too_large = True
            self._line.clear()
            self._data.clear()
            if not events:
                raise EventTooLarge(self._limit)
        return events

    def _interpret(self, lines: list[bytes]) -> list[ServerSentEvent]:
        """Do what whole lines say; this is the hot loop, and calls nothing of ours but the rare."""
        events: list[ServerSentEvent] = []
        data_lines = self._data
        for line in lines:
            if not line:
                self._last_event_id = self._id
                if data_lines:
                    dispatched = _MutableEvent(
                        self._event or "message",
                        "\n".join(data_lines),
                        self._last_event_id,
                        self._block_retry,
                    )
                    dispatched.__class__ = ServerSentEvent
                    events.append(dispatched)
                    data_lines.clear()
                self._event = ""
                self._block_retry = None
                self._block_bytes = 0
                self._block_has_fields = False
                continue
            # Nearly every line is `name: value`. Any other is cut again at its first colon, after
            # which no space can follow if the name is a known one.
            name, _, value = line.partition(b": ")
            if name not in _FIELDS:
                name, _, value = line.partition(b":")
            if name == b"data":
                data_lines.append(value.decode("utf-8", "replace"))
            elif name == b"event":
                self._event = value.decode("utf-8", "replace")
            elif name == b"id":
                if _NUL not in value:
                    self._id = value.decode("utf-8", "replace")
            elif name == b"retry" and value.isdigit():
                self._set_retry(value)
        if lines and lines[-1]:
            self._measure_block(lines)
        return events

    def _set_retry(self, digits: bytes) -> None:
        digits = digits.lstrip(b"0") or b"0"
        if len(digits) <= _MAX_RETRY_DIGITS:
            self._retry = self._block_retry = int(digits)

    def _measure_block(self, lines: list[bytes]) -> None:
        """Add the lines after the last blank line to the block that is open."""
        for line in reversed(lines):
            if not line:
                break
            self._block_bytes += len(line) + 1
            self._block_has_fields = self._block_has_fields or line[0] != _COLON
