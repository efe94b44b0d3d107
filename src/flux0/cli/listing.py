"""Showing what the server keeps: agents, sessions, events."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from typing import TypeAlias

from flux0.cli.output import Output, print_note
from flux0.cli.wording import data_in_words
from flux0.models import Agent, Agents, Events, Session, Sessions

Listed: TypeAlias = Agent | Agents | Session | Sessions | Events

# As wide as the widest source and the widest type that the server has today.
_EVENT_COLUMNS = (4, len("ai_agent"), len("message"))


def show(output: Output, listed: Listed) -> None:
    """Write agents or sessions as a table, and events in few words."""
    match listed:
        case Agent():
            _show_agents(output, [listed])
        case Agents():
            _show_agents(output, listed)
        case Session():
            _show_sessions(output, [listed])
        case Sessions():
            _show_sessions(output, listed)
        case _:
            _show_events(output, listed)


def _show_agents(output: Output, agents: Sequence[Agent]) -> None:
    rows = [
        (agent.id, agent.type, agent.name, _day_and_time(agent.created_at), agent.description or "")
        for agent in agents
    ]
    _show_table(output, ("ID", "TYPE", "NAME", "CREATED", "DESCRIPTION"), rows)


def _show_sessions(output: Output, sessions: Sequence[Session]) -> None:
    rows = [
        (session.id, session.agent_id, _day_and_time(session.created_at), session.title or "")
        for session in sessions
    ]
    _show_table(output, ("ID", "AGENT", "CREATED", "TITLE"), rows)


def _show_table(output: Output, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if rows:
        output.table(columns, rows)
    else:
        print_note("There are none.")


def _show_events(output: Output, events: Events) -> None:
    """Write turn by turn, each below its correlation id."""
    if not events:
        print_note("There are none.")
    for correlation_id, grouped in groupby(events, lambda event: event.correlation_id):
        turn = list(grouped)
        output.heading(f"{correlation_id}  {_day_and_time(turn[0].created_at)}")
        rows = [
            (str(event.offset), event.source, event.type, data_in_words(event.data))
            for event in turn
        ]
        output.grid(_EVENT_COLUMNS, rows)


def _day_and_time(moment: datetime) -> str:
    """Return a moment in local time, to the minute."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")
