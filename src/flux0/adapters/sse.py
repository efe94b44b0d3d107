"""A parser of server-sent events, in bodies of type `text/event-stream`.

Source: WHATWG HTML, section 9.2.6, "Interpreting an event stream". A block is a sequence of lines
that ends with a blank line. Each block has at most one event. `SSEParser` splits the bytes into
blocks, and `_EventDecoder` decodes the blocks into events.
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

# The largest number of digits in a `retry` field. `int` accepts at least this number of digits,
# because users cannot set a lower limit with `sys.set_int_max_str_digits`.
_MAX_DIGITS: Final = 640

# `tuple.__new__` creates a `ServerSentEvent`, a named tuple, in half the time of its constructor.
_new: Final[Callable[..., ServerSentEvent]] = cast("Any", tuple).__new__

# The parser's states.
_START: Final = 0  # No bytes, or only a part of a byte order mark (BOM), were received.
_WITHIN: Final = 1  # The BOM was skipped, if there was one.
_AFTER_CR: Final = 2  # The last received byte was a CR. A following LF is a part of its line end.
_FAILED: Final = 3  # An event was too large. The parser raises the same error from now on.


class SSEParser:
    """An incremental parser for one stream of server-sent events.

    The events depend only on the bytes, not on how the bytes are split into calls of `feed`. `feed`
    returns an event when it receives the CR or LF of a blank line. It does not wait for an LF
    after a CR. The parser stores the incomplete block, the last event id and the last reconnection
    time. Its cost is linear in the number of bytes. A `retry` field with more than 640 digits, not
    counting leading zeros, is ignored.

    `max_event_bytes` limits the size of one event; None means no limit. The size is the number of
    bytes since the last blank line, including comments and unknown fields. Each line end counts as
    one byte. If an event exceeds the limit, this call and all later calls of `feed` raise
    `EventTooLarge`, and `pending` stays True. If complete events precede the large event in `data`,
    `feed` first returns these events, and the next call raises the error. At the end of the stream,
    call `feed(b"")` if `pending` is True, because it may raise this error.

    Raises:
        InvalidArgument: `max_event_bytes` is not positive.
    """

    def __init__(self, *, max_event_bytes: int | None = 16 * 1024 * 1024) -> None:
        if max_event_bytes is not None and max_event_bytes <= 0:
            raise InvalidArgument("max_event_bytes", f"must be positive, not {max_event_bytes}")
        self._limit = sys.maxsize if max_event_bytes is None else max_event_bytes
        self._decoder = _EventDecoder()
        self._state = _START
        # `_block` contains the received lines of the incomplete block, or a part of a BOM. Line
        # ends are LF. If the last line is complete, its LF is in `_line_end`, because a blank line
        # begins there. `_block` is a bytearray: appending to it does not copy its content.
        self._block = bytearray()
        self._line_end = b""

    @property
    def pending(self) -> bool:
        """Whether the received bytes end with an incomplete line or block.

        A comment is complete at the end of its line. A part of a byte order mark is an incomplete
        line.
        """
        *lines, rest = self._unfinished_block().split(b"\n")
        has_fields = any(not line.startswith(b":") for line in lines)
        return has_fields or bool(rest) or self._state == _FAILED

    @property
    def retry(self) -> int | None:
        *lines, _ = self._unfinished_block().decode("utf-8", "replace").split("\n")
        fields = (line.partition(":") for line in lines)
        values = [_retry(value.removeprefix(" ")) for name, _, value in fields if name == "retry"]
        return next((value for value in reversed(values) if value is not None), self._decoder.retry)

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        if self._state != _WITHIN:
            data = self._skip_bom_or_lf(data)
        if not data:
            return []
        if _CR in data:
            if data[-1] == _CR:
                self._state = _AFTER_CR
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        block = self._block
        if not block:
            # This fast branch handles the most frequent data: complete events.
            if data.endswith(b"\n\n") and len(data) <= self._limit:
                return self._decoder.decode(data)
            data = data.lstrip(b"\n")
        elif _LF not in data and len(block) + len(data) < self._limit:
            # This fast branch handles a part of a line.
            block += self._line_end + data
            self._line_end = b""
            return []
        data = self._line_end + data
        size = len(block) + len(data)
        # Find the last blank line in `data`: the last LF that follows an LF. A search for a single
        # LF is faster than a search for two bytes.
        end = data.rfind(b"\n")
        while end > 0 and data[end - 1] != _LF:
            end = data.rfind(b"\n", 0, end)
        complete = b""
        if end > 0:
            complete, data = b"".join((block, data[: end + 1])), data[end + 1 :]
            block.clear()
        self._line_end = b"\n" if data.endswith(b"\n") else b""
        block += data.removesuffix(b"\n")
        if size > self._limit:
            complete = self._before_excess(complete)
        events = self._decoder.decode(complete)
        if self._state == _FAILED and not events:
            raise EventTooLarge(self._limit)
        return events

    def _skip_bom_or_lf(self, data: bytes) -> bytes:
        if self._state == _FAILED:
            raise EventTooLarge(self._limit)
        if self._state == _START:
            data = bytes(self._block) + data
            self._block.clear()
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._block += data
                return b""
            self._state = _WITHIN
            return data.removeprefix(_BOM)
        if data:
            self._state = _WITHIN
        return data.removeprefix(b"\n")

    def _before_excess(self, complete: bytes) -> bytes:
        """Return the blocks in `complete` before the first block that is too large.

        If this block or the incomplete block is too large, the parser has failed.
        """
        start = 0
        for lines in complete.split(b"\n\n")[:-1]:
            # The size of a block includes the LF after its last line, which `lines` does not have.
            if len(lines.lstrip(b"\n")) >= self._limit:
                break
            start += len(lines) + 2
        else:
            if len(self._block) + len(self._line_end) <= self._limit:
                return complete
        self._state = _FAILED
        self._block.clear()
        return complete[:start]

    def _unfinished_block(self) -> bytes:
        return bytes(self._block) + self._line_end


class _EventDecoder:
    """Decodes complete blocks of lines into events. Each line must end with LF."""

    def __init__(self) -> None:
        self.last_event_id = ""
        self.retry: int | None = None
        # Most blocks start with the lines of an earlier block: "event: NAME", and "data: " with
        # other data. To decode such blocks faster, `_common_start` and `_common_name` store the
        # start and the NAME of the last such block.
        self._common_start = b"event: message\ndata: "
        self._common_name = "message"

    def decode(self, blocks: bytes) -> list[ServerSentEvent]:
        events: list[ServerSentEvent] = []
        start, position, size = self._common_start, 0, len(blocks)
        while position < size:
            if blocks.startswith(start, position):
                data_start = position + len(start)
                end = blocks.find(b"\n", data_start)
                # If a blank line follows the `data` line, the event is complete.
                if blocks[end + 1] == _LF:
                    text = blocks[data_start:end].decode("utf-8", "replace")
                    fields = self._common_name, text, self.last_event_id, None
                    events.append(_new(ServerSentEvent, fields))
                    position = end + 2
                    continue
            elif blocks[position] == _LF:  # Several blank lines may separate two events.
                position += 1
                continue
            end = blocks.find(b"\n", position)
            while blocks[end + 1] != _LF:
                end = blocks.find(b"\n", end + 1)
            event = self._decode_block(blocks[position:end])
            if event is not None:
                events.append(event)
            start, position = self._common_start, end + 2
        return events

    def _decode_block(self, block: bytes) -> ServerSentEvent | None:
        name = ""
        data: list[str] = []
        retry: int | None = None
        for line in block.decode("utf-8", "replace").split("\n"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "data":
                data.append(value)
            elif field == "event":
                name = value
            elif field == "id" and "\0" not in value:
                self.last_event_id = value
            elif field == "retry" and (milliseconds := _retry(value)) is not None:
                retry = self.retry = milliseconds
        start, separator, _ = block.partition(b"\ndata: ")
        if separator and start.startswith(b"event: ") and _LF not in start:
            # Take the name from `start`. The variable `name` can have another value, because a
            # second `event` line may follow the `data` line.
            common = start.removeprefix(b"event: ").decode("utf-8", "replace")
            self._common_start, self._common_name = start + separator, common or "message"
        if not data:
            return None
        return ServerSentEvent(name or "message", "\n".join(data), self.last_event_id, retry)


def _retry(value: str) -> int | None:
    digits = value.lstrip("0") or value[-1:]
    valid = value.isascii() and value.isdigit() and len(digits) <= _MAX_DIGITS
    return int(digits) if valid else None
