"""The same turns for the real server's scripted agent and for a fake.

`as_script` converts steps to a script; `scripted_reply` converts a script to steps.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from flux0.cli.demo_agent import weather_agent
from flux0.testing import (
    AgentStep,
    CallTool,
    Fail,
    FakeClock,
    FakeTransport,
    FallSilent,
    Gate,
    GiveResult,
    Pause,
    Reason,
    Report,
    Say,
    SendChunk,
    UserMessage,
)


def scripted_fake(agent_id: str, gates: Mapping[str, Gate] | None = None) -> FakeTransport:
    """Return a fake with the same scripted agent as the real server.

    A step `{"wait": name}` waits at the gate with this name.
    """
    return FakeTransport(
        partial(scripted_reply, gates={} if gates is None else gates),
        agent_id=agent_id,
        agent_name="Scripted",
        agent_types=("scripted",),
        clock=FakeClock(time.time()),
    )


def as_script(steps: Iterable[AgentStep]) -> list[dict[str, Any]]:
    """Return the script with which `scripted_agent.py` performs `steps`."""
    return [_as_script(step) for step in steps]


def _as_script(step: AgentStep) -> dict[str, Any]:  # noqa: PLR0911 - one return for each step
    match step:
        case Say(text, pieces, 0.0):
            return {"text": text, "pieces": pieces}
        case Reason(text, pieces, 0.0):
            return {"reason": text, "pieces": pieces}
        case CallTool(name, args, id):
            return {"tool_call": {"id": id, "name": name, "args": args}}
        case GiveResult(CallTool(name, args, id), result):
            return {"tool_result": {"id": id, "name": name, "args": args, "result": result}}
        case Report(status, data, event_id, acknowledged_offset):
            # The server streams the members of a status in the agent's order.
            rest = {"event_id": event_id, "acknowledged_offset": acknowledged_offset, "data": data}
            present = {key: value for key, value in rest.items() if value is not None}
            return {"status": str(status), **present}
        case Fail(data):
            return {"error": data}
        case Pause(seconds):
            return {"pause_ms": 1000 * seconds}
        case FallSilent():
            return {"hang": True}
        case SendChunk(event_id, patches, seq, metadata):
            chunk = {
                "event_id": event_id,
                "seq": seq,
                "patches": list(patches),
                "metadata": metadata,
            }
            return {"chunk": chunk}
        case _:
            raise AssertionError(f"the scripted agent does not support {step}")


def scripted_reply(message: UserMessage, gates: Mapping[str, Gate]) -> Iterator[AgentStep]:
    """Yield the steps that `scripted_agent.py` performs for a message."""
    try:
        script: list[dict[str, Any]] = json.loads(message.content)
    except ValueError:
        yield from weather_agent(message)
        return
    ends = True
    for step in script:
        ends = ends and step.get("end") is not False
        if "wait" in step:
            yield gates[step["wait"]]
        else:
            yield from _from_script(step)
    if not ends:
        yield FallSilent()


def _from_script(step: dict[str, Any]) -> Iterator[AgentStep]:
    match step:
        case {"text": text}:
            yield Say(text, step.get("pieces", 1))
        case {"reason": text}:
            yield Reason(text, step.get("pieces", 1))
        case {"tool_call": arguments}:
            yield CallTool(**arguments)
        case {"tool_result": result}:
            call = {name: value for name, value in result.items() if name != "result"}
            yield GiveResult(CallTool(**call), result["result"])
        case {"status": _}:
            yield Report(**step)
        case {"error": data}:
            yield Fail(data)
        case {"chunk": chunk}:
            yield SendChunk(**chunk)
        case {"pause_ms": milliseconds}:
            yield Pause(milliseconds / 1000)
        case {"crash": _} | {"hang": _}:
            yield FallSilent()
        case _:
            assert step == {"end": False}
