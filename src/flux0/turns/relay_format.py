"""The pieces of a relay that are not events of the server."""

from __future__ import annotations

from typing import Final

from flux0.domain.errors import Flux0Error

# Do not add a blank line: @microsoft/fetch-event-source, which the React hook of the flux0 server
# uses, would report the comment as an empty message.
HEARTBEAT: Final = b": heartbeat\n"


def error_event(error: Flux0Error, number: int | None = None) -> bytes:
    """Return an event named `error`, with the class and the message of the error as JSON."""
    import json  # noqa: PLC0415 - errors are rare

    field = "" if number is None else f"id: {number}\n"
    data = json.dumps({"type": type(error).__name__, "message": error.problem})
    return f"event: error\n{field}data: {data}\n\n".encode()
