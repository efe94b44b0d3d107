"""The application of `examples/web` with the real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import pytest

from support.server import Flux0Server
from support.web_example import web_example

FIRST = {"text": "My  first\nmessage"}


@pytest.fixture(scope="module")
def url(server: Flux0Server) -> Iterator[str]:
    with web_example(server.url) as url:
        yield url


def test_turn_continues_without_the_browser_until_its_user_stops_it(
    server: Flux0Server, url: str, fresh_name: str
) -> None:
    script = [{"text": "Hello"}, {"wait": fresh_name}]
    with httpx.Client(base_url=url) as ada, httpx.Client(base_url=url) as eve:
        for browser in (ada, eve):
            browser.get("/")  # Sets the cookie.
        session = ada.post("/sessions", json=FIRST).json()["session_id"]
        path = f"/sessions/{session}/messages"
        message = {"text": json.dumps(script)}
        assert eve.post(path, json=message).status_code == 404
        with ada.stream("POST", path, json=message) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert any('"Hello"' in line for line in response.iter_lines())
        turn = f"/sessions/{session}/turn"
        with ada.stream("GET", turn) as response:
            assert any('"Hello"' in line for line in response.iter_lines())
        assert eve.delete(turn).status_code == 404
        assert ada.delete(turn).status_code == 204
        server.wait_cancelled(fresh_name)

        response = ada.get(f"/sessions/{session}")
        assert response.headers["cache-control"] == "no-store"
        (part,) = response.json()[0]["data"]["parts"]
        assert part["content"] == message["text"]
        response = ada.get("/sessions")
        assert response.headers["cache-control"] == "no-store"
        (chat,) = response.json()
        assert (chat["id"], chat["title"]) == (session, "My first message")
        assert eve.get("/sessions").json() == []
        assert eve.get(f"/sessions/{session}").status_code == 404


def test_first_chats_of_a_user_belong_to_the_user_also_if_they_are_created_together(
    url: str,
) -> None:
    """If two sessions of a new user are created at the same moment, the server may lose one."""
    for _ in range(8):
        with httpx.Client(base_url=url) as browser, ThreadPoolExecutor(2) as pool:
            browser.get("/")
            create = partial(browser.post, json=FIRST)
            created = tuple(pool.map(create, ["/sessions"] * 2))
            for response in created:
                session = response.json()["session_id"]
                assert browser.get(f"/sessions/{session}").status_code == 200


def test_error_of_the_agent_is_stored_without_its_text(url: str) -> None:
    script = [{"text": "Hello"}, {"status": "error", "data": {"detail": "secret"}}]
    with httpx.Client(base_url=url) as browser:
        browser.get("/")
        session = browser.post("/sessions", json=FIRST).json()["session_id"]
        path = f"/sessions/{session}"
        browser.post(f"{path}/messages", json={"text": json.dumps(script)})

        events = browser.get(path).json()

    types = [(event["type"], event["data"].get("status")) for event in events]
    assert ("status", "error") in types
    assert len({event["correlation_id"] for event in events}) == 1
    assert "secret" not in json.dumps(events[1:])
