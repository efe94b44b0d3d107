"""Reading the body of every answer that is no stream, within reach of the retry policy."""

from __future__ import annotations

from typing import Any

from flux0.flows import Flow, ReadBody, SendFlow
from flux0.ports import Request, Response


class WholeBody:
    """Reads the body of a success, up to a limit in bytes, unless the request asks for a stream."""

    def __init__(self, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes

    def __call__(self, request: Request, send: SendFlow) -> Flow[Response[Any]]:
        """Return the response, its body as bytes or, for a stream, still to be read."""
        response = yield from send(request)
        if request.stream:
            return response
        body: bytes = yield ReadBody(response, self._max_body_bytes, request.deadline)
        return Response(response.status_code, response.headers, body, response.raw_response)
