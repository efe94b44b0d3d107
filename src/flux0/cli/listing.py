"""Writes lists of agents, sessions and events to the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from flux0 import Agent, Session
from flux0.cli.descriptions import Listed, describe_data
from flux0.cli.output import Output, print_note

# Each table maps the names of its columns to their importance. If the terminal is narrow, the least
# important column is left out first.
_AGENT = {"ID": 5, "TYPE": 2, "NAME": 4, "CREATED": 1, "DESCRIPTION": 3}
_SESSION = {"ID": 4, "AGENT": 3, "CREATED": 1, "TITLE": 2}
_EVENT = {"OFFSET": 1, "SOURCE": 3, "TYPE": 2, "DATA": 4}


def show(output: Output, listed: Listed) -> None:
    columns: Mapping[str, int] = {}
    rows: list[tuple[str, ...]] = []
    turn = ""
    for model in [listed] if isinstance(listed, (Agent, Session)) else listed:
        # The server sends times in UTC. Show the time in the user's time zone instead.
        created = f"{model.created_at.astimezone():%Y-%m-%d %H:%M}"
        match model:
            case Agent():
                columns = _AGENT
                rows.append((model.id, model.type, model.name, created, model.description or ""))
            case Session():
                columns = _SESSION
                rows.append((model.id, model.agent_id, created, model.title or ""))
            case _:
                columns = _EVENT
                if turn != model.correlation_id:
                    turn = model.correlation_id
                    rows.append((f"{turn} {created}",))
                data = describe_data(model.data)
                rows.append((str(model.offset), model.source, model.type, data))
    if rows:
        output.table(columns, rows, head=columns is not _EVENT)
    else:
        print_note(f"No {type(listed).__name__.lower()} found.")
