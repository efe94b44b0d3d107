"""A flux0 agent that does in each turn what the user's message tells it to do.

The server loads it with `FLUX0_MODULES=scripted_agent` and this file's folder on `PYTHONPATH`. It
registers the agent type `scripted` and makes one agent of it, so that a chat can begin at once.

A message is a JSON array of steps, in the server's terms:

    {"status": "typing", "event_id": "e1", "data": ...}
        Any status. `event_id` and `data` may be left out.
    {"chunk": {"event_id": "e1", "seq": 0, "patches": [...], "metadata": {...}}}
        `metadata` adds to the agent's id and name; a null takes a key out.

in simpler words:

    {"text": "Hello there", "pieces": 3}
        A whole message, streamed in that many chunks (1 by default) and stored.
    {"reason": "Let me see", "pieces": 2}
        The same as reasoning.
    {"tool_call": {"id": "c1", "name": "get_weather", "args": {...}}}
    {"tool_result": {"id": "c1", "name": "get_weather", "args": {...}, "result": ...}}
    {"error": "why"}
        The status `error`. Its data is an object, a text, or with null not there at all.

and to be slow or to misbehave:

    {"pause_ms": 20}
    {"wait": "name"}
        Waits for the file `name.released` in SCRIPTED_AGENT_DIR, and leaves the file
        `name.cancelled` there if the turn is cancelled meanwhile.
    {"crash": "why"}
        Raises, which leaves the stream open and silent.
    {"hang": true}
        Never goes on.
    {"end": false}
        Leaves out the `completed` that otherwise ends every script which does not say it itself.

A step that makes no sense is the status `error`, with the reason, and the last of its turn.
"""

from __future__ import annotations

import asyncio
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flux0_core.agent_runners.api import AgentRunner, Deps, agent_runner
from flux0_core.agents import AgentStore, AgentType
from flux0_core.ids import gen_id
from flux0_core.sessions import EventId
from flux0_stream.types import ChunkEvent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flux0_core.agent_runners.context import Context

AGENT_TYPE = AgentType("scripted")

_DIRECTORY = Path(os.environ["SCRIPTED_AGENT_DIR"])
_POLL_SECONDS = 0.01
_NO_END = {"end": False}


class ScriptError(Exception):
    """A step makes no sense."""


class Turn:
    """The steps of one turn."""

    def __init__(self, deps: Deps, agent: dict[str, Any]) -> None:
        self._correlation_id = deps.correlator.correlation_id
        self._emitter = deps.event_emitter
        self._agent = agent

    async def perform(self, step: dict[str, Any]) -> None:
        match step:
            case {"status": _}:
                await self._status(**step)
            case {"chunk": chunk}:
                await self._chunk(**chunk)
            case {"text": text}:
                await self._message(_pieces(text, step))
            case {"reason": text}:
                await self._message(_pieces(text, step), {"kind": "reasoning"})
            case {"tool_call": {"id": id_, "name": name, "args": args}}:
                # The arguments come in pieces of JSON text, as they do from a language model.
                call = {"type": "tool_call", "tool_call_id": id_, "tool_name": name, "args": []}
                pieces = _pieces(json.dumps(args), {"pieces": 2}, "/tool_calls/0/args")
                await self._message([[_add("/tool_calls/0", call)], *pieces])
            case {"tool_result": {"id": id_, "name": name, "args": args, "result": result}}:
                data = {"result": result}
                item = {"tool_call_id": id_, "tool_name": name, "args": args, "data": data}
                path = "/tool_call_results"
                await self._message([[_add(path, []), _add(f"{path}/-", item)]])
            case {"error": error}:
                await self._status("error", **({} if error is None else {"data": error}))
            case {"pause_ms": milliseconds}:
                await asyncio.sleep(milliseconds / 1000)
            case {"wait": name}:
                await _wait(name)
            case {"crash": why}:
                raise RuntimeError(why)
            case {"hang": True}:
                await asyncio.Event().wait()
            case _:
                raise ScriptError(f"there is no step like {step}")

    async def _status(self, status: str, event_id: str | None = None, **rest: Any) -> None:
        """Say a status. The server keeps `ready` (store) and `completed` (end) to itself."""
        # In the order of the server's langchain adapter.
        offset = {key: rest.pop(key) for key in ("acknowledged_offset",) if key in rest}
        data: Any = {"type": "status", **offset, "status": status, **rest}
        own_id = None if event_id is None else EventId(event_id)
        await self._emitter.enqueue_status_event(self._correlation_id, data, own_id)

    async def _chunk(
        self, event_id: str, seq: int, patches: list[Any], metadata: dict[str, Any] | None = None
    ) -> None:
        """Patch a message."""
        told = {**self._agent, **(metadata or {})}
        chunk = ChunkEvent(
            correlation_id=self._correlation_id,
            event_id=EventId(event_id),
            seq=seq,
            patches=patches,
            metadata={key: value for key, value in told.items() if value is not None},
        )
        await self._emitter.enqueue_event_chunk(chunk)

    async def _message(
        self, patches: Iterable[list[Any]], metadata: dict[str, Any] | None = None
    ) -> None:
        """Say a whole message: one chunk for each list of patches, then `ready`."""
        event_id = gen_id()
        for seq, operations in enumerate(patches):
            await self._chunk(event_id, seq, operations, metadata)
            await asyncio.sleep(0)
        await self._status("ready", event_id)


