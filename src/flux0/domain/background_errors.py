"""The errors of background turns."""

from __future__ import annotations

from flux0.domain.errors import Flux0Error, Sent, StreamError


class TurnStopped(StreamError):
    """A background turn was stopped, by `BackgroundTurns.stop` or by a later message."""


class ReaderLost(StreamError):
    """The process, or the event loop, that read a background turn has ended.

    The server may have stored a part of the turn. Use `find_turn` to get this part.
    """


class TurnTooLarge(StreamError):
    """The requested events of a background turn are no longer kept (`max_turn_bytes`).

    A background turn with more than `limit` bytes continues, but its oldest events are dropped. Use
    `find_turn` or `history` after the turn's end.

    Attributes:
        limit: the largest allowed size of all kept events of a turn, in bytes.
    """

    def __init__(self, limit: int) -> None:
        reason = f"the turn is larger than {limit:,} bytes (max_turn_bytes)"
        super().__init__(f"the first events of the turn were dropped: {reason}")
        self.limit = limit


class RelayEnded(Flux0Error):
    """A relay of a background turn was ended by `BackgroundTurns.end_relays`. The turn continues.

    Relays send this error to their readers, which connect again. The error is not raised.
    """

    sent: Sent = "yes"


class TurnRunning(Flux0Error):
    """A background turn is running in the session, or did not end in time after it was stopped.

    If `BackgroundTurns.start` raised this error, the message was not sent.
    """


class TurnStoreError(Flux0Error):
    """The turn store cannot be used, or has lost events of a turn.

    `__cause__` is the exception of the store's library, such as redis, or None if the library has
    raised no exception, for example if the store was closed or did not respond in time.

    If `BackgroundTurns.start` raised this error, the message was not sent.
    """
