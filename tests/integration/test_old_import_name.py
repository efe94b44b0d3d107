"""Programs for the generated client run unchanged, with the real server."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any
from uuid import uuid4

import httpx
import pytest

from support.server import Flux0Server

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import flux0_client
    from flux0_client import Flux0, Flux0Client, models
    from flux0_client.httpclient import AsyncHttpClient
    from flux0_client.utils import BackoffStrategy, RetryConfig


@pytest.fixture(autouse=True)
def _server_url(server: Flux0Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the server the default of `Flux0()`."""
    monkeypatch.setenv("FLUX0_SERVER_URL", server.url)


def test_session_and_events_of_a_turn(server: Flux0Server) -> None:
    session_id = uuid4().hex[:10]
    retries = RetryConfig("backoff", BackoffStrategy(1, 50, 1.1, 100), False)  # noqa: FBT003 - as in programs of users
    with Flux0(retry_config=retries) as flux0:
        res = flux0.agents.list(retries=retries)
        assert isinstance(res, models.AgentsDTO)
        assert {type(agent) for agent in res.data} == {models.AgentDTO}
        made = flux0.sessions.create(agent_id=server.agent_id, id=session_id, title="The weather")
        assert isinstance(made, models.SessionDTO)
        stream = flux0.sessions.create_event(
            session_id=session_id,
            type_=flux0_client.EventTypeDTO.MESSAGE,
            source=flux0_client.EventSourceDTO.USER,
            content='[{"status": "typing"}, {"text": "Foggy."}]',
        )
        with stream as event_stream:
            events = [type(event) for event in event_stream]
        assert events == [models.EmittedEventStream, models.ChunkEventStream]
        stored = flux0.sessions.list_events(
            session_id=session_id, min_offset=0, types=[flux0_client.EventTypeDTO.MESSAGE]
        )
    assert isinstance(stored, models.EventsDTO)
    assert [event.source for event in stored.data] == ["user", "ai_agent"]


def test_errors_have_the_old_names_and_attributes() -> None:
    with Flux0() as flux0:
        with pytest.raises(models.APIError) as caught:
            flux0.agents.retrieve(agent_id="vUfk4PgjTm")
        e = caught.value
        assert (type(e).__name__, e.status_code) == ("NotFoundError", 404)
        assert e.message in e.body
        assert isinstance(e.raw_response, httpx.Response)
        with pytest.raises(models.HTTPValidationError) as refused:
            flux0.agents.retrieve(agent_id="short")
    data: models.HTTPValidationErrorData = refused.value.data
    assert data.detail[0].loc == ("path", "agent_id")


class CustomClient(AsyncHttpClient):
    client: AsyncHttpClient

    def __init__(self, client: AsyncHttpClient) -> None:
        self.client = client

    async def send(self, request: httpx.Request, **options: Any) -> Any:
        request.headers["Client-Level-Header"] = "added by client"
        return await self.client.send(request, **options)

    def build_request(self, method: str, url: Any, **options: Any) -> Any:
        return self.client.build_request(method, url, **options)


def test_client_can_be_wrapped() -> None:
    sent: list[httpx.Request] = []

    async def record(request: httpx.Request) -> None:
        sent.append(request)

    async def main() -> None:
        async with (
            httpx.AsyncClient(event_hooks={"request": [record]}) as inner,
            Flux0Client(async_client=CustomClient(inner)) as s,
        ):
            assert (await s.agents.list_async()).data

    asyncio.run(main())
    assert sent[0].headers["client-level-header"] == "added by client"
