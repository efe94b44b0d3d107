"""The endings of a stream: confirmed by its framing, unconfirmed, or interrupted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from attrs import evolve

from flux0 import AsyncEventStream, Flux0, RetryConfig
from flux0.domain.errors import Flux0Error
from flux0.domain.headers import Headers
from flux0.domain.http import is_framed
from flux0.ports import Response
from support.in_memory import (
    CORRELATION_ID,
    SSE,
    Script,
    chunk,
    in_every_mode,
    script,
    scripted_response,
)
from support.modes import in_mode
from support.transports import Mode
from unit.turns.test_streams import result_of


def close_delimited(*pieces: bytes) -> Response[Any]:
    return evolve(scripted_response(*pieces, headers=SSE), close_delimited=True)


def stored(*texts: str) -> Response[Any]:
    """Return a response that lists these messages as the turn's stored events."""
    events: list[dict[str, Any]] = [
        {
            "id": f"id{offset}",
            "correlation_id": CORRELATION_ID,
            "type": "message",
            "source": "ai_agent",
            "offset": offset,
            "data": {
                "type": "message",
                "parts": [{"type": "content", "content": text}],
                "participant": {"id": "a", "name": "Drizzle"},
            },
            "deleted": False,
            "created_at": "2026-01-01T00:00:00Z",
            "metadata": {},
        }
        for offset, text in enumerate(texts)
    ]
    return scripted_response(json.dumps({"data": events}).encode())


SESSION = {
    "id": "abcdefghij",
    "agent_id": "agent12345",
    "user_id": "anonymous",
    "title": None,
    "consumption_offsets": {"client": 0},
    "created_at": "2026-01-01T00:00:00Z",
}


async def begin(mode: Mode, transport: Script) -> AsyncEventStream:
    flux0 = in_mode(mode, Flux0(transport=transport, retry_config=RetryConfig("none")))
    return await flux0.sessions.create_event_async(session_id="s", content="Hi")


@in_every_mode
async def test_reading_an_unconfirmed_end_raises_nothing(mode: Mode) -> None:
    stream = await begin(mode, script(close_delimited(chunk("a"), chunk("b"))))

    assert len([event async for event in stream]) == 2

    assert not stream.finished
    assert stream.ending == "unconfirmed"
    assert [event async for event in stream] == []


@in_every_mode
async def test_stored_messages_do_not_confirm_an_end(mode: Mode) -> None:
    """The turn may be incomplete: a server that was killed has also stored the first messages."""
    transport = script(
        close_delimited(chunk("a"), chunk("b")), stored("before", "ab"), stored("ab")
    )
    stream = await begin(mode, transport)
    with pytest.raises(Flux0Error, match="not been read to its end"):
        await result_of(stream.confirm())

    (message,) = await result_of(stream.final_messages())
    await result_of(stream.confirm())

    assert not stream.finished
    assert stream.ending == "unconfirmed"
    assert message.event_id == "e"
    assert [request.operation for request in transport.requests] == [
        "sessions.create_event",
        "sessions.list_events",
        "sessions.list_events",
    ]


@in_every_mode
async def test_reply_of_ask_says_whether_it_is_finished(mode: Mode) -> None:
    for response, finished in (
        (scripted_response(chunk("a"), headers=SSE), True),
        (close_delimited(chunk("a")), False),
    ):
        session = scripted_response(json.dumps(SESSION).encode())
        flux0 = in_mode(mode, Flux0(transport=script(session, response, stored("a"))))
        conversation = await flux0.conversation_async(agent="agent12345")

        reply = await conversation.ask("Hi")

        assert (reply.text, reply.finished) == ("a", finished)


@pytest.mark.parametrize(
    ("fields", "framed"),
    [
        ({}, False),
        ({"content-type": "text/event-stream", "connection": "close"}, False),
        ({"Content-Length": "3"}, True),
        ({"Transfer-Encoding": "chunked"}, True),
        ({"Transfer-Encoding": "gzip, Chunked"}, True),
        ({"transfer-encoding": "identity"}, False),
        ({"content-encoding": "gzip"}, False),
        ({"content-encoding": "identity"}, False),
    ],
)
def test_is_framed_is_true_for_content_length_and_chunked(
    fields: dict[str, str], framed: bool
) -> None:
    assert is_framed(Headers(tuple(fields.items()))) is framed


@pytest.mark.parametrize(
    ("fields", "finished"),
    [
        ({}, True),
        ({"server": "uvicorn"}, True),
        ({"server": "Uvicorn/0.30"}, True),
        ({"server": "nginx/1.26"}, False),
        ({"server": "uvicorn", "via": "1.1 varnish"}, False),
    ],
)
def test_end_behind_a_proxy_is_not_finished(fields: dict[str, str], finished: bool) -> None:
    with Flux0(
        transport=script(scripted_response(chunk("a"), headers={**SSE, **fields}))
    ) as client:
        stream = client.sessions.create_event(session_id="s", content="Hi")
        assert len(list(stream)) == 1

    assert stream.finished is finished
