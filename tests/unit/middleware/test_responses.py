"""Responses: the body of a 2xx response is read, and other statuses raise an `APIError`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from attrs import evolve

from flux0 import Flux0
from flux0.adapters.json import JsonCodec
from flux0.client.drivers import Driver
from flux0.domain import api_errors, errors
from flux0.domain.headers import Headers
from flux0.flows import CallRequest, Flow, SendFlow, chain
from flux0.middleware.responses import ResponsePolicy
from flux0.ports import Response
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import http_response
from support.driving import Time
from support.in_memory import JSON, SSE, Step, response_from, script, tape

REQUEST = CallRequest("GET", "http://127.0.0.1:8080/api/agents", Headers())
LIMIT = 100_000
TEXT = {"content-type": "text/plain; charset=utf-8"}
HTML = {"content-type": "text/html"}


def send(response: Response[Any], request: CallRequest = REQUEST) -> Response[Any]:
    """Send a request through the middleware to a transport that returns `response`."""
    send_flow = chain([ResponsePolicy(JsonCodec(), LIMIT)])
    return Driver(script(response), Time()).run(send_flow(request))


def error_of(
    status: int, *body: Step | str, headers: Mapping[str, str] = JSON
) -> api_errors.APIError:
    """Return the error for a response, and check that the response was released."""
    recorded = tape(*(step.encode() if isinstance(step, str) else step for step in body))
    response = response_from(recorded, status=status, headers=headers)

    with pytest.raises(api_errors.APIError) as caught:
        send(response)

    error = caught.value
    assert recorded.releases
    assert error.status_code == status
    assert error.headers is response.headers
    assert error.raw_response is response.raw_response
    assert str(error) == f"{status}: {error.message}"
    return error


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_body_of_a_2xx_response_is_read_unless_it_is_streaming(status: int) -> None:
    recorded = tape(b"some ", b"bytes")
    response = response_from(recorded, status=status, headers=SSE)

    assert send(response, evolve(REQUEST, stream=True)) is response
    assert recorded.reads == recorded.releases == 0
    complete = send(response)
    assert complete.body == b"some bytes"
    assert evolve(complete, body=response.body) == response
    assert recorded.releases


def test_body_that_is_no_event_stream_is_read_although_a_stream_was_requested() -> None:
    recorded = tape(b"<html>", b"</html>")
    response = response_from(recorded, headers=HTML)

    assert send(response, evolve(REQUEST, stream=True)).body == b"<html></html>"
    assert recorded.releases


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (100, api_errors.APIError),
        (199, api_errors.APIError),
        (304, api_errors.APIError),
        (307, api_errors.APIError),
        (400, api_errors.BadRequestError),
        (401, api_errors.AuthenticationError),
        (403, api_errors.PermissionDeniedError),
        (404, api_errors.NotFoundError),
        (405, api_errors.APIError),
        (409, api_errors.ConflictError),
        (418, api_errors.APIError),
        (422, api_errors.HTTPValidationError),
        (429, api_errors.RateLimitError),
        (500, api_errors.ServerError),
        (599, api_errors.ServerError),
    ],
)
def test_status_becomes_its_error_with_the_text_of_the_server(
    status: int, kind: type[api_errors.APIError]
) -> None:
    error = error_of(status, '{"detail": "Agent ', 'not found"}')

    assert type(error) is kind
    assert error.message == "Agent not found"
    assert error.body == '{"detail": "Agent not found"}'
    if isinstance(error, api_errors.HTTPValidationError):
        assert error.data.detail == ()


def test_unknown_route_is_explained() -> None:
    error = error_of(404, '{"detail":"Not Found"}')

    assert error.message.startswith("Not Found: the route does not exist; server_url must be")


DETAIL: list[dict[str, Any]] = [
    {
        "type": "string_too_long",
        "loc": ["body", "title"],
        "msg": "String should have at most 200 characters",
        "input": "x",
        "ctx": {"max_length": 200},
    },
    {"type": "missing", "loc": ["body", 0, "agent_id"], "msg": "Field required", "input": {}},
]


def error_of_422(body: str) -> api_errors.HTTPValidationError:
    error = error_of(422, body)
    assert isinstance(error, api_errors.HTTPValidationError)
    return error


def test_422_with_a_list_has_each_problem() -> None:
    error = error_of_422(json.dumps({"detail": DETAIL}))

    assert error.data.detail == (
        api_errors.ValidationError(
            loc=("body", "title"),
            msg="String should have at most 200 characters",
            type="string_too_long",
            input="x",
            ctx={"max_length": 200},
        ),
        api_errors.ValidationError(
            loc=("body", 0, "agent_id"), msg="Field required", type="missing", input={}
        ),
    )
    assert error.message == (
        "body.title: String should have at most 200 characters; body.0.agent_id: Field required"
    )
    assert error_of(400, error.body).message == error.message


@pytest.mark.parametrize(
    "body",
    [
        *("{}", "[]", "null", '"detail"', "NaN", "1"),
        *('{"detail": null}', '{"detail": ""}', '{"detail": {}}', '{"detail": []}'),
        *('{"detail": {"msg": "x"}}', '{"detail": 7}', '{"detail": [7]}'),
        *('{"detail": ["x"]}', '{"detail": [{"msg": "x"}]}', '{"detail": [{"loc": 1}]}'),
        *('{"error": "x"}', '{"detail"', "", "\x00", "[" * 50_000),
    ],
)
def test_json_without_a_detail_gives_the_name_of_the_status(body: str) -> None:
    error = error_of_422(body)

    assert error.message.startswith("Unprocessable")
    assert error.body == body
    assert error.data.detail == ()


@pytest.mark.parametrize(
    ("body", "headers", "message", "full_body"),
    [
        (b"Server Error\n", TEXT, "Server Error", "Server Error\n"),
        (b"Server Error", {"Content-Type": "Text/Plain"}, "Server Error", "Server Error"),
        (b"x" * 10_000, TEXT, "x" * 500, "x" * 10_000),
        (b"\xff\xfe", TEXT, "\ufffd\ufffd", "\ufffd\ufffd"),
        (b"\n" * 500 + b"Busy", TEXT, "Busy", "\n" * 500 + "Busy"),
    ],
)
def test_plain_text_body_is_the_message(
    body: bytes, headers: dict[str, str], message: str, full_body: str
) -> None:
    error = error_of(500, body, headers=headers)

    assert (error.message, error.body) == (message, full_body)


@pytest.mark.parametrize(
    ("status", "name"), [(404, "Not Found"), (504, "Gateway Timeout"), (599, "unknown status")]
)
@pytest.mark.parametrize(
    ("body", "headers"),
    [("<html><h1>nginx</h1></html>", HTML), ("", HTML), (" \n", TEXT), ("", JSON), ("x", {})],
)
def test_html_and_empty_bodies_give_the_name_of_the_status(
    status: int, name: str, body: str, headers: dict[str, str]
) -> None:
    error = error_of(status, body, headers=headers)

    assert error.message == name
    assert error.body == body


def test_unreadable_body_of_a_2xx_response_is_an_error() -> None:
    recorded = tape(b"half", errors.ConnectionInterrupted("reset"))

    with pytest.raises(errors.ConnectionInterrupted):
        send(response_from(recorded))

    assert recorded.releases


def test_unreadable_body_of_an_error_gives_the_name_of_the_status() -> None:
    for steps in (
        (b'{"detail": "ov', errors.ConnectionInterrupted("reset")),
        (b"x" * LIMIT, b"x", b""),
    ):
        error = error_of(503, *steps)

        assert (error.message, error.body) == ("Service Unavailable", "")
        assert error.__cause__ is None


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, GeneratorExit])
def test_keyboard_interrupt_while_reading_an_error_body_is_raised(
    interruption: type[BaseException],
) -> None:
    recorded = tape(interruption())

    with pytest.raises(interruption):
        send(response_from(recorded, status=500))

    assert recorded.releases


def test_middleware_of_the_user_sees_the_response_of_a_server() -> None:
    seen: list[tuple[int, str | None]] = []

    def record(request: CallRequest, forward: SendFlow) -> Flow[Response[Any]]:
        headers = request.headers.merge(Headers((("x-team", "weather"),)))
        response = yield from forward(evolve(request, headers=headers))
        seen.append((response.status_code, response.headers.get("x-served-by")))
        return response

    agents = http_response(b'{"data": []}', headers=[*JSON.items(), ("x-served-by", "node-1")])
    with ByteServer(agents) as server, Flux0(server.url, middleware=[record]) as client:
        assert list(client.agents.list()) == []
    assert [each.target for each in server.requests] == ["/api/agents"]
    assert server.requests[0].headers["x-team"] == "weather"
    assert seen == [(200, "node-1")]
