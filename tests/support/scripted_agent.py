"""A flux0 agent that does in each turn what the user's message tells it to do.

The server loads it with `FLUX0_MODULES=scripted_agent` and this file's folder on `PYTHONPATH`. It
registers the agent type `scripted` and makes one agent of it, so that a chat can begin at once.

A message that is a JSON array is a script. Its steps, in the server's terms:

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

A script that makes no sense does nothing but say the status `error`, with the reason. Any other
message gets a friendly answer, with reasoning and a tool call on the way, at a pace that is
pleasant to watch.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from flux0_core.agent_runners.api import AgentRunner, Deps, agent_runner
from flux0_core.agents import AgentStore, AgentType
from flux0_core.ids import gen_id
from flux0_core.sessions import EventId
from flux0_stream.types import ChunkEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from flux0_core.agent_runners.context import Context
    from flux0_stream.emitter.api import EventEmitter

AGENT_TYPE = AgentType("scripted")

_DIRECTORY = os.environ.get("SCRIPTED_AGENT_DIR")
_POLL_SECONDS = 0.01
_ECHO_PIECES = 12
_ECHO_PAUSE_SECONDS = 0.015


class ScriptError(Exception):
    """The script cannot be performed; the message says which step, and why."""


@dataclass(frozen=True)
class Turn:
    """What the steps of one turn act upon."""

    correlation_id: str
    emitter: EventEmitter
    agent: Mapping[str, Any]


class Action(Protocol):
    """One thing to do in a turn. A step of a script makes one or several of them."""

    async def perform(self, turn: Turn) -> None: ...


@dataclass(frozen=True)
class Status:
    """Say a status. The server keeps `ready` (store that event) and `completed` (end) to itself."""

    data: Mapping[str, Any]
    event_id: str | None = None

    async def perform(self, turn: Turn) -> None:
        data: Any = {"type": "status", **self.data}
        event_id = None if self.event_id is None else EventId(self.event_id)
        await turn.emitter.enqueue_status_event(turn.correlation_id, data, event_id)


@dataclass(frozen=True)
class Chunk:
    """Patch the message `event_id`."""

    event_id: str
    seq: int
    patches: list[Any]
    metadata: Mapping[str, Any] | None = None

    async def perform(self, turn: Turn) -> None:
        metadata = {**turn.agent, **(self.metadata or {})}
        await turn.emitter.enqueue_event_chunk(
            ChunkEvent(
                correlation_id=turn.correlation_id,
                event_id=EventId(self.event_id),
                seq=self.seq,
                patches=self.patches,
                metadata={key: value for key, value in metadata.items() if value is not None},
            )
        )


@dataclass(frozen=True)
class Pause:
    """Do nothing for some time."""

    seconds: float

    async def perform(self, turn: Turn) -> None:
        await asyncio.sleep(self.seconds)


@dataclass(frozen=True)
class Wait:
    """Do nothing until somebody outside says go."""

    released: Path
    cancelled: Path

    async def perform(self, turn: Turn) -> None:
        try:
            while not self.released.exists():
                await asyncio.sleep(_POLL_SECONDS)
        except asyncio.CancelledError:
            self.cancelled.touch()
            raise


@dataclass(frozen=True)
class Crash:
    """Fail as an agent with a bug does."""

    message: str

    async def perform(self, turn: Turn) -> None:
        raise RuntimeError(self.message)


@dataclass(frozen=True)
class Hang:
    """Never go on."""

    async def perform(self, turn: Turn) -> None:
        await asyncio.Event().wait()


def _status(status: str, event_id: str | None = None, **rest: Any) -> Iterator[Action]:
    if status == "ready" and event_id is None:
        raise ValueError("ready needs an event_id")
    if unknown := rest.keys() - {"data", "acknowledged_offset"}:
        raise TypeError(f"a status has no {sorted(unknown)}")
    yield Status({"status": status, **rest}, event_id)


def _error(error: Any) -> Iterator[Action]:
    yield Status({"status": "error"} if error is None else {"status": "error", "data": error})


def _message(
    patches: Iterable[list[Any]], metadata: Mapping[str, Any] | None = None
) -> Iterator[Action]:
    """One chunk for each list of patches, then `ready`."""
    event_id = gen_id()
    for seq, operations in enumerate(patches):
        yield Chunk(event_id, seq, operations, metadata)
    yield Status({"status": "ready"}, event_id)


def _append(path: str, value: Any) -> dict[str, Any]:
    return {"op": "add", "path": f"{path}/-", "value": value}


def _split(text: str, pieces: int) -> list[str]:
    if not 1 <= pieces <= len(text):
        raise ValueError(f"{len(text)} characters do not make {pieces} pieces")
    return [text[a:b] for a, b in pairwise(len(text) * i // pieces for i in range(pieces + 1))]


def _text(text: str, pieces: int = 1) -> Iterator[Action]:
    return _message([_append("", piece)] for piece in _split(text, pieces))


def _reason(reason: str, pieces: int = 1) -> Iterator[Action]:
    return _message(
        ([_append("", piece)] for piece in _split(reason, pieces)), {"kind": "reasoning"}
    )


def _tool_call(id: str, name: str, args: Any) -> Iterator[Action]:
    # The arguments come in pieces of JSON text, as they do from a language model.
    call = {"type": "tool_call", "tool_call_id": id, "tool_name": name, "args": []}
    begin = {"op": "add", "path": "/tool_calls/0", "value": call}
    pieces = _split(json.dumps(args), 2)
    return _message([[begin], *([_append("/tool_calls/0/args", piece)] for piece in pieces)])


def _tool_result(id: str, name: str, args: Any, result: Any) -> Iterator[Action]:
    item = {"tool_call_id": id, "tool_name": name, "args": args, "data": {"result": result}}
    begin = {"op": "add", "path": "/tool_call_results", "value": []}
    return _message([[begin, _append("/tool_call_results", item)]])


def _wait(wait: str) -> Iterator[Action]:
    if _DIRECTORY is None:
        raise ValueError("a wait needs the environment variable SCRIPTED_AGENT_DIR")
    if not re.fullmatch("[A-Za-z0-9_-]+", wait):
        raise ValueError("the name of a wait is made of letters, digits, '-' and '_'")
    directory = Path(_DIRECTORY)
    yield Wait(directory / f"{wait}.released", directory / f"{wait}.cancelled")


# A step's members are the arguments of its function, which so names what is missing or too much.
_STEPS: Mapping[str, Callable[..., Iterable[Action]]] = {
    "status": _status,
    "chunk": lambda chunk: [Chunk(**chunk)],
    "text": _text,
    "reason": _reason,
    "tool_call": lambda tool_call: _tool_call(**tool_call),
    "tool_result": lambda tool_result: _tool_result(**tool_result),
    "error": _error,
    "pause_ms": lambda pause_ms: [Pause(pause_ms / 1000)],
    "wait": _wait,
    "crash": lambda crash: [Crash(str(crash))],
    "hang": lambda hang: [Hang()] if hang else [],
    "end": lambda end: [],  # parse_script looks at it
}


def parse_script(script: Any) -> list[Action]:
    """Return what the script wants done, the closing `completed` included.

    Raises:
        ScriptError: it is no array, or a step has something missing, unknown or of a wrong type.
    """
    if not isinstance(script, list):
        raise ScriptError("a script is a JSON array of steps")
    actions: list[Action] = []
    ends = False
    for number, step in enumerate(script):
        kinds = _STEPS.keys() & step.keys() if isinstance(step, dict) else ()
        if len(kinds) != 1:
            raise ScriptError(
                f"step {number}, {json.dumps(step)}: needs to be an object with one of {[*_STEPS]}"
            )
        (kind,) = kinds
        try:
            actions += _STEPS[kind](**step)
        except (TypeError, ValueError) as error:
            raise ScriptError(f"step {number}, {json.dumps(step)}: {error}") from error
        ends = ends or step.get("end") is False or step.get("status") == "completed"
    return actions if ends else [*actions, *_status("completed")]


def _in_words(make: Callable[..., Iterator[Action]], text: str) -> Iterator[Action]:
    """Say it in pieces, and at a pace that one can watch."""
    for action in make(text, pieces=_ECHO_PIECES):
        yield action
        yield Pause(_ECHO_PAUSE_SECONDS)


def echo(message: str) -> Iterator[Action]:
    """Return a turn as a real agent makes it: reasoning, a tool call, its result, and an answer."""
    call: Any = {"id": gen_id(), "name": "get_weather", "args": {"location": "San Francisco"}}
    yield from _status("processing", data={"detail": "Thinking"})
    yield from _in_words(_reason, "Everybody likes to hear about the weather. I shall look it up.")
    yield from _tool_call(**call)
    yield Pause(_ECHO_PAUSE_SECONDS)
    yield from _tool_result(**call, result={"celsius": 16, "sky": "foggy"})
    yield from _status("typing")
    yield from _in_words(_text, f'You said "{message}". It is 16 °C and foggy in San Francisco.')
    yield from _status("completed")


def actions_for(message: str | None) -> Iterable[Action]:
    """Return what to do about a user's message; None is a session that asks for a greeting."""
    if message is None:
        return parse_script([{"text": "Hello! Say something, or send me a script."}])
    try:
        script = json.loads(message)
    except ValueError:
        return echo(message)
    try:
        return parse_script(script)
    except ScriptError as error:
        return parse_script([{"error": {"exception": f"Invalid script: {error}"}}])


