"""The httpx2 transport: the contract, and that it is httpx2 all through.

What the transports over httpx and httpx2 have in common is tested with httpx.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from contextlib import aclosing, closing
from typing import Any

import httpx
import httpx2
import pytest

from flux0 import APIError, Flux0
from flux0.adapters.httpx2 import Httpx2Transport
from flux0.domain.errors import ClientClosed, ConnectError
from flux0.domain.headers import Headers
from flux0.ports import Request
from flux0.testing.contract import (
    AsyncTransportContract,
    LimitedPoolContract,
    TransportContract,
)
from flux0.testing.contract.answers import answer
from flux0.testing.contract.byte_server import ByteServer

OK = answer(b"ok")


class TestHttpx2Transport(LimitedPoolContract, TransportContract):
    def make_transport(self) -> Httpx2Transport:
        return Httpx2Transport()

    def make_trusting_transport(self, ca_file: str) -> Httpx2Transport:
        return configured(verify=ssl.create_default_context(cafile=ca_file))

    def make_limited_transport(self) -> Httpx2Transport:
        return configured(limits=httpx2.Limits(max_connections=1))


class TestAsyncHttpx2Transport(LimitedPoolContract, AsyncTransportContract):
    def make_transport(self) -> Httpx2Transport:
        return Httpx2Transport()

    def make_trusting_transport(self, ca_file: str) -> Httpx2Transport:
        return configured(verify=ssl.create_default_context(cafile=ca_file))

    def make_limited_transport(self) -> Httpx2Transport:
        return configured(limits=httpx2.Limits(max_connections=1))


class Configured(Httpx2Transport):
    """Closes the clients that it was given, as their user would."""

    def __init__(self, client: httpx2.Client, async_client: httpx2.AsyncClient) -> None:
        super().__init__(client, async_client)
        self.given = (client, async_client)

    def close(self) -> None:
        super().close()
        self.given[0].close()

    async def close_async(self) -> None:
        await super().close_async()
        await self.given[1].aclose()


def configured(**options: Any) -> Configured:
    return Configured(httpx2.Client(**options), httpx2.AsyncClient(**options))


def get(url: str) -> Request:
    return Request("GET", url, Headers())


async def fetch_async(transport: Httpx2Transport, request: Request) -> Any:
    response = await transport.send_async(request)
    assert b"".join([piece async for piece in response.body])
    return response.raw_response


def test_the_raw_response_is_httpx2s_and_can_be_read_again() -> None:
    detail = {"detail": "no such thing"}
    steps = answer(json.dumps(detail).encode(), status="404 Not Found", gzip=True)

    async def run(url: str) -> Any:
        transport = Httpx2Transport()
        try:
            return await fetch_async(transport, get(url))
        finally:
            await transport.close_async()

    with ByteServer(steps) as server:
        transport = Httpx2Transport()
        response = transport.send(get(server.url))
        assert b"".join(response.body)
        transport.close()
        for raw in (response.raw_response, asyncio.run(run(server.url))):
            assert isinstance(raw, httpx2.Response)
            assert raw.json() == detail


def test_the_cause_of_an_error_is_httpx2s() -> None:
    with pytest.raises(ConnectError) as caught:
        Httpx2Transport().send(get("http://127.0.0.1:1"))
    assert isinstance(caught.value.__cause__, httpx2.ConnectError)


def test_a_client_of_the_users_stays_open_and_as_it_is() -> None:
    given = httpx2.Client(headers={"x-team": "blue"})
    with ByteServer(OK) as server, closing(given) as client:
        transport = Httpx2Transport(client)
        assert b"".join(transport.send(get(server.url)).body) == b"ok"
        transport.close()
        assert not client.is_closed
        assert server.requests[0].headers["x-team"] == "blue"
    with pytest.raises(ClientClosed, match="httpx2"):
        transport.send(get(server.url))


def test_an_asynchronous_client_of_the_users_stays_open_and_as_it_is() -> None:
    async def run(url: str) -> None:
        async with aclosing(httpx2.AsyncClient(headers={"x-team": "blue"})) as client:
            transport = Httpx2Transport(async_client=client)
            await fetch_async(transport, get(url))
            await transport.close_async()
            assert not client.is_closed
        with pytest.raises(ClientClosed, match="httpx2"):
            await transport.send_async(get(url))

    with ByteServer(OK) as server:
        asyncio.run(run(server.url))
        assert server.requests[0].headers["x-team"] == "blue"


def empty_listing(request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, json={"data": []})


def refusal(request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(403, json={"detail": "no"})


def test_a_client_takes_clients_of_httpx2_for_what_they_are() -> None:
    with (
        closing(httpx2.Client(transport=httpx2.MockTransport(refusal))) as client,
        Flux0("http://flux0.invalid", client=client) as flux0,
        pytest.raises(APIError) as caught,
    ):
        flux0.agents.list()
    assert isinstance(caught.value.raw_response, httpx2.Response)


def test_the_two_clients_may_be_of_two_libraries() -> None:
    async def main() -> int:
        async with (
            aclosing(
                httpx2.AsyncClient(transport=httpx2.MockTransport(empty_listing))
            ) as async_client,
            Flux0("http://flux0.invalid", client=client, async_client=async_client) as flux0,
        ):
            return len(flux0.agents.list()) + len(await flux0.agents.list_async())

    def agents(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"data": []})

    with httpx.Client(transport=httpx.MockTransport(agents)) as client:
        assert asyncio.run(main()) == 0
