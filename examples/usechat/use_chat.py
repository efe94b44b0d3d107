"""The routes of `useChat` from the AI SDK. The id of a chat is the id of its session."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from chats import (
    NO_STORE,
    OwnConversation,
    User,
    open_chat,
    own_conversation,
    shown_history,
    start,
    unfinished_turn,
)
from flux0 import BackgroundTurn
from flux0.adapters.ui import AiSdkFormat, new_message, ui_messages

AI_SDK = AiSdkFormat()
router = APIRouter(prefix="/api/chat")


def relay(turn: BackgroundTurn) -> Response:
    return StreamingResponse(turn.relay_async(format=AI_SDK), headers=AI_SDK.headers)


@router.post("")
async def send(request: Request, body: dict[str, Any], user: User) -> Response:
    chat = await own_conversation(request, str(body.get("id")), user)
    message = new_message(body, await shown_history(request, chat))
    return relay(await start(request, chat, message))


@router.get("/{chat}")
async def load(request: Request, chat: OwnConversation) -> Response:
    history, turn = await open_chat(request, chat)
    content = {"messages": ui_messages(history), "turn": turn and turn.id}
    return JSONResponse(content, headers=NO_STORE)


@router.get("/{chat}/stream")
async def join(
    request: Request, chat: OwnConversation, turn_id: Annotated[str, Header()] = ""
) -> Response:
    if turn_id:  # The turn that `load` has returned may have ended meanwhile.
        last = await request.state.turns.join_async(chat.session_id)
        turn = last if last is not None and last.id == turn_id else None
    else:
        turn = await unfinished_turn(request, chat)
    if turn is None:
        return Response(status_code=204, headers=NO_STORE)
    return relay(turn)


@router.delete("/{chat}", status_code=204)
async def stop(request: Request, chat: OwnConversation) -> None:
    await request.state.turns.stop_async(chat.session_id)