@agent_runner(AGENT_TYPE)
class ScriptedAgentRunner(AgentRunner):
    """Performs one turn; keeps nothing between turns."""

    async def run(self, context: Context, deps: Deps) -> bool:
        agent = await deps.read_agent(context.agent_id)
        assert agent is not None, "the server starts a turn for agents that exist only"
        turn = Turn(
            correlation_id=deps.correlator.correlation_id,
            emitter=deps.event_emitter,
            agent={"agent_id": agent.id, "agent_name": agent.name},
        )
        for action in actions_for(await self._user_message(context, deps, turn.correlation_id)):
            await action.perform(turn)
            # A real agent awaits its model. One that never lets go of the loop gets nothing sent
            # until the server has worked off all that it said.
            await asyncio.sleep(0)
        return True

    async def _user_message(self, context: Context, deps: Deps, correlation_id: str) -> str | None:
        # Events of other turns may follow the message; the correlation id names this turn's.
        for event in await deps.list_session_events(context.session_id):
            if event.correlation_id == correlation_id and event.source == "user":
                message: Any = event.data
                return str(message["parts"][0]["content"])
        return None


async def init_module(container: Any) -> None:
    """Register the agent type, and have one agent of it, before the server listens."""
    container[ScriptedAgentRunner] = ScriptedAgentRunner()
    store = container[AgentStore]
    agents = [agent for agent in await store.list_agents() if agent.type == AGENT_TYPE]
    agent = agents[0] if agents else await store.create_agent(name="Scripted", type=AGENT_TYPE)
    if _DIRECTORY is not None:
        # Whoever started this server knows by this id that it is this server that answers.
        Path(_DIRECTORY, "agent_id").write_text(agent.id, encoding="utf-8")


async def shutdown_module() -> None:
    """Do nothing: there is nothing to give back. The server wants the function to exist."""
