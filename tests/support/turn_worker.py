"""Web applications with background turns, which two web servers run: uvicorn and gunicorn.

Environment variables set the URLs of the flux0 server and of Redis, the lease, and the offset of
the clocks in this process.
"""

# ruff: noqa: E402 - the clocks are changed before other modules import them

from __future__ import annotations

import os
import time

_OFFSET = float(os.environ.get("CLOCK_OFFSET", "0"))
if _OFFSET:
    _time, _monotonic = time.time, time.monotonic
    time.time = lambda: _time() + _OFFSET
    time.monotonic = lambda: _monotonic() + _OFFSET

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Literal

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from flux0 import BackgroundTurn, BackgroundTurns, Flux0, RedisTurnStore, TurnRunning

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

DRAIN_SECONDS: Final = 20.0
Running = Literal["stop", "refuse"]

client = Flux0()
turns = BackgroundTurns(
    RedisTurnStore.from_url(
        os.environ["FLUX0_REDIS_URL"], lease_seconds=float(os.environ["LEASE_SECONDS"])
    )
)


def _headers(turn: BackgroundTurn) -> dict[str, str]:
    kind = {"content-type": "text/event-stream"}
    return {**kind, "turn-id": turn.id, "worker-pid": str(os.getpid())}


@asynccontextmanager
async def _lifespan(_: Starlette) -> AsyncGenerator[None, None]:
    yield
    await turns.close_async(drain_seconds=DRAIN_SECONDS)
    await client.close_async()


async def _send(request: Request) -> Response:
    conversation = await client.conversation_async(session=request.path_params["session_id"])
    running: Running = "refuse" if "refuse" in request.query_params else "stop"
    text = (await request.body()).decode()
    try:
        turn = await turns.start_async(conversation, text, running=running)
    except TurnRunning:
        return Response(status_code=409)
    return StreamingResponse(turn.relay_async(), headers=_headers(turn))


async def _join(request: Request) -> Response:
    turn = await turns.join_async(request.path_params["session_id"])
    if turn is None:
        return Response(status_code=204)
    after = request.headers.get("last-event-id")
    return StreamingResponse(turn.relay_async(after=after), headers=_headers(turn))


async def _stop(request: Request) -> Response:
    await turns.stop_async(request.path_params["session_id"])
    return Response(status_code=204)


_PATH: Final = "/{session_id}"
asgi = Starlette(
    routes=[
        Route(_PATH, _send, methods=["POST"]),
        Route(_PATH, _join, methods=["GET"]),
        Route(_PATH, _stop, methods=["DELETE"]),
    ],
    lifespan=_lifespan,
)


def wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The same routes for sync web servers."""
    session_id, turn = environ["PATH_INFO"][1:], None
    match environ["REQUEST_METHOD"]:
        case "POST":
            conversation = client.conversation(session=session_id)
            running: Running = "refuse" if environ["QUERY_STRING"] else "stop"
            text = environ["wsgi.input"].read().decode()
            try:
                turn = turns.start(conversation, text, running=running)
            except TurnRunning:
                start_response("409 Conflict", [])
                return ()
        case "DELETE":
            turns.stop(session_id)
        case _:
            turn = turns.join(session_id)
    if turn is None:
        start_response("204 No Content", [])
        return ()
    start_response("200 OK", list(_headers(turn).items()))
    # A sync web server notices that the browser has disconnected when it sends a heartbeat.
    return turn.relay(after=environ.get("HTTP_LAST_EVENT_ID"), heartbeat_ms=100)