def _add(path: str, value: Any) -> dict[str, Any]:
    return {"op": "add", "path": path, "value": value}


def _pieces(text: str, step: dict[str, Any], path: str = "") -> list[list[Any]]:
    """Return the patches of one chunk for each piece of a text."""
    pieces = step.get("pieces", 1)
    if not 1 <= pieces <= len(text):
        raise ScriptError(f"{len(text)} characters do not make {pieces} pieces")
    cuts = pairwise(len(text) * number // pieces for number in range(pieces + 1))
    return [[_add(f"{path}/-", text[start:end])] for start, end in cuts]


async def _wait(name: str) -> None:
    """Wait until somebody outside says go."""
    try:
        while not (_DIRECTORY / f"{name}.released").exists():
            await asyncio.sleep(_POLL_SECONDS)
    except asyncio.CancelledError:
        (_DIRECTORY / f"{name}.cancelled").touch()
        raise


@agent_runner(AGENT_TYPE)
class ScriptedAgentRunner(AgentRunner):
    """Performs one turn; keeps nothing between turns."""

    async def run(self, context: Context, deps: Deps) -> bool:
        agent = await deps.read_agent(context.agent_id)
        assert agent is not None, "the server starts a turn for agents that exist only"
        turn = Turn(deps, {"agent_id": agent.id, "agent_name": agent.name})
        script = await self._script(context, deps)
        try:
            for step in script:
                if step == _NO_END:
                    continue
                await turn.perform(step)
                # A real agent awaits its model. One that never lets go of the loop gets nothing
                # sent until the server has worked off all that it said.
                await asyncio.sleep(0)
        except ScriptError as error:
            await turn.perform({"error": {"exception": f"Invalid script: {error}"}})
        if not any(step == _NO_END or step.get("status") == "completed" for step in script):
            await turn.perform({"status": "completed"})
        return True

    async def _script(self, context: Context, deps: Deps) -> list[dict[str, Any]]:
        """Return the script of this turn; a session that asks for a greeting has none."""
        # Events of other turns may follow the message; the correlation id names this turn's.
        for event in await deps.list_session_events(context.session_id):
            if event.correlation_id == deps.correlator.correlation_id and event.source == "user":
                message: Any = event.data
                script: list[dict[str, Any]] = json.loads(message["parts"][0]["content"])
                return script
        return [{"text": "Hello! Send me a script."}]


async def init_module(container: Any) -> None:
    """Register the agent type, and have one agent of it, before the server listens."""
    container[ScriptedAgentRunner] = ScriptedAgentRunner()
    agent = await container[AgentStore].create_agent(name="Scripted", type=AGENT_TYPE)
    # Whoever started this server knows by this id that it is this server that answers.
    (_DIRECTORY / "agent_id").write_text(agent.id, encoding="utf-8")


async def shutdown_module() -> None:
    """Do nothing: there is nothing to give back. The server wants the function to exist."""
