"""The endings of a stream: confirmed by its framing, unconfirmed, or interrupted."""

from __future__ import annotations

import json

import pytest

from flux0 import Flux0
from flux0.domain.errors import Flux0Error
from flux0.domain.headers import Headers
from flux0.domain.http import is_framed
from support.in_memory import (
    SESSION,
    SSE,
    begin,
    chunk,
    close_delimited,
    in_every_mode,
    script,
    scripted_response,
    stored,
)
from support.modes import in_mode, result_of
from support.transports import Mode


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
