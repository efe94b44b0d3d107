"""Logs, errors and reports: no control characters, and no values that may be credentials."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from flux0 import BackoffStrategy, DecodeError, Flux0, RetryConfig, RetryDetails
from flux0.domain.errors import Flux0Error
from flux0.domain.safe_text import escaped, shown_url
from flux0.observers import Call, Observer
from flux0.testing import FakeTransport, Pause, Respond, Say
from support.in_memory import SSE, chunk, script, scripted_response

AT_ONCE = RetryConfig(backoff=BackoffStrategy(initial_interval=0), max_attempts=2, retry_posts=True)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Drizzle 天気 👩\u200d💻", "Drizzle 天気 👩\u200d💻"),
        ("a\r\nERROR b\tc", r"a\r\nERROR b\tc"),
        ("\x1b[2J\a\x7f\x9b\0", r"\x1b[2J\x07\x7f\x9b\x00"),
        ("a\u2028b\u2029c\x85d", r"a\u2028b\u2029c\x85d"),
        ("a\u202eb\u2066c", r"a\u202eb\u2066c"),
        ("\ud800", r"\ud800"),
        ("a\\nb", r"a\nb"),
    ],
)
def test_control_characters_and_surrogates_are_escaped(text: str, shown: str) -> None:
    assert escaped(text) == shown
    assert escaped(shown) == shown


def test_kept_characters_are_not_escaped() -> None:
    assert escaped("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"


def test_repr_of_a_stream_is_one_line() -> None:
    event = chunk("Hi").replace(b"RID(1)", b"RID\\nERROR \\u001b[31mforged")
    with Flux0(transport=script(scripted_response(event, headers=SSE))) as flux0:
        stream = flux0.sessions.create_event(session_id="s", content="Hi")
        next(stream)

    assert repr(stream) == r"<EventStream closed, 1 events of RID\nERROR \x1b[31mforged::2>"


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("", ""),
        ("?", "?***"),
        ("?min_offset=7&types=tool&types=message", "?min_offset=7&types=tool&types=message"),
        ("?token=a%3Db&source=user&key=&c", "?token=***&source=user&key=***&***"),
    ],
)
def test_only_query_values_with_known_names_are_shown(query: str, shown: str) -> None:
    assert shown_url(f"http://h:1/api/agents{query}") == f"http://h:1/api/agents{shown}"


def test_message_of_an_error_is_one_line() -> None:
    error = Flux0Error("the agent said: \x1b[1m\n2026-01-01 ERROR forged")

    assert error.problem == r"the agent said: \x1b[1m\n2026-01-01 ERROR forged"
    assert str(error) == error.problem


def test_values_of_extra_options_are_not_in_errors_logs_and_reports(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reported: list[object] = []

    class Reports(Observer):
        def on_call_start(self, call: Call) -> None:
            reported.append(call.url)

    def on_retry(details: RetryDetails) -> None:
        reported.extend((details.url, str(details.cause)))

    caplog.set_level(logging.DEBUG, "flux0")
    secrets: Any = {"metadata": {"token": "5ecret"}, "key": ["5ecret"]}
    extra = {"loc": ["body", "key"], "msg": "Extra inputs", "type": "?", "input": "5ecret"}
    fake = FakeTransport()
    fake.inject(Respond(503, [extra]))
    fake.inject(Respond(201, body=json.dumps({"id": 1, **secrets}).encode()))
    options: dict[str, Any] = {"observers": [Reports()], "on_retry": on_retry}
    logger = logging.getLogger("flux0")
    with (
        Flux0(transport=fake, retry_config=AT_ONCE, debug_logger=logger, **options) as flux0,
        pytest.raises(DecodeError) as caught,
    ):
        flux0.sessions.create(
            agent_id="x", title="Sun", extra_query={"token": "5ecret"}, extra_body=secrets
        )

    url = "http://127.0.0.1:8080/api/sessions?token=***"
    assert caught.value.url == url
    problem = "id: expected a str, got int"
    shown = '{"id": 1, "metadata": "***", "key": "***"}'
    assert str(caught.value) == f"POST {url}: {problem} in {shown!r}"
    assert "5ecret" in caught.value.body
    assert reported == [url, url, "503: body.key: Extra inputs"]
    first, *_, last = caplog.messages
    assert first.endswith('body={"agent_id": "x", "title": "Sun", "metadata": "***", "key": "***"}')
    assert last.endswith('body={"id": 1, "metadata": "***", "key": "***"}')
    assert "5ecret" not in caplog.text
    assert [call.query["token"] for call in fake.calls] == ["5ecret"] * 2


def test_text_of_the_server_does_not_forge_lines_of_logs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "flux0")
    fake = FakeTransport([Pause(1), Say("Hello")], agent_name="Drizzle\n\x1b[31mERROR forged")
    fake.inject(Respond(503, "busy\n\x1b[31mERROR forged"))
    fake.inject(Respond(200, body=b"busy\n\x1b[31mERROR forged"))
    logger = logging.getLogger("flux0")
    with Flux0(transport=fake, retry_config=AT_ONCE, debug_logger=logger) as flux0:
        with pytest.raises(DecodeError) as caught:
            flux0.agents.list()
        flux0.conversation(agent=fake.agent_id).ask("Hi")

    assert str(caught.value).isprintable()
    assert all(message.isprintable() for message in caplog.messages)
    forged = [message for message in caplog.messages if "forged" in message]
    assert {message.partition(" ")[0] for message in forged} == {"GET", "turn"}
