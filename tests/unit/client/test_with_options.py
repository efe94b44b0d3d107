"""`Flux0.with_options`: a client with other defaults that shares connections and open turns."""

from __future__ import annotations

import json
from inspect import signature
from typing import Any, cast

import pytest

import flux0
from flux0 import ClientClosed, Flux0, RetryConfig
from flux0.models import ConnectError
from flux0.usecases.options import TurnOptions
from support.in_memory import (
    SSE,
    chunk,
    in_every_mode,
    response_from,
    script,
    scripted_response,
    tape,
)
from support.modes import in_mode
from support.transports import Mode

AGENTS = b'{"data": []}'


@in_every_mode
async def test_retries_of_the_new_client_apply(mode: Mode) -> None:
    transport = script(ConnectError("refused"), scripted_response(AGENTS))
    client = Flux0(transport=transport).with_options(retries=RetryConfig("none"))

    with pytest.raises(ConnectError):
        await in_mode(mode, client).agents.list_async()

    assert len(transport.requests) == 1


def test_each_option_of_a_call_can_be_a_default() -> None:
    client = Flux0(transport=script(scripted_response(AGENTS), scripted_response(AGENTS)))

    assert {*signature(client.with_options).parameters} == {*TurnOptions.__annotations__}
    with pytest.raises(TypeError, match="'headers': use http_headers"):
        cast("Any", client).with_options(headers={})


def test_repr_shows_the_server_url_of_the_new_client() -> None:
    other = Flux0(transport=script()).with_options(server_url="http://other.example")

    assert repr(other) == "Flux0('http://other.example')"
    assert repr(other.agents) == "AgentsResource('http://other.example')"


@in_every_mode
async def test_both_clients_share_open_turns(mode: Mode) -> None:
    first_turn = tape(chunk("a"), chunk("b"))
    transport = script(
        response_from(first_turn, headers=SSE), scripted_response(chunk("c"), headers=SSE)
    )
    client = Flux0(transport=transport)
    stream = await in_mode(mode, client).sessions.create_event_async(session_id="s", content="Hi")
    await anext(stream)

    other = in_mode(mode, client.with_options(timeout_ms=30_000))
    await other.sessions.create_event_async(session_id="s", content="Hi")

    assert first_turn.releases
    with pytest.raises(ClientClosed):
        await anext(stream)


@in_every_mode
async def test_closing_the_new_client_closes_nothing_and_closing_the_first_closes_both(
    mode: Mode,
) -> None:
    client = Flux0(transport=script(scripted_response(AGENTS)))
    async with in_mode(mode, client.with_options(timeout_ms=30_000)) as other:
        pass
    assert len(await other.agents.list_async()) == 0

    client.close()

    assert client.is_closed
    assert client.with_options().is_closed
    with pytest.raises(ClientClosed):
        await other.agents.list_async()


def test_to_json_is_the_text_of_to_dict() -> None:
    operation = flux0.JSONPatchOperation("add", "/-", "é")

    assert json.loads(flux0.to_json(operation)) == flux0.to_dict(operation)
