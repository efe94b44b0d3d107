"""Finding a turn in the stored events of its session, after an error or in another process."""

from __future__ import annotations

from typing import Final

from flux0.domain import arguments
from flux0.domain.errors import InvalidArgument
from flux0.domain.messages.history import StoredTurn, stored_turn
from flux0.flows import Flow, Sleep
from flux0.usecases.call import ApiCall
from flux0.usecases.sessions import list_events

# The seconds between the first and the second request of `find_turn`; each later interval is twice
# as long as the previous interval. In a measurement with connections that failed before the message
# was stored, the server stored two of three messages within 0.1 s.
_FIRST_INTERVAL: Final = 0.1


def next_offset(call: ApiCall, session_id: str) -> Flow[int]:
    events = yield from list_events(call, session_id)
    return max((0, *(event.offset + 1 for event in events)))


def find_turn(
    call: ApiCall,
    session_id: str,
    content: str | None,
    since: int | None,
    correlation_id: str | None,
    wait_ms: int,
) -> Flow[StoredTurn | None]:
    if (content is None) is (correlation_id is None):
        raise InvalidArgument("content", "or correlation_id must be passed, but not both")
    if content is not None:
        arguments.text("content", content)
        if since is None:
            problem = "must be passed with content: an older message may have the same text"
            raise InvalidArgument("since", f"{problem} (see next_offset)")
    if since is not None:
        arguments.integer("since", since, smallest=0)
    left, interval = arguments.interval("wait_ms", wait_ms) / 1000, _FIRST_INTERVAL
    while True:
        events = yield from list_events(
            call, session_id, min_offset=since, correlation_id=correlation_id
        )
        turn = stored_turn(events, content)
        if turn is not None or left <= 0:
            return turn
        interval = min(interval, left)
        yield Sleep(interval)
        left -= interval
        interval *= 2
