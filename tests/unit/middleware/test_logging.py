"""What the log says of an exchange, and what it never says."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import define, evolve, field

from flux0.adapters.json import JsonCodec
from flux0.client.drivers import Driver
from flux0.domain.errors import ConnectError
from flux0.domain.headers import Headers
from flux0.flows import chain
from flux0.middleware.logging import Logging
from flux0.middleware.responses import ResponsePolicy
from flux0.ports import Request, Response
from support.driving import Time
from support.in_memory import JSON, SSE, script, scripted_response

REQUEST = Request("GET", "http://127.0.0.1:8080/api/agents?a=1", Headers())


@define
class Notes:
    """A logger that keeps what it is told."""

    lines: list[str] = field(factory=list[str])

    def debug(self, msg: str, *args: Any) -> None:
        self.lines.append(msg % args)


class Clock(Time):
    """A clock on which every look takes a quarter of a second."""

    def monotonic(self) -> float:
        self.now += 0.25
        return self.now


def log_of(request: Request, outcome: Response[Any] | BaseException) -> list[str]:
    """Return what is logged of one exchange."""
    notes = Notes()
    layers = chain([Logging(notes, Clock()), ResponsePolicy(JsonCodec(), 10**6)])
    driver = Driver(script(outcome), Time())
    if isinstance(outcome, BaseException):
        with pytest.raises(type(outcome)):
            driver.run(layers(request))
    else:
        driver.run(layers(request))
    return notes.lines


def test_exchange_is_logged_in_two_lines() -> None:
    request = evolve(REQUEST, method="POST", body=b'{"name": "n"}', attempt=2)

    asked, answered = log_of(request, scripted_response(b'{"data"', b": []}", status=201))

    assert asked == (
        'POST http://127.0.0.1:8080/api/agents?a=1 attempt=2 headers={} body={"name": "n"}'
    )
    assert answered == (
        "POST http://127.0.0.1:8080/api/agents?a=1 returned 201 in 250.0 ms "
        "headers={'content-type': 'application/json'} body={\"data\": []}"
    )


def test_failure_is_logged_with_its_class() -> None:
    asked, failed = log_of(REQUEST, ConnectError("refused"))

    assert asked.endswith("body=none")
    assert failed == (
        "GET http://127.0.0.1:8080/api/agents?a=1 failed after 250.0 ms: ConnectError: refused"
    )
    assert len(log_of(REQUEST, KeyboardInterrupt())) == 1, "the user ended it"


def test_body_of_a_stream_is_not_logged() -> None:
    _, answered = log_of(
        evolve(REQUEST, stream=True), scripted_response(b"never read", headers=SSE)
    )

    assert answered.endswith("body=a stream")


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"x" * 1000, "x" * 1000),
        (b"x" * 1001, f"{'x' * 1000}... (1,001 bytes)"),
        (b"\xff", "\ufffd"),
    ],
)
def test_long_bodies_are_truncated_and_invalid_utf_8_is_replaced(body: bytes, shown: str) -> None:
    asked, answered = log_of(evolve(REQUEST, body=body), scripted_response(body))

    assert asked.endswith(f"body={shown}")
    assert answered.endswith(f"body={shown}")


def test_credentials_in_headers_are_not_logged() -> None:
    secret = ("Authorization", "cookie", "X-Api-Key", "X-Made-Up")
    fields = Headers((*((name, "secret") for name in secret), ("user-agent", "test")))

    asked, answered = log_of(
        evolve(REQUEST, headers=fields),
        scripted_response(headers={**JSON, "Set-Cookie": "a=secret"}),
    )

    assert "secret" not in asked + answered
    assert "'user-agent': 'test'" in asked
    assert "'authorization': '***'" in asked
    assert "'set-cookie': '***'" in answered
