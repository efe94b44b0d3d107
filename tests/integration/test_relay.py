"""A browser behind a back end of the user's gets the real turn, promptly and whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from flux0 import Flux0
from flux0.models import StatusEvent, StreamEvent
from support.back_ends import asgi, wsgi
from support.server import Flux0Server
from support.transports import Way
from support.turns import appended

BackEnd = Callable[[Flux0], AbstractContextManager[str]]

both_kinds = pytest.mark.parametrize("back_end", [asgi, wsgi])


def without_time(events: list[StreamEvent]) -> list[tuple[object, ...]]:
    return [
        (event.status, event.data.data) if isinstance(event, StatusEvent) else (appended(event),)
        for event in events
    ]


@both_kinds
def test_a_browser_gets_the_events_of_the_server(
    back_end: BackEnd, server: Flux0Server, session_id: str
) -> None:
    content = json.dumps([{"status": "typing"}, {"text": "Hé"}, {"text": "\u2028llo"}])

    with Flux0(server.url) as client, back_end(client) as url, Flux0(url) as browser:
        with browser.sessions.create_event(session_id=session_id, content=content) as stream:
            relayed = list(stream)
        with client.sessions.create_event(session_id=session_id, content=content) as stream:
            direct = list(stream)

    assert without_time(relayed) == without_time(direct)
    assert len(relayed) >= 3


@both_kinds
def test_events_come_at_once_and_leaving_cancels_the_agent(
    back_end: BackEnd, server: Flux0Server, session_id: str, fresh_name: str
) -> None:
    content = json.dumps([{"text": "Hi"}, {"wait": fresh_name}, {"text": "never said"}])

    with Flux0(server.url) as client, back_end(client) as url, Flux0(url) as browser:
        stream = browser.sessions.create_event(session_id=session_id, content=content)
        # The agent waits for a signal that nobody gives: the event is there although it does.
        assert appended(next(stream)) == "Hi"
        stream.close()
        server.wait_cancelled(fresh_name)


@both_kinds
def test_a_silence_is_filled_and_the_turn_goes_on(
    back_end: BackEnd, server: Flux0Server, session_id: str, fresh_name: str
) -> None:
    content = json.dumps([{"text": "Hi"}, {"wait": fresh_name}, {"text": "there"}])

    with Flux0(server.url) as client, back_end(client) as url, Flux0(url) as browser:
        stream = browser.sessions.create_event(session_id=session_id, content=content)
        assert appended(next(stream)) == "Hi"
        server.release(fresh_name)
        assert [appended(event) for event in stream] == ["there"]


@both_kinds
def test_a_server_that_dies_is_the_last_event(
    back_end: BackEnd,
    own_server: Callable[[], Flux0Server],
    fresh_name: str,
) -> None:
    server = own_server()
    content = json.dumps([{"text": "Hi"}, {"wait": fresh_name}])

    with Flux0(server.url) as client, back_end(client) as url, Flux0(url) as browser:
        session = client.sessions.create(agent_id=server.agent_id)
        stream = browser.sessions.create_event(session_id=session.id, content=content)
        assert appended(next(stream)) == "Hi"
        server.kill()
        (last,) = stream

    assert last.event == "error"
    assert json.loads(last.to_sse().split(b"data: ")[1])["type"] == "StreamInterrupted"


def test_every_transport_is_relayed(server: Flux0Server, way: Way, session_id: str) -> None:
    content = json.dumps([{"text": "Hi"}])
    back_end = wsgi if way.mode == "sync" else asgi

    with (
        Flux0(server.url, transport=way.make_transport()) as client,
        back_end(client) as url,
        Flux0(url) as browser,
    ):
        stream = browser.sessions.create_event(session_id=session_id, content=content)
        assert [appended(event) for event in stream] == ["Hi"]
