"""The applications whose restarts are tested: routes for the sample of `docs/how-to/web.md`.

`wsgi` uses the turns that the page's gunicorn settings close.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from flux0 import RELAY_HEADERS, BackgroundTurns, Flux0

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

# The log has a line for each turn that ends.
logging.basicConfig(level=logging.INFO)

turns = BackgroundTurns()


def add_routes(app: FastAPI) -> None:
    """Add a route that returns the id of the process, and a route that starts a turn."""
    app.add_api_route("/", _process)
    app.add_api_route("/{session_id}", _send, methods=["POST"])


async def _process() -> Response:
    return PlainTextResponse(str(os.getpid()))


async def _send(request: Request, session_id: str) -> Response:
    conversation = await request.state.client.conversation_async(session=session_id)
    text = (await request.body()).decode()
    turn = await request.state.turns.start_async(conversation, text)
    headers = {**RELAY_HEADERS, "process": str(os.getpid())}
    return StreamingResponse(turn.relay_async(), headers=headers)


def wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The same routes for sync web servers."""
    process = ("process", str(os.getpid()))
    if environ["REQUEST_METHOD"] == "GET":
        start_response("200 OK", [("content-type", "text/plain")])
        return [process[1].encode()]
    conversation = Flux0().conversation(session=environ["PATH_INFO"][1:])
    turn = turns.start(conversation, environ["wsgi.input"].read().decode())
    start_response("200 OK", [*RELAY_HEADERS.items(), process])
    return turn.relay()
