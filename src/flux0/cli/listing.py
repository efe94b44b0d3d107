"""Showing what the server keeps: agents, sessions, events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import groupby

from flux0.cli.output import Output, print_note
from flux0.cli.wording import Listed, data_in_words
from flux0.models import Agent, Agents, Events, Session, Sessions

# The columns of each table, with their importance.
_AGENT = {"ID": 5, "TYPE": 2, "NAME": 4, "CREATED": 1, "DESCRIPTION": 3}
_SESSION = {"ID": 4, "AGENT": 3, "CREATED": 1, "TITLE": 2}
_EVENT = {"OFFSET": 1, "SOURCE": 3, "TYPE": 2, "DATA": 4}


def show(output: Output, listed: Listed) -> None:
    """Write agents or sessions as a table, and events turn by turn, in few words."""
    if not isinstance(listed, (Agent, Session)) and not listed:
        print_note("There are none.")
        return
    match listed:
        case Agent():
            output.table(_AGENT, [_agent(listed)])
        case Agents():
            output.table(_AGENT, map(_agent, listed))
        case Session():
            output.table(_SESSION, [_session(listed)])
        case Sessions():
            output.table(_SESSION, map(_session, listed))
        case _:
            output.table(_EVENT, _events(listed), head=False)


def _agent(agent: Agent) -> Sequence[str]:
    created = _day_and_time(agent.created_at)
    return (agent.id, agent.type, agent.name, created, agent.description or "")


def _session(session: Session) -> Sequence[str]:
    return (session.id, session.agent_id, _day_and_time(session.created_at), session.title or "")


def _events(events: Events) -> Iterator[Sequence[str]]:
    for correlation_id, turn in groupby(events, lambda event: event.correlation_id):
        for number, event in enumerate(turn):
            if not number:
                yield (f"{correlation_id} {_day_and_time(event.created_at)}",)
            yield (str(event.offset), event.source, event.type, data_in_words(event.data))


def _day_and_time(moment: datetime) -> str:
    """Return a moment in local time, to the minute."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")
