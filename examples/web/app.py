"""A chat with a flux0 agent on a web page.

Without a server, an agent in memory replies:

    python examples/web/app.py

With a flux0 server:

    FLUX0_SERVER_URL=http://127.0.0.1:8080 python examples/web/app.py

By default, turns are known in this process. If you run several, set FLUX0_REDIS_URL.

`uv run examples/web/app.py` installs the packages first.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["fastapi", "flux0-client[redis]", "uvicorn"]
# [tool.uv.sources]
# flux0-client = { path = "../.." }
# ///

import json
import os
import secrets
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from example_agent import in_memory_server
from flux0 import (
    AsyncConversation,
    BackgroundTurn,
    BackgroundTurns,
    Flux0,
    Flux0Error,
    RedisTurnStore,
)
from flux0.models import InvalidArgument

STATIC = Path(__file__).parent / "static"

# One client for the process. It opens its first connection when it sends its first request.
has_server = bool(os.environ.get("FLUX0_SERVER_URL"))
client = Flux0() if has_server else Flux0(transport=in_memory_server())
redis_url = os.environ.get("FLUX0_REDIS_URL")
turns = BackgroundTurns(RedisTurnStore.from_url(redis_url) if redis_url else None)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
    """Stop the turns and close the client when the application ends."""
    async with client:
        yield
        await turns.close_async()


app = FastAPI(lifespan=lifespan)
app.mount("/static", StaticFiles(directory=STATIC))


@app.get("/")
async def page(request: Request) -> FileResponse:
    """Return the page. A new visitor becomes a guest, whose name no other visitor can guess."""
    response = FileResponse(STATIC / "index.html")
    if "guest" not in request.cookies:
        name = secrets.token_urlsafe(16)
        response.set_cookie("guest", name, httponly=True, samesite="strict")
    return response


def current_user(request: Request) -> str:
    """Return the name of the user who sent the request. Replace it by your own login."""
    name = request.cookies.get("guest")
    if not name:
        raise HTTPException(401, "You are not logged in. Reload the page.")
    return name


User = Annotated[str, Depends(current_user)]


async def own_conversation(session_id: str, user: User) -> AsyncConversation:
    """Return the conversation with this session, if it belongs to the user.

    The server accepts messages from everyone who knows the id of a session.
    """
    conversation = await client.conversation_async(session=session_id, user=user)
    if not await conversation.belongs_to_user():
        raise HTTPException(404, f"You have no chat with the id {session_id}.")
    return conversation


OwnConversation = Annotated[AsyncConversation, Depends(own_conversation)]


@app.post("/sessions", status_code=201)
async def start_session(user: User) -> dict[str, str]:
    """Create a session that belongs to the user, and return its id."""
    agent = await client.agents.first_async()
    conversation = await client.conversation_async(agent=agent, user=user)
    return {"session_id": conversation.session_id}


@app.get("/sessions/{session_id}")
async def stored_parts(conversation: OwnConversation, response: Response) -> list[dict[str, str]]:
    """Return the stored messages of a session, as the parts that `turn.js` builds from a stream."""
    response.headers["cache-control"] = "no-store"
    return [
        {"kind": kind, "text": text, "turn": event.correlation_id}
        for event in await conversation.history()
        for kind, text in parts_of(event)
    ]


def parts_of(event: Any) -> Iterator[tuple[str, str]]:
    """Yield the kind and the text of each part of a stored event."""
    if event.reasoning:
        yield "reasoning", event.reasoning
    if event.text:
        yield "user" if event.source == "user" else "text", event.text
    for call in event.tool_calls:
        if event.type == "message":
            yield "tool_call", f"{call.tool_name}({json.dumps(call.args)})"
        elif call.result:
            yield "tool_result", json.dumps(call.result.data)


class Message(BaseModel):
    """The body of a request that sends a message."""

    text: Annotated[str, Field(pattern=r"\S", max_length=10_000)]


EVENT_STREAM = {
    "content-type": "text/event-stream",
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # nginx forwards each event at once.
}


@app.post("/sessions/{session_id}/messages")
async def send(conversation: OwnConversation, message: Message) -> StreamingResponse:
    """Send a message, and stream the turn, which continues without the browser."""
    return stream(await turns.start_async(conversation, message.text))


@app.get("/sessions/{session_id}/turn")
async def join(
    conversation: OwnConversation,
    last_event_id: Annotated[int | None, Header(ge=0)] = None,
) -> Response:
    """Stream the running turn, or a turn after an event; 204 if there is none."""
    turn = await turns.join_async(conversation.session_id)
    if turn is None or (last_event_id is None and not turn.is_running):
        return Response(status_code=204, headers={"cache-control": "no-store"})
    return stream(turn, last_event_id)


@app.delete("/sessions/{session_id}/turn", status_code=204)
async def stop(conversation: OwnConversation) -> None:
    """Stop the running turn, in whichever process reads it."""
    await turns.stop_async(conversation.session_id)


def stream(turn: BackgroundTurn, after: int | None = None) -> StreamingResponse:
    """Return a response with the events of a turn, and the id of the turn."""
    headers = {**EVENT_STREAM, "turn-id": turn.id}
    return StreamingResponse(turn.relay_async(after=after), headers=headers)


@app.exception_handler(Flux0Error)
async def show_error(_: Request, error: Flux0Error) -> JSONResponse:
    """Return an error of flux0 as JSON. Errors after the start of a stream are in the stream."""
    advice = "" if error.sent == "no" else " Reload the page to see the messages that were stored."
    status_code = 400 if isinstance(error, InvalidArgument) else 502
    return JSONResponse({"detail": f"{error.problem}.{advice}"}, status_code)


if __name__ == "__main__":
    port = int(os.environ.get("PORT", "8000"))
    uvicorn.run(app, port=port, timeout_graceful_shutdown=1)
