"""The table of chats, and the check that a chat belongs to the user.

The flux0 server stores the messages. It cannot rename or delete a session, and it cannot replace a
message, so this application stores titles, owners and replaced turns in its own database.
"""

import sqlite3
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request

from flux0 import (
    AsyncConversation,
    BackgroundTurn,
    Flux0,
    Flux0Error,
    TurnStopped,
    TurnTooLarge,
)
from flux0.adapters.ui import NewMessage

NO_STORE = {"cache-control": "no-store"}  # The back button shows the newest messages.
MAX_LENGTH = 10_000
TABLES = """
CREATE TABLE IF NOT EXISTS logins (token TEXT PRIMARY KEY, user TEXT);
CREATE TABLE IF NOT EXISTS chats (id TEXT PRIMARY KEY, user TEXT, title TEXT, time REAL);
CREATE TABLE IF NOT EXISTS replaced (chat TEXT, turn TEXT);
"""


def open_database(path: str) -> sqlite3.Connection:
    """Open the database, and create its tables."""
    database = sqlite3.connect(path, isolation_level=None)
    database.executescript(TABLES)
    return database


async def current_user(request: Request) -> str:
    """Return the id of the user who is logged in. Replace it by your own login."""
    sql = "SELECT user FROM logins WHERE token = ?"
    for (user,) in request.state.db.execute(sql, [request.cookies.get("login")]):
        return str(user)
    raise HTTPException(401, "You are not logged in.", NO_STORE)


User = Annotated[str, Depends(current_user)]


async def own_conversation(request: Request, chat: str, user: User) -> AsyncConversation:
    """Return the conversation of a chat, if the chat belongs to the user.

    The server accepts messages from everyone who knows the id of a session.
    """
    sql = "SELECT 1 FROM chats WHERE id = ? AND user = ?"
    if request.state.db.execute(sql, [chat, user]).fetchone() is None:
        raise HTTPException(404, "You have no such chat.", NO_STORE)
    client: Flux0 = request.state.client
    return await client.conversation_async(session=chat, user=user)


OwnConversation = Annotated[AsyncConversation, Depends(own_conversation)]


async def shown_history(request: Request, chat: AsyncConversation) -> list[Any]:
    """Return the stored messages of a chat, without the replaced turns."""
    sql = "SELECT turn FROM replaced WHERE chat = ?"
    replaced = {turn for (turn,) in request.state.db.execute(sql, [chat.session_id])}
    return [
        event for event in await chat.history() if event.correlation_id not in replaced
    ]


async def start(
    request: Request, chat: AsyncConversation, message: NewMessage
) -> BackgroundTurn:
    """Send a message, and hide the replaced turns, which the agent still sees."""
    if len(message.text) > MAX_LENGTH:
        raise HTTPException(413, f"A message has at most {MAX_LENGTH} characters.")
    turn: BackgroundTurn = await request.state.turns.start_async(chat, message.text)
    rows = [(chat.session_id, replaced) for replaced in message.replaced]
    request.state.db.executemany("INSERT INTO replaced VALUES (?, ?)", rows)
    return turn


async def open_chat(
    request: Request, chat: AsyncConversation
) -> tuple[list[Any], BackgroundTurn | None]:
    """Return the stored messages, and the last turn if it is running or has failed.

    The relay of this turn has the agent's messages, so the history leaves them out.
    """
    history: list[Any] = []
    for _ in range(2):
        turn = await unfinished_turn(request, chat)
        history = await shown_history(request, chat)
        turn_id = turn and turn.correlation_id
        sent = [event.correlation_id for event in history if event.source == "user"]
        if turn_id is None or turn_id in sent[-1:]:
            return [
                event
                for event in history
                if event.source == "user" or event.correlation_id != turn_id
            ], turn
        # A newer message was sent: meanwhile, or without this application.
    return history, None


async def unfinished_turn(
    request: Request, chat: AsyncConversation
) -> BackgroundTurn | None:
    """Return the last turn of a chat if it is running or has failed.

    The relay of a failed turn ends with its error, also after a reload.
    """
    turn: BackgroundTurn | None = await request.state.turns.join_async(chat.session_id)
    if turn is None:
        return None
    # The first event arrives when the server has stored the user's message.
    await anext(turn.relay_async(heartbeat_ms=2000), b"")
    if turn.is_running:
        return turn
    try:
        await turn.wait_async()
    except (TurnStopped, TurnTooLarge):
        return None
    except Flux0Error:
        return turn
    return None
