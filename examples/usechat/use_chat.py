"""The routes of `useChat` from the AI SDK. The id of a chat is the id of its session."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from chats import (
    NO_STORE,
    OwnConversation,
    User,
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
    turn = await unfinished_turn(request, chat)
    history = await shown_history(request, chat)
    messages = ui_messages(history, is_running=turn is not None)
    content = {"messages": messages, "turn": turn and turn.id}
    return JSONResponse(content, headers=NO_STORE)


@router.get("/{chat}/stream")
async def join(
    request: Request, chat: OwnConversation, turn_id: Annotated[str, Header()] = ""
) -> Response:
    # The turn that `load` has returned may have ended meanwhile.
    last = await request.state.turns.join_async(chat.session_id)
    known = last is not None and last.id == turn_id
    turn = last if known else await unfinished_turn(request, chat)
    if turn is None:
        return Response(status_code=204, headers=NO_STORE)
    return relay(turn)


@router.delete("/{chat}", status_code=204)
async def stop(request: Request, chat: OwnConversation) -> None:
    await request.state.turns.stop_async(chat.session_id)
