"""Finds the agent or the session that an option names."""

from __future__ import annotations

import typer

from flux0 import Agent, Flux0, Session
from flux0.cli.output import one_line


def choose_agent(flux0: Flux0, wanted: str | None) -> Agent:
    agents = flux0.agents.list()
    found = [agent for agent in agents if wanted in (None, agent.id)]
    found = found or [agent for agent in agents if agent.name == wanted]
    if len(found) == 1:
        return found[0]
    if not agents:
        problem = "The server has no agents. Create an agent with --agent-type TYPE."
    elif found:
        problem = "The server has several agents. Select one with --agent ID:"
    else:
        problem = f"No agent has the id or the name {wanted!r}. The server has these agents:"
    lines = (one_line(f"{agent.id} {agent.name} ({agent.type})") for agent in found or agents)
    raise typer.BadParameter("\n".join((problem, *lines)))


def last_session(flux0: Flux0) -> Session:
    sessions = flux0.sessions.list()
    if not sessions:
        problem = "The user has no session. Begin a session without --continue."
        raise typer.BadParameter(problem, param_hint="--continue")
    return sorted(sessions, key=lambda session: session.created_at)[-1]
