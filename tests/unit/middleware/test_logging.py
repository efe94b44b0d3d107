"""Debug logging: its lines, and the values that are hidden."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from attrs import define, evolve, field

from flux0.adapters.json import JsonCodec
from flux0.client.drivers import Driver
from flux0.domain.errors import AgentError, ConnectError, StreamInterrupted
from flux0.domain.headers import Headers
from flux0.domain.retrying import RetryDetails
from flux0.flows import CallRequest, chain
from flux0.middleware.logging import (
    Logging,
    log_failed_background_turn,
    log_failed_observer,
    log_lost_reader,
    log_relayed_turn,
    log_retry,
    log_turn,
    log_unconfirmed_end,
)
from flux0.middleware.responses import ResponsePolicy
from flux0.observers import TurnEnd
from flux0.ports import Response
from support.driving import Time
from support.in_memory import JSON, SSE, script, scripted_response

REQUEST = CallRequest("GET", "http://h:1/api/sessions?agent_id=1", Headers())


@define
class RecordingLogger:
    """A logger that records its lines."""

    lines: list[str] = field(factory=list[str])

    def debug(self, msg: str, *args: Any) -> None:
        self.lines.append(msg % args)


class Clock(Time):
    """A clock that advances by 0.25 s at each call."""

    def monotonic(self) -> float:
        self.now += 0.25
        return self.now


def log_of(request: CallRequest, outcome: Response[Any] | BaseException) -> list[str]:
    """Return the lines that are logged for one exchange."""
    logger = RecordingLogger()
    layers = chain([Logging(logger, Clock()), ResponsePolicy(JsonCodec(), 10**6)])
    driver = Driver(script(outcome), Time())
    if isinstance(outcome, BaseException):
        with pytest.raises(type(outcome)):
            driver.run(layers(request))
    else:
        assert driver.run(layers(request)).status_code == outcome.status_code
    return logger.lines


def test_exchange_is_logged_in_two_lines() -> None:
    request = evolve(REQUEST, method="POST", body=b'{"name": "n"}', attempt=2)

    request_line, response_line = log_of(
        request, scripted_response(b'{"data"', b": []}", status=201)
    )

    assert request_line == (
        'POST http://h:1/api/sessions?agent_id=1 attempt=2 headers={} body={"name": "n"}'
    )
    assert response_line == (
        "POST http://h:1/api/sessions?agent_id=1 returned 201 in 250.0 ms "
        "headers={'content-type': 'application/json'} body={\"data\": []}"
    )


def test_failure_is_logged_with_its_class() -> None:
    request_line, failed = log_of(REQUEST, ConnectError("refused"))

    assert request_line.endswith("body=none")
    assert failed == (
        "GET http://h:1/api/sessions?agent_id=1 failed after 250.0 ms: ConnectError: refused"
    )
    assert len(log_of(REQUEST, KeyboardInterrupt())) == 1, "an interrupt is not logged"


@pytest.mark.parametrize("kind", [ConnectError, ValueError])
def test_failure_cannot_forge_a_line(kind: type[Exception]) -> None:
    _, failed = log_of(REQUEST, kind("refused\nGET http://h returned 200"))

    assert failed.endswith(f"{kind.__name__}: refused\\nGET http://h returned 200")


def test_body_cannot_forge_a_line() -> None:
    _, response_line = log_of(REQUEST, scripted_response(b"ok\nGET http://h returned 200"))
    assert response_line.endswith("body=ok\\nGET http://h returned 200")


@pytest.mark.parametrize(("line", "sent"), [(1, "no"), (2, "maybe")])
def test_error_of_the_logger_is_an_error_of_user_code(line: int, sent: str) -> None:
    class Broken(RecordingLogger):
        def debug(self, msg: str, *args: Any) -> None:
            super().debug(msg, *args)
            if len(self.lines) == line:
                raise ConnectError("of another call")

    layers = chain([Logging(Broken(), Clock())])
    with pytest.raises(ConnectError) as caught:
        Driver(script(scripted_response()), Time()).run(layers(REQUEST))
    assert (caught.value.from_user_code, caught.value.sent) == (True, sent)


def test_log_records_do_not_keep_the_error() -> None:
    """A handler may keep records. An error would keep the frames and objects of its call alive."""
    kept: list[object] = []

    class Keeping(RecordingLogger):
        def debug(self, msg: str, *args: Any) -> None:
            kept.extend(args)

    layers = chain([Logging(Keeping(), Clock()), ResponsePolicy(JsonCodec(), 10**6)])
    with pytest.raises(ConnectError):
        Driver(script(ConnectError("refused")), Time()).run(layers(REQUEST))

    assert "refused" in kept
    assert not any(isinstance(each, BaseException) for each in kept)


END = TurnEnd("confirmed", None, None, "s\n1", "c", "agent-1", "Drizzle", 3, 0.25, 1.5)
FACTS = "session=s\\n1 turn=c events=3"


@pytest.mark.parametrize(
    ("changes", "level", "line"),
    [
        ({}, "INFO", f"confirmed agent=Drizzle {FACTS} first_event=0.250s total=1.500s"),
        (
            *({"agent_name": None, "seconds_to_first_event": None}, "INFO"),
            f"confirmed agent=agent-1 {FACTS} first_event=None total=1.500s",
        ),
        (
            *({"ending": "interrupted", "error": StreamInterrupted("reset")}, "WARNING"),
            "interrupted error=StreamInterrupted sent=maybe agent=Drizzle ",
        ),
        ({"agent_error": AgentError("secret")}, "INFO", "confirmed error=AgentError agent="),
    ],
)
def test_line_of_an_ended_turn_has_its_facts(
    changes: Any, level: str, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flux0")
    log_turn(evolve(END, **changes))
    (record,) = caplog.records
    assert record.levelname == level
    assert record.message.startswith(f"turn ended: ending={line}")
    assert "secret" not in record.message


def test_failed_relayed_turn_is_one_warning_or_error(caplog: pytest.LogCaptureFixture) -> None:
    """`log_relayed_turn` logs the error, so the line about the turn's end has the level INFO."""
    turn = evolve(END, error=StreamInterrupted("reset"))
    log_turn(turn, is_relayed=True)
    log_relayed_turn(turn)
    assert [each.levelname for each in caplog.records if each.levelname != "INFO"] == ["ERROR"]


