"""The commands that list, show and create agents, sessions and events."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, TypeAlias

import typer

from flux0 import EventSource, EventType, Flux0, to_dict
from flux0.cli.client import open_client
from flux0.cli.descriptions import Listed, describe_error
from flux0.cli.options import (
    AgentId,
    CommandWithId,
    SessionId,
    argument,
    common_options,
    complete_agents,
    examples,
    option,
    with_common_options,
)


@with_common_options
def _accept_options(_: typer.Context) -> None:
    """Accept the common options after the name of a group, as in `agents --json list`."""


_Query: TypeAlias = "Callable[..., Listed]"
_group = partial(typer.Typer, no_args_is_help=True, callback=_accept_options)
agents: typer.Typer = _group(help="List, show and create agents.")
sessions: typer.Typer = _group(help="List, show and create sessions.")


def query(group: typer.Typer, name: str, *commands: str) -> Callable[[_Query], None]:
    """Return a decorator that adds a command to `group`; the help shows the example `commands`.

    The command calls the decorated function, and shows the models that the function returns. It has
    the common options, and the function's parameters except `flux0`.
    """

    def register(get: _Query) -> None:
        def command(context: typer.Context, **arguments: Any) -> None:
            with open_client(context, partial(describe_error, ids=arguments)) as flux0:
                from flux0.cli.listing import show  # noqa: PLC0415 - loads rich
                from flux0.cli.output import Output  # noqa: PLC0415

                model = get(flux0, **arguments)
                if common_options(context).as_json:
                    Output().json(to_dict(model), indent=2)
                else:
                    show(Output(), model)

        signature = inspect.signature(get, eval_str=True)
        command.__doc__ = get.__doc__
        vars(command)["__signature__"] = signature
        kinds = {each.annotation for each in signature.parameters.values()}
        has_id = bool(kinds & {AgentId, SessionId})
        group.command(
            name,
            cls=CommandWithId if has_id else None,
            context_settings={"ignore_unknown_options": has_id},
            epilog=examples(*commands) if commands else None,
        )(with_common_options(command))

    return register


_EVENT_TYPE = "List only events of this type; may be repeated."
_SOURCE = "List only events from this source."
_TURN = "List only events with this correlation id, from one turn."
_FROM = "List only events with this offset or a higher one."


def events(
    flux0: Flux0,
    session: SessionId,
    *,
    types: Annotated[list[EventType] | None, option("--type", "TYPE", _EVENT_TYPE)] = None,
    source: Annotated[EventSource | None, option("--source", "SOURCE", _SOURCE)] = None,
    correlation_id: Annotated[str | None, option("--correlation-id", "ID", _TURN)] = None,
    min_offset: Annotated[int | None, option("--min-offset", "N", _FROM, min=0)] = None,
) -> Listed:
    """List the stored events of a session."""
    return flux0.sessions.list_events(
        session_id=session,
        types=types or None,
        source=source,
        correlation_id=correlation_id,
        min_offset=min_offset,
    )


@query(agents, "list")
def list_agents(flux0: Flux0) -> Listed:
    """List the server's agents."""
    return flux0.agents.list()


@query(agents, "get")
def get_agent(flux0: Flux0, agent: AgentId) -> Listed:
    """Show one agent."""
    return flux0.agents.retrieve(agent_id=agent)


_PURPOSE = "Description: the purpose of the agent."


@query(agents, "create", 'agents create Drizzle weather --description "Knows the weather"')
def create_agent(
    flux0: Flux0,
    name: Annotated[str, argument("NAME", "Name of the agent for people.")],
    type_: Annotated[str, argument("TYPE", "Type of the agent, which the server must support.")],
    *,
    description: Annotated[str | None, option("--description", "TEXT", _PURPOSE)] = None,
) -> Listed:
    """Create an agent."""
    return flux0.agents.create(name=name, type_=type_, description=description)


_OF_AGENT = "List only sessions with the agent that has this id or unique name."


@query(sessions, "list")
def list_sessions(
    flux0: Flux0,
    *,
    agent: Annotated[
        str | None, option("--agent -a", "AGENT", _OF_AGENT, autocompletion=complete_agents)
    ] = None,
) -> Listed:
    """List the user's sessions."""
    from flux0.cli.choices import choose_agent  # noqa: PLC0415 - loads rich

    return flux0.sessions.list(agent_id=agent and choose_agent(flux0, agent).id)


@query(sessions, "get")
def get_session(flux0: Flux0, session: SessionId) -> Listed:
    """Show one session."""
    return flux0.sessions.retrieve(session_id=session)


@query(sessions, "create", 'sessions create f1KizRKqjY --title "The weather"')
def create_session(
    flux0: Flux0,
    agent: AgentId,
    *,
    title: Annotated[str | None, option("--title", "TEXT", "Topic of the session.")] = None,
) -> Listed:
    """Create a session with an agent."""
    return flux0.sessions.create(agent_id=agent, title=title)
