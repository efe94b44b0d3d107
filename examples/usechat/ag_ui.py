"""The routes of an AG-UI client. The id of a thread is the id of its session."""

from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from chats import (
    OwnConversation,
    User,
    open_chat,
    own_conversation,
    shown_history,
    start,
)
from flux0.adapters.ui import AgUiFormat, ag_ui_messages, new_message

router = APIRouter(prefix="/agent")


class Run(BaseModel):
    threadId: str  # noqa: N815 - names of the protocol
    runId: str = Field(default_factory=lambda: uuid4().hex)  # noqa: N815
    messages: list[dict[str, Any]] = []
    forwardedProps: dict[str, Any] = {}  # noqa: N815


@router.post("")
async def send(request: Request, run: Run, user: User) -> Response:
    chat = await own_conversation(request, run.threadId, user)
    # AG-UI has no mark for a replaced message, so the page sends `replaces`.
    message = new_message(
        run.model_dump(),
        await shown_history(request, chat),
        accept_unmarked=bool(run.forwardedProps.get("replaces")),
    )
    turn = await start(request, chat, message)
    ag_ui = AgUiFormat(run.threadId, run.runId)
    return StreamingResponse(turn.relay_async(format=ag_ui), headers=ag_ui.headers)


@router.post("/history")
async def join(request: Request, run: Run, user: User) -> Response:
    chat = await own_conversation(request, run.threadId, user)
    history, turn = await open_chat(request, chat)
    ag_ui = AgUiFormat(run.threadId, run.runId, messages=ag_ui_messages(history))
    if turn is not None:
        return StreamingResponse(turn.relay_async(format=ag_ui), headers=ag_ui.headers)
    encoder = ag_ui.encoder()  # A run without a turn.
    return Response(encoder.start() + encoder.end(), headers=ag_ui.headers)


@router.delete("/{chat}", status_code=204)
async def stop(request: Request, chat: OwnConversation) -> None:
    await request.state.turns.stop_async(chat.session_id)
