"""The operations on agents."""

from __future__ import annotations

from typing import TypeVar

from flux0.domain import arguments
from flux0.domain.api_errors import HTTPValidationError
from flux0.domain.errors import AgentNotFound
from flux0.domain.stored_models import Agent, Agents
from flux0.flows import Flow
from flux0.usecases.call import ApiCall

T = TypeVar("T")

_ROUTE = "/api/agents"


def list_agents(call: ApiCall) -> Flow[Agents]:
    return call.fetch(Agents, call.request("agents.list", "GET", _ROUTE))


def first_agent(call: ApiCall, type_: str | None, name: str | None) -> Flow[Agent]:
    arguments.optional_text("type_", type_)
    arguments.optional_text("name", name)
    existing = yield from list_agents(call)
    for agent in existing:
        if type_ in (None, agent.type) and name in (None, agent.name):
            return agent
    wanted = {"type": type_, "name": name}
    filters = " and ".join(f"{key} {value!r}" for key, value in wanted.items() if value is not None)
    raise AgentNotFound(filters, existing.data)


def create_agent(call: ApiCall, name: str, type_: str, description: str | None) -> Flow[Agent]:
    body = {"name": arguments.text("name", name), "type": arguments.text("type_", type_)}
    if (checked := arguments.optional_text("description", description)) is not None:
        body["description"] = checked
    return call.fetch(Agent, call.request("agents.create", "POST", _ROUTE, body=body))


def retrieve_agent(call: ApiCall, agent_id: str) -> Flow[Agent]:
    request = call.request("agents.retrieve", "GET", f"{_ROUTE}/{{agent_id}}", agent_id=agent_id)
    return with_name_hint(call.fetch(Agent, request), agent_id)


def with_name_hint(flow: Flow[T], agent_id: str) -> Flow[T]:
    """Run a call. If the server rejects its `agent_id`, add a hint to the error's message.

    Usually, the user has passed an agent's name: the server 0.1.0b4 accepts only ids of 10
    characters.
    """
    try:
        return (yield from flow)
    except HTTPValidationError as error:
        if any("agent_id" in each.loc for each in error.data.detail):
            hint = f"use client.agents.first(name={agent_id!r}) to get an agent by name"
            error.args = (f"{error.problem}; {agent_id!r} is not an id: {hint}",)
        raise
