"""A user's back end relays turns of the real server to a browser, promptly and completely."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from flux0 import EventStream, Flux0
from flux0.models import StatusEvent, StreamEvent
from support.back_ends import asgi, wsgi
from support.server import Flux0Server
from support.transports import make_transport
from support.turns import appended

BackEnd = Callable[[Flux0], AbstractContextManager[str]]


def content_of(event: StreamEvent) -> tuple[object, ...]:
    """Return the content of an event, without its time and ids."""
    if isinstance(event, StatusEvent):
        return (event.status, event.data.data)
    return (appended(event),)


def start_turn(browser: Flux0, session_id: str, *script: Any) -> EventStream:
    return browser.sessions.create_event(session_id=session_id, content=json.dumps(script))


@pytest.mark.parametrize(
    ("back_end", "transport"),
    [(asgi, "httpx"), (asgi, "aiohttp"), (asgi, "requests"), (wsgi, "httpx"), (wsgi, "urllib3")],
)
def test_browser_receives_the_events_of_the_server(
    back_end: BackEnd, transport: str, server: Flux0Server, session_id: str
) -> None:
    script = ({"status": "typing"}, {"text": "Hé"}, {"text": "\u2028llo"})

    with (
        Flux0(server.url, transport=make_transport(transport)) as client,
        back_end(client) as url,
        Flux0(url) as browser,
        Flux0(server.url) as direct,
    ):
        relayed, expected = (
            [content_of(event) for event in start_turn(flux0, session_id, *script)]
            for flux0 in (browser, direct)
        )

    assert relayed == expected == [("typing", None), ("Hé",), ("\u2028llo",)]


@pytest.mark.parametrize("back_end", [asgi, wsgi])
def test_events_are_relayed_promptly_and_disconnecting_cancels_the_agent(
    back_end: BackEnd, server: Flux0Server, session_id: str, fresh_name: str
) -> None:
    waits = fresh_name, f"{fresh_name}-never"

    with Flux0(server.url) as client, back_end(client) as url, Flux0(url) as browser:
        script = ({"text": "Hi"}, {"wait": waits[0]}, {"text": "there"}, {"wait": waits[1]})
        stream = start_turn(browser, session_id, *script)
        # The event arrives while the agent waits for `release`.
        assert appended(next(stream)) == "Hi"
        server.release(waits[0])
        assert appended(next(stream)) == "there"
        stream.close()
        server.wait_cancelled(waits[1])
