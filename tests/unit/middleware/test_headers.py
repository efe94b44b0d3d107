"""Computed headers: they are computed for each attempt, and the call's headers replace them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve

from flux0.client.drivers import Driver
from flux0.domain.errors import ConnectError, InvalidArgument
from flux0.domain.headers import Headers
from flux0.flows import CallRequest, chain
from flux0.middleware.headers import compute_headers
from support.driving import Time, drive
from support.in_memory import Script, in_both_loops, in_every_mode, script, scripted_response
from support.transports import Mode

REQUEST = CallRequest("GET", "http://h/api/agents", Headers((("X-Own", "call"),)))


async def send(mode: Mode, transport: Script, **functions: Callable[[], Any]) -> None:
    named = {name.replace("_", "-"): each for name, each in functions.items()}
    request = evolve(REQUEST, header_functions=named)
    await drive(mode, chain([compute_headers])(request), transport, Time())


@in_every_mode
async def test_headers_are_computed_for_each_attempt_unless_the_call_has_them(mode: Mode) -> None:
    transport = script(scripted_response(), scripted_response())
    tokens = iter(["first", "second"])
    functions = {"authorization": tokens.__next__, "x-own": lambda: "computed"}
    request = evolve(REQUEST, header_functions=functions)

    for _ in range(2):
        await drive(mode, chain([compute_headers])(request), transport, Time())

    sent = [dict(request.headers) for request in transport.requests]
    assert sent == [{"authorization": token, "x-own": "call"} for token in ("first", "second")]


@in_both_loops
async def test_async_functions_are_awaited(mode: Mode) -> None:
    async def token() -> str:
        return "async"

    transport = script(scripted_response())
    await send(mode, transport, authorization=token)

    assert transport.requests[0].headers["authorization"] == "async"


def test_async_function_of_a_sync_call_is_named() -> None:
    async def token() -> str:
        return "async"

    flow = chain([compute_headers])(evolve(REQUEST, header_functions={"authorization": token}))
    with pytest.raises(InvalidArgument) as caught:
        Driver(script(), Time()).run(flow)
    assert caught.value.argument == "headers['authorization']"


@in_every_mode
async def test_error_of_a_function_is_marked_and_nothing_is_sent(mode: Mode) -> None:
    down = ConnectError("the token server is down")

    def token() -> str:
        raise down

    transport = script()
    with pytest.raises(ConnectError) as caught:
        await send(mode, transport, authorization=token)

    assert caught.value is down
    assert (down.from_user_code, down.sent) == (True, "no")
    assert transport.requests == []


@in_every_mode
async def test_invalid_value_is_rejected_and_nothing_is_sent(mode: Mode) -> None:
    for value in ("a\nb", 1):
        transport = script()
        with pytest.raises(InvalidArgument, match="x-computed"):
            await send(mode, transport, x_computed=lambda value=value: value)  # type: ignore[misc]
        assert transport.requests == []
