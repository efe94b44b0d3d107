"""Server-sent events: the bytes of a `text/event-stream` become events.

After WHATWG HTML, section 9.2.6, "Interpreting an event stream".
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final, cast

from flux0.domain.errors import EventTooLarge, InvalidArgument
from flux0.ports import ServerSentEvent

_BOM: Final = b"\xef\xbb\xbf"
_LF: Final = 0x0A
_CR: Final = 0x0D

# Python's strictest setting converts no more digits; and nobody waits 10**640 milliseconds.
_MAX_RETRY_DIGITS: Final = 640

# Makes an event in half the time that the class itself needs, with its names and defaults.
_new: Final[Callable[..., ServerSentEvent]] = cast("Any", tuple).__new__


class SSEParser:
    """An incremental parser of one event stream; an `EventStreamParser`.

    The result depends on the bytes alone, not on how they were split. An event is returned by the
    feed that brings the CR or LF of its blank line, even if an LF may still follow the CR. The cost
    is linear in the bytes, however small the pieces, and only the unfinished event is kept. A
    `retry` of more than 640 digits, without leading zeros, is ignored.

    `max_event_bytes` limits one event; None lifts the limit. All bytes since the last blank line
    count, also those of comments and unknown fields, and the end of each line as one byte. As soon
    as they pass the limit, `feed` raises `EventTooLarge`, reads nothing more, and raises again
    whenever it is called; `pending` is then True. If the same feed completed other events before,
    it returns them, and the next feed raises, even one of no bytes. So feed `b""` at the end of the
    input if `pending` is True.

    Raises:
        InvalidArgument: `max_event_bytes` is not positive.
    """

    def __init__(self, *, max_event_bytes: int | None = 16 * 1024 * 1024) -> None:
        if max_event_bytes is not None and max_event_bytes <= 0:
            raise InvalidArgument("max_event_bytes", f"must be positive, not {max_event_bytes}")
        self._limit = sys.maxsize if max_event_bytes is None else max_event_bytes
        self._too_large = False
        # The bytes that may become the byte order mark; None once that is decided.
        self._start: bytes | None = b""
        # False at the start, after a CR, and for good when an event was too large.
        self._settled = False
        # The unfinished block, with LF as the end of each line. Its last LF is held apart: another
        # one ends the block. Appending to a bytearray costs the same however long it is.
        self._held = bytearray()
        self._held_lf = b""
        self._within_line = False
        self._last_event_id = ""
        self._retry: int | None = None
        # The start of an event that is a name and one line of data, with the last such name.
        self._usual_start = b"event: message\ndata: "
        self._usual_name = "message"

    @property
    def last_event_id(self) -> str:
        """The last event id in force: that of the last block that a blank line ended, or empty."""
        return self._last_event_id

    @property
    def retry(self) -> int | None:
        """The last valid reconnection time in milliseconds, or None; its line alone sets it."""
        return _last_retry(self._held_lines()[:-1], self._retry)

    @property
    def pending(self) -> bool:
        """Whether the stream would be cut short within a line or a block if it ended here.

        A comment is complete with its line. A part of a byte order mark is a part of a line.
        """
        *lines, rest = self._held_lines()
        has_fields = any(not line.startswith(":") for line in lines)
        return has_fields or bool(rest) or bool(self._start) or self._too_large

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """Take the next bytes, of any number, and return the events that they complete.

        Raises:
            EventTooLarge: one event grew past the limit.
        """
        held = self._held
        if self._within_line and _LF not in data and _CR not in data:
            held += data  # Small pieces mostly are more of an unfinished line.
            if len(held) <= self._limit:
                return []
            data = b""
        self._within_line = False
        if not self._settled:
            data = self._settle(data)
        if _CR in data:
            self._settled = data[-1] != _CR
            # One byte is found many times as fast as two.
            first, *rest = data.split(b"\r")
            data = b"\n".join((first, *(line.removeprefix(b"\n") for line in rest)))
        if len(held) + len(data) >= self._limit:
            data = self._within_limit(data)
        events: list[ServerSentEvent] = []
        if not held:
            data = self._read(data, events)
        else:
            data = self._held_lf + data
            # What is held is copied where that costs no more than the piece, or ends the block.
            if len(data) > len(held) or _block_end(data, 0) >= 0:
                data = b"".join((held, data))
                held.clear()
                self._held_lf = b""
                data = self._read(data, events)
        if data:
            self._within_line = data[-1] != _LF
            if not self._within_line:
                data = data[:-1]
            self._held_lf = b"" if self._within_line else b"\n"
            held += data
        if self._too_large:
            self._retry = self.retry
            self._within_line = False
            held.clear()
            if not events:
                raise EventTooLarge(self._limit)
        return events

    def _settle(self, data: bytes) -> bytes:
        """Return `data` without a byte order mark, and without the LF of a CRLF that was cut."""
        if self._too_large:
            raise EventTooLarge(self._limit)
        if self._start is None:
            self._settled = bool(data)
            return data.removeprefix(b"\n")
        start = self._start + data
        if len(start) < len(_BOM) and _BOM.startswith(start):
            self._start = start
            return b""
        self._start = None
        self._settled = True
        return start.removeprefix(_BOM)

    def _within_limit(self, data: bytes) -> bytes:
        """Return the held bytes and `data`, but only up to where a block passes the limit."""
        data = bytes(self._held) + self._held_lf + data
        self._held.clear()
        self._held_lf = b""
        start = 0
        for lines in data.split(b"\n\n"):
            block = lines.lstrip(b"\n")
            start += len(lines) - len(block)
            end = start + len(block)
            if len(block) + (end < len(data)) > self._limit:  # Its last LF counts too.
                self._too_large, self._settled = True, False
                return data[: start + self._limit]
            start = end + 2
        return data

    def _read(self, data: bytes, events: list[ServerSentEvent]) -> bytes:
        """Append to `events` what the whole blocks say, and return the unfinished one."""
        usual, place, size = self._usual_start, 0, len(data)
        while place < size:
            # Servers mostly send one line of data with the name that the last event had.
            if data.startswith(usual, place):
                start = place + len(usual)
                end = data.find(b"\n", start)
                if end < 0:
                    return data[place:]
                if end + 1 < size and data[end + 1] == _LF:
                    text = data[start:end].decode("utf-8", "replace")
                    events.append(
                        _new(ServerSentEvent, (self._usual_name, text, self._last_event_id, None))
                    )
                    place = end + 2
                    continue
            end = _block_end(data, place)
            if end < 0:
                return data[place:].lstrip(b"\n")
            self._interpret(data[place:end], events)
            usual, place = self._usual_start, end + 2
        return b""

    def _interpret(self, block: bytes, events: list[ServerSentEvent]) -> None:
        """Append to `events` what the lines of one block say."""
        name = ""
        data: list[str] = []
        lines = block.decode("utf-8", "replace").split("\n")
        for line in lines:
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "data":
                data.append(value)
            elif field == "event":
                name = value
            elif field == "id" and "\0" not in value:
                self._last_event_id = value
        retry = _last_retry(lines, None)
        if retry is not None:
            self._retry = retry
        if data:
            name = name or "message"
            events.append(ServerSentEvent(name, "\n".join(data), self._last_event_id, retry))
        start, separator, _ = block.partition(b"\ndata: ")
        if separator and start.startswith(b"event: ") and _LF not in start:
            # Not `name`, which a line after the data may have given.
            usual = start.removeprefix(b"event: ").decode("utf-8", "replace")
            self._usual_start, self._usual_name = start + separator, usual or "message"

    def _held_lines(self) -> list[str]:
        return (self._held + self._held_lf).decode("utf-8", "replace").split("\n")


def _block_end(data: bytes, place: int) -> int:
    """Return where the LF is that a blank line follows, from `place` on; -1 if there is none."""
    # One byte is found many times as fast as two.
    end = data.find(b"\n", place)
    while end >= 0 and data[end + 1 : end + 2] != b"\n":
        end = data.find(b"\n", end + 1)
    return end


def _last_retry(lines: list[str], otherwise: int | None) -> int | None:
    for line in reversed(lines):
        if line.startswith("retry:"):
            digits = line[6:].removeprefix(" ")
            if digits.isascii() and digits.isdigit():
                digits = digits.lstrip("0") or "0"
                if len(digits) <= _MAX_RETRY_DIGITS:
                    return int(digits)
    return otherwise