def test_both_errors_of_a_relayed_turn_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    errors: Any = {"agent_error": AgentError("no model"), "error": StreamInterrupted("reset")}
    log_relayed_turn(evolve(END, **errors))
    first, second = caplog.messages
    ids = "session=s\\n1 turn=c"
    assert first == f"relayed turn failed: the agent reported an error: no model {ids}"
    assert second == f"relayed turn failed: reset {ids}"


BUG = ConnectError("a bug")


@pytest.mark.parametrize(
    ("log", "line", "error"),
    [
        (
            lambda: log_retry(RetryDetails("agents.list", "GET", "http://h", 2, 500.0, BUG)),
            "WARNING GET http://h: attempt 2 failed (ConnectError: a bug), retrying in 500 ms",
            None,
        ),
        (log_unconfirmed_end, "WARNING the end of a turn is unconfirmed: ", None),
        (lambda: log_lost_reader("slow", "s\n1"), "WARNING slow: session=s\\n1", None),
        (lambda: log_failed_observer("mine", BUG), "ERROR the observer 'mine' raised an ", BUG),
        (lambda: log_failed_background_turn(BUG), "ERROR an unexpected exception ended a ", BUG),
    ],
)
def test_problem_is_logged_with_its_level_and_its_exception(
    log: Callable[[], None],
    line: str,
    error: Exception | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    log()
    (record,) = caplog.records
    assert f"{record.levelname} {record.message}".startswith(line)
    assert (record.exc_info and record.exc_info[1]) is error


def test_body_of_a_stream_is_not_logged() -> None:
    _, response_line = log_of(
        evolve(REQUEST, stream=True), scripted_response(b"never read", headers=SSE)
    )

    assert response_line.endswith("body=a stream")


LONG_JSON = b'{"token": "secret", "id": "' + 1000 * b"x" + b'"}'


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"x" * 1000, "x" * 1000),
        (b"x" * 1001, f"{'x' * 1000}... (1,001 bytes)"),
        (b"\xff", "\ufffd"),
        (LONG_JSON, '{"token": "***", "id": "' + 976 * "x" + "... (1,029 bytes)"),
    ],
)
def test_long_bodies_are_truncated_and_invalid_utf_8_is_replaced(body: bytes, shown: str) -> None:
    request_line, response_line = log_of(evolve(REQUEST, body=body), scripted_response(body))

    assert request_line.endswith(f"body={shown}")
    assert response_line.endswith(f"body={shown}")


@pytest.mark.parametrize("length", [10, 2000])
def test_credentials_in_short_and_long_json_bodies_are_not_logged(length: int) -> None:
    body = json.dumps({"api_key": "secret", "content": "x" * length}).encode()

    lines = log_of(evolve(REQUEST, body=body), scripted_response(body))

    for line in lines:
        assert '"api_key": "***"' in line
        assert "secret" not in line


def test_credentials_in_headers_are_not_logged() -> None:
    secret = ("Authorization", "cookie", "X-Api-Key", "X-Made-Up")
    fields = Headers((*((name, "secret") for name in secret), ("user-agent", "test")))

    request_line, response_line = log_of(
        evolve(REQUEST, headers=fields),
        scripted_response(headers={**JSON, "Set-Cookie": "a=secret"}),
    )

    assert "secret" not in request_line + response_line
    assert "'user-agent': 'test'" in request_line
    assert "'authorization': '***'" in request_line
    assert "'set-cookie': '***'" in response_line
