"""What users of the generated client wrote runs as it stands, against the real server."""

from __future__ import annotations

import asyncio
import logging
import warnings
from typing import Any
from uuid import uuid4

import httpx
import pytest

from support.relay import Relay
from support.server import Flux0Server

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import flux0_client
    from flux0_client import Flux0, Flux0Client, models
    from flux0_client.httpclient import AsyncHttpClient
    from flux0_client.utils import BackoffStrategy, RetryConfig

RETRIES = RetryConfig("backoff", BackoffStrategy(1, 50, 1.1, 100), False)  # noqa: FBT003 - as people wrote it


@pytest.fixture(autouse=True)
def _at_the_server(server: Flux0Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `Flux0()` talk to the server, as it does where that is at the usual address."""
    monkeypatch.setenv("FLUX0_SERVER_URL", server.url)


def test_lists() -> None:
    with Flux0() as flux0:
        res = flux0.agents.list()
    assert isinstance(res, models.AgentsDTO)
    assert all(isinstance(agent, models.AgentDTO) for agent in res.data)


def test_lists_asynchronously() -> None:
    async def main() -> models.AgentsDTO:
        async with Flux0Client() as flux0:
            return await flux0.agents.list_async()

    assert asyncio.run(main()).data


def test_sessions_and_the_events_of_a_turn(server: Flux0Server) -> None:
    session_id = uuid4().hex[:10]
    with Flux0() as flux0:
        made = flux0.sessions.create(agent_id=server.agent_id, id=session_id, title="The weather")
        assert isinstance(made, models.SessionDTO)
        assert flux0.sessions.retrieve(session_id=session_id) == made
        res = flux0.sessions.create_event(
            session_id=session_id,
            type_=flux0_client.EventTypeDTO.MESSAGE,
            source=flux0_client.EventSourceDTO.USER,
            content='[{"status": "typing"}, {"text": "Foggy."}]',
        )
        with res as event_stream:
            events = [type(event) for event in event_stream]
        assert events == [models.EmittedEventStream, models.ChunkEventStream]
        stored = flux0.sessions.list_events(
            session_id=session_id, min_offset=0, types=[flux0_client.EventTypeDTO.MESSAGE]
        )
    assert isinstance(stored, models.EventsDTO)
    assert [event.source for event in stored.data] == ["user", "ai_agent"]


def test_retries_of_a_call_and_of_a_client() -> None:
    with Flux0() as flux0:
        assert flux0.agents.list(retries=RETRIES).data
    with Flux0(retry_config=RETRIES) as flux0:
        assert flux0.agents.list().data


def caught(agent_id: str) -> models.APIError:
    with Flux0() as flux0:
        try:
            flux0.agents.retrieve(agent_id=agent_id)
        except models.HTTPValidationError as e:
            return e
        except models.APIError as e:
            return e
    pytest.fail("there is no such agent")


def test_errors() -> None:
    e = caught("vUfk4PgjTm")
    assert (type(e).__name__, e.status_code) == ("NotFoundError", 404)
    assert e.message in e.body
    assert isinstance(e.raw_response, httpx.Response)
    e = caught("short")
    assert isinstance(e, models.HTTPValidationError)
    data: models.HTTPValidationErrorData = e.data
    assert data.detail[0].loc == ("path", "agent_id")


def test_another_server(relay: Relay) -> None:
    with Flux0(server_url=relay.url) as flux0:
        assert flux0.agents.list().data
    assert relay.connections == 1


def test_a_client_with_headers() -> None:
    with httpx.Client(headers={"x-custom-header": "someValue"}) as http_client:
        sent: list[httpx.Request] = []
        http_client.event_hooks = {"request": [sent.append]}
        s = Flux0(client=http_client)
        assert s.agents.list().data
    assert sent[0].headers["x-custom-header"] == "someValue"


class CustomClient(AsyncHttpClient):
    client: AsyncHttpClient

    def __init__(self, client: AsyncHttpClient) -> None:
        self.client = client
        self.sent: list[httpx.Request] = []

    async def send(self, request: httpx.Request, **options: Any) -> Any:
        request.headers["Client-Level-Header"] = "added by client"
        self.sent.append(request)
        return await self.client.send(request, **options)

    def build_request(self, method: str, url: Any, **options: Any) -> Any:
        return self.client.build_request(method, url, **options)


def test_a_client_that_is_wrapped() -> None:
    async def main() -> list[httpx.Request]:
        async with httpx.AsyncClient() as inner:
            custom = CustomClient(inner)
            async with Flux0(async_client=custom) as s:
                assert (await s.agents.list_async()).data
            return custom.sent

    (sent,) = asyncio.run(main())
    assert sent.headers["client-level-header"] == "added by client"


def test_a_debug_logger(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("flux0_client")
    with caplog.at_level(logging.DEBUG, "flux0_client"), Flux0(debug_logger=logger) as s:
        s.agents.list()
    assert "/api/agents" in caplog.text


def test_a_default_debug_logger(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FLUX0_DEBUG", "true")
    with caplog.at_level(logging.DEBUG, "flux0"), Flux0() as s:
        s.agents.list()
    assert "/api/agents" in caplog.text
