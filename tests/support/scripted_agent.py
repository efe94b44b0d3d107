"""A flux0 agent that performs a script from the user's message.

The server loads this module with `FLUX0_MODULES=scripted_agent` and this file's folder on
`PYTHONPATH`. The module registers the agent type `scripted` and creates one agent of this type.

A message is a JSON array of steps. Steps of the server's protocol:

    {"status": "typing", "event_id": "e1", "data": ...}
        Sends any status. `event_id` and `data` are optional.
    {"chunk": {"event_id": "e1", "seq": 0, "patches": [...], "metadata": {...}}}
        Sends a chunk. `metadata` is merged with the agent's id and name; null removes a key.

Simple steps:

    {"text": "Hello there", "pieces": 3}
        Sends a complete message in this number of chunks (1 by default) and stores it.
    {"reason": "Let me see", "pieces": 2}
        Sends reasoning in the same way.
    {"tool_call": {"id": "c1", "name": "get_weather", "args": {...}}}
    {"tool_result": {"id": "c1", "name": "get_weather", "args": {...}, "result": ...}}
    {"error": "why"}
        Sends the status `error`. The value becomes its `data`; null omits `data`.

Steps for slow and faulty agents:

    {"pause_ms": 20}
    {"wait": "name"}
        Waits for the file `name.released` in SCRIPTED_AGENT_DIR. If the turn is cancelled before,
        creates the file `name.cancelled` there.
    {"crash": "why"}
        Raises an exception. The server then keeps the stream open and sends no more data.
    {"hang": true}
        Waits forever.
    {"end": false}
        Omits the status `completed`, which is otherwise sent at the end of each script.

An invalid step sends the status `error` with the reason and ends the turn.
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
    """A step is invalid."""


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
                # Language models send arguments as JSON text in pieces, too.
                call = {"type": "tool_call", "tool_call_id": id_, "tool_name": name, "args": []}
                pieces = _pieces(json.dumps(args), {"pieces": 2}, "/tool_calls/0/args")
                await self._message([[_add("/tool_calls/0", call)], *pieces])
            case {"tool_result": {"id": id_, "name": name, "args": args, "result": result}}:
                data = {"result": result}
                item = {"tool_call_id": id_, "tool_name": name, "data": data, "args": args}
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
                raise ScriptError(f"unknown step: {step}")

    async def _status(self, status: str, event_id: str | None = None, **rest: Any) -> None:
        """Report a status. The server does not stream the statuses `ready` and `completed`."""
        data: Any = {"type": "status", "status": status, **rest}
        own_id = None if event_id is None else EventId(event_id)
        await self._emitter.enqueue_status_event(self._correlation_id, data, own_id)

    async def _chunk(
        self, event_id: str, seq: int, patches: list[Any], metadata: dict[str, Any] | None = None
    ) -> None:
        """Send a chunk of a message."""
        all_metadata = {**self._agent, **(metadata or {})}
        chunk = ChunkEvent(
            correlation_id=self._correlation_id,
            event_id=EventId(event_id),
            seq=seq,
            patches=patches,
            metadata={key: value for key, value in all_metadata.items() if value is not None},
        )
        await self._emitter.enqueue_event_chunk(chunk)

    async def _message(
        self, patches: Iterable[list[Any]], metadata: dict[str, Any] | None = None
    ) -> None:
        """Send a complete message: one chunk for each list of patches, then `ready`."""
        event_id = gen_id()
        for seq, operations in enumerate(patches):
            await self._chunk(event_id, seq, operations, metadata)
            await asyncio.sleep(0)
        await self._status("ready", event_id)


def _add(path: str, value: Any) -> dict[str, Any]:
    return {"op": "add", "path": path, "value": value}


def _pieces(text: str, step: dict[str, Any], path: str = "") -> list[list[Any]]:
    """Return the patches of each chunk of `text`, one list for each piece."""
    pieces = step.get("pieces", 1)
    if not 1 <= pieces <= len(text):
        raise ScriptError(
            f"pieces must be from 1 to {len(text)} (characters of text), not {pieces}"
        )
    cuts = pairwise(len(text) * number // pieces for number in range(pieces + 1))
    return [[_add(f"{path}/-", text[start:end])] for start, end in cuts]


async def _wait(name: str) -> None:
    """Wait until the file that releases this step exists."""
    try:
        while not (_DIRECTORY / f"{name}.released").exists():
            await asyncio.sleep(_POLL_SECONDS)
    except asyncio.CancelledError:
        (_DIRECTORY / f"{name}.cancelled").touch()
        raise


@agent_runner(AGENT_TYPE)
class ScriptedAgentRunner(AgentRunner):
    """Performs turns. No state is kept between turns."""

    async def run(self, context: Context, deps: Deps) -> bool:
        agent = await deps.read_agent(context.agent_id)
        assert agent is not None, "the server starts turns only for existing agents"
        turn = Turn(deps, {"agent_id": agent.id, "agent_name": agent.name})
        script = await self._script(context, deps)
        try:
            for step in script:
                if step == _NO_END:
                    continue
                await turn.perform(step)
                # A real agent awaits its model. Without a checkpoint, the server would send no
                # event before the whole script was performed.
                await asyncio.sleep(0)
        except ScriptError as error:
            await turn.perform({"error": {"exception": f"Invalid script: {error}"}})
        if not any(step == _NO_END or step.get("status") == "completed" for step in script):
            await turn.perform({"status": "completed"})
        return True

    async def _script(self, context: Context, deps: Deps) -> list[dict[str, Any]]:
        """Return the script of this turn. The turn of a greeting has no user message."""
        # The session contains other turns, too; the correlation id identifies this one.
        for event in await deps.list_session_events(context.session_id):
            if event.correlation_id == deps.correlator.correlation_id and event.source == "user":
                message: Any = event.data
                script: list[dict[str, Any]] = json.loads(message["parts"][0]["content"])
                return script
        return [{"text": "Hello! Send me a script."}]


async def init_module(container: Any) -> None:
    """Register the agent type and create one agent, before the server listens."""
    container[ScriptedAgentRunner] = ScriptedAgentRunner()
    agent = await container[AgentStore].create_agent(name="Scripted", type=AGENT_TYPE)
    # The process that started the server uses this id to recognize it.
    (_DIRECTORY / "agent_id").write_text(agent.id, encoding="utf-8")


async def shutdown_module() -> None:
    """Do nothing. The server requires this function."""
