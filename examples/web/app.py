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

import logging
import os
import secrets
import signal
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from example_agent import in_memory_server
from flux0 import (
    RELAY_HEADERS,
    AsyncConversation,
    BackgroundTurn,
    BackgroundTurns,
    Flux0,
    Flux0Error,
    RedisTurnStore,
    to_dict,
)
from flux0.models import InvalidArgument

STATIC = Path(__file__).parent / "static"
# The page loads everything from this application, and contains no scripts itself.
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; connect-src 'self'; img-src data:; "
    "script-src 'self'; style-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types dompurify",
    "referrer-policy": "no-referrer",  # The URL contains the id of the session.
}
logger = logging.getLogger("uvicorn.error")

has_server = bool(os.environ.get("FLUX0_SERVER_URL"))
redis_url = os.environ.get("FLUX0_REDIS_URL")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    """Create one client for all requests of the process. Stop the turns and close it at the end."""
    turns = BackgroundTurns(RedisTurnStore.from_url(redis_url) if redis_url else None)
    async with Flux0() if has_server else Flux0(transport=in_memory_server()) as client:
        app.state.client, app.state.turns = client, turns
        before_exit(signal.SIGTERM, turns.end_relays)  # The pages connect again.
        before_exit(signal.SIGINT, client.close)  # Ctrl-C ends the turns, too.
        yield
        await turns.close_async(drain_seconds=30)


def before_exit(number: int, act: Callable[[], object]) -> None:
    """Call a function on a signal. Otherwise, the web server would first wait for the relays."""
    if threading.current_thread() is not threading.main_thread():
        return
    handle_exit = signal.getsignal(number)

    def handle(number: int, frame: FrameType | None) -> None:
        act()
        if callable(handle_exit):
            handle_exit(number, frame)

    signal.signal(number, handle)


app = FastAPI(lifespan=lifespan)
app.mount("/static", StaticFiles(directory=STATIC))


@app.get("/")
async def page(request: Request) -> HTMLResponse:
    """Return the page. A new visitor becomes a guest, whose name no other visitor can guess."""
    html = (STATIC / "index.html").read_text("utf-8")
    # The suggestions are for the agent in memory.
    html = html if has_server else html.replace('id="suggestions" hidden', "")
    response = HTMLResponse(html, headers=PAGE_HEADERS)
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


async def flux0_client(request: Request) -> Flux0:
    """Return the client of this process."""
    client: Flux0 = request.app.state.client
    return client


async def background_turns(request: Request) -> BackgroundTurns:
    """Return the background turns of this process."""
    turns: BackgroundTurns = request.app.state.turns
    return turns


User = Annotated[str, Depends(current_user)]
Client = Annotated[Flux0, Depends(flux0_client)]
Turns = Annotated[BackgroundTurns, Depends(background_turns)]


async def own_conversation(
    session_id: str,
    client: Client,
    user: User,
) -> AsyncConversation:
    """Return the conversation with this session, if it belongs to the user.

    The server accepts messages from everyone who knows the id of a session.
    """
    conversation = await client.conversation_async(session=session_id, user=user)
    if not await conversation.belongs_to_user():
        raise HTTPException(404, "You have no such chat. Start a new chat.")
    return conversation


OwnConversation = Annotated[AsyncConversation, Depends(own_conversation)]


class Message(BaseModel):
    """The body of a request that sends a message, or starts a session with its first message."""

    text: Annotated[str, Field(pattern=r"\S", max_length=10_000)]


@app.post("/sessions", status_code=201)
async def start_session(client: Client, user: User, message: Message) -> dict[str, str]:
    """Create a session that belongs to the user, with a title, and return its id."""
    # Create a new user by this request. Two sessions at once could create two users.
    await client.sessions.list_async(user=user)
    agent = await client.agents.first_async()
    title = " ".join(message.text.split())[:60]
    conversation = await client.conversation_async(agent=agent, user=user, title=title)
    return {"session_id": conversation.session_id}


@app.get("/sessions")
async def chats(client: Client, user: User, response: Response) -> list[dict[str, Any]]:
    """Return the sessions of the user, the newest first."""
    response.headers["cache-control"] = "no-store"
    sessions = await client.sessions.list_async(user=user)
    newest = sorted(sessions, key=lambda session: session.created_at, reverse=True)
    return [{"id": each.id, "title": each.title, "time": each.created_at} for each in newest[:100]]


@app.get("/sessions/{session_id}")
async def stored_events(conversation: OwnConversation, response: Response) -> Any:
    """Return the stored messages and tool results of a session, and the errors of its agent."""
    response.headers["cache-control"] = "no-store"
    stored = await conversation.sessions.list_events_async(
        session_id=conversation.session_id, types=["message", "tool", "status"]
    )
    events = [to_dict(event) for event in stored]
    for event in events:
        if event["type"] == "status":  # The text of an agent's error may contain secrets.
            event["data"] = {"status": event["data"].get("status")}
    return events


@app.post("/sessions/{session_id}/messages")
async def send(
    conversation: OwnConversation,
    turns: Turns,
    message: Message,
) -> StreamingResponse:
    """Send a message, and stream the turn, which continues without the browser."""
    return stream(await turns.start_async(conversation, message.text))


@app.get("/sessions/{session_id}/turn")
async def join(
    conversation: OwnConversation,
    turns: Turns,
    last_event_id: Annotated[int | None, Header(ge=0)] = None,
) -> Response:
    """Stream the running turn, or a turn after an event; 204 if there is none."""
    turn = await turns.join_async(conversation.session_id)
    if turn is None or (last_event_id is None and not turn.is_running):
        return Response(status_code=204, headers={"cache-control": "no-store"})
    return stream(turn, last_event_id)


@app.delete("/sessions/{session_id}/turn", status_code=204)
async def stop(conversation: OwnConversation, turns: Turns) -> None:
    """Stop the running turn, in whichever process reads it."""
    await turns.stop_async(conversation.session_id)


def stream(turn: BackgroundTurn, after: int | None = None) -> StreamingResponse:
    """Return a response with the events and the id of a turn."""
    headers = {**RELAY_HEADERS, "turn-id": turn.id}
    return StreamingResponse(turn.relay_async(after=after), headers=headers)


@app.exception_handler(Flux0Error)
async def show_error(_: Request, error: Flux0Error) -> JSONResponse:
    """Log an error of flux0. Return a sentence for the visitor, and whether the message was sent.

    Errors after the first event are in the stream.
    """
    logger.error("%s", error)
    if isinstance(error, InvalidArgument):
        return JSONResponse({"detail": "You have no such chat. Start a new chat."}, 404)
    is_reached = error.sent != "no"
    detail = "The connection to the agent failed." if is_reached else "The agent cannot be reached."
    sent = "no"  # The other operations, such as the list of sessions, send no message.
    if error.operation == "sessions.create_event":
        sent = error.sent
        detail += f" Your message {'may have been' if is_reached else 'was not'} sent."
    return JSONResponse({"detail": detail, "sent": sent}, 502 if is_reached else 503)


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
