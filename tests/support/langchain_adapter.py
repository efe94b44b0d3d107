"""Records the events that the server's LangChain adapter sends for runs of a model and a tool.

The file `tests/data/langchain_turn.json` was recorded with flux0-stream 0.1.0b2 and langchain-core
1.8. To record it again, run this script in an environment with both packages:

    python tests/support/langchain_adapter.py > tests/data/langchain_turn.json
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from types import SimpleNamespace
from typing import Any

from flux0_stream.emitter.memory import MemoryEventEmitter
from flux0_stream.frameworks.langchain import RunContext, handle_event
from flux0_stream.store.memory import MemoryEventStore
from langchain_core.messages import ToolMessage
from langchain_core.messages.ai import AIMessageChunk

_TEXTS = ("It is ", "foggy", ". Bye")
_CALLS = (("call-1", '{"q": "SF"}'), ("call-2", '{"q": "LA"}'))
_CUT = 5


async def record() -> list[Any]:
    """Return the chunks and events that the emitter passes to the stream, in order."""
    seen: list[Any] = []

    async def on_chunk(chunk: Any) -> None:
        seen.append(["chunk", chunk.event_id, chunk.seq, chunk.patches])

    async def on_event(event: Any) -> None:
        seen.append([event.type, event.id, event.data])

    agent, logger, context = (
        SimpleNamespace(id="AGENT", name="Fake"),
        logging.getLogger(),
        RunContext(0),
    )
    async with MemoryEventEmitter(MemoryEventStore(), logger) as emitter:
        emitter.subscribe_processed("turn", on_chunk)
        emitter.subscribe_final("turn", on_event)

        async def send_event(event: str, run: str, **data: Any) -> None:
            payload = {"event": event, "run_id": run, "data": data}
            await handle_event(agent, "turn", payload, emitter, logger, context)

        async def say(run: str, text: str = "", **call: Any) -> None:
            calls = [{"type": "tool_call_chunk", **call}] if call else []
            more = {"tool_calls": [{"index": call["index"]}]} if call else {}
            chunk = AIMessageChunk(
                content=text, id="m", tool_call_chunks=calls, additional_kwargs=more
            )
            await send_event("on_chat_model_stream", run, chunk=chunk)

        await send_event("on_chat_model_start", "run-1")
        await say("run-1")
        for index, (call_id, arguments) in enumerate(_CALLS):
            await say("run-1", name="search", args="", id=call_id, index=index)
            for piece in (arguments[:_CUT], arguments[_CUT:]):
                await say("run-1", name=None, args=piece, id=None, index=index)
        await send_event("on_chat_model_end", "run-1")
        result = ToolMessage(content="foggy", name="search", tool_call_id="call-1")
        await send_event("on_tool_end", "run-2", output=result, input={"q": "SF"})
        await send_event("on_chat_model_start", "run-3")
        for text in _TEXTS:
            await say("run-3", text)
        await send_event("on_chat_model_end", "run-3")
        await emitter.queue.join()
    return seen


if __name__ == "__main__":
    rows = (f"  {json.dumps(row)}" for row in asyncio.run(record()))
    sys.stdout.write("[\n{}\n]\n".format(",\n".join(rows)))
