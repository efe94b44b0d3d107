"""Headers: the mapping, the checks of names and values, redaction, and computed headers."""

from __future__ import annotations

from collections.abc import Callable, Generator
from itertools import count
from typing import Any

import anyio
import pytest
from attrs import evolve

from flux0 import Flux0, RetryConfig
from flux0.domain.errors import ConnectError, InvalidArgument
from flux0.domain.headers import Headers
from flux0.domain.retrying import BackoffStrategy
from flux0.flows import CallRequest, chain
from flux0.middleware.headers import compute_headers
from flux0.testing import FakeTransport
from support.driving import Time, drive_sync
from support.in_memory import in_both_loops, in_every_mode, script, scripted_response
from support.modes import in_mode
from support.transports import Mode

FIELDS = Headers((("Content-Type", "text/plain"), ("Set-Cookie", "a=1"), ("set-cookie", "b=2")))


def test_header_names_are_case_insensitive() -> None:
    assert FIELDS["content-type"] == FIELDS["CONTENT-TYPE"] == "text/plain"
    assert "CONTENT-type" in FIELDS
    assert "content" not in FIELDS
    assert list(filter(FIELDS.__contains__, [1, None, "set-cookie"])) == ["set-cookie"]
    assert FIELDS.get("accept", "none") == "none"
    with pytest.raises(KeyError):
        FIELDS["accept"]


def test_repeated_fields_are_joined_and_available_separately() -> None:
    assert dict(FIELDS) == {"content-type": "text/plain", "set-cookie": "a=1, b=2"}
    assert list(FIELDS) == ["content-type", "set-cookie"]
    assert len(FIELDS) == 2
    assert not Headers()
    assert FIELDS.get_all("SET-COOKIE") == ("a=1", "b=2")
    assert FIELDS.get_all("accept") == ()


def test_equal_fields_are_equal_and_hashable() -> None:
    assert Headers((("A", "1"),)) == Headers((("A", "1"),))
    assert Headers((("A", "1"),)) != Headers((("A", "2"),))
    assert len({Headers((("A", "1"),)), Headers((("A", "1"),))}) == 1


def test_merge_replaces_all_fields_with_the_same_name() -> None:
    fields = (("SET-COOKIE", "c=3"), ("accept", "*/*"))

    assert FIELDS.merge(Headers(fields)).pairs == (("Content-Type", "text/plain"), *fields)
    assert FIELDS.merge(Headers()) == FIELDS
    assert Headers().merge(FIELDS) == FIELDS


def test_merge_replaces_only_the_cookies_with_the_same_name() -> None:
    own = Headers((("Cookie", "a=1; b=2;"), ("accept", "*/*")))
    merged = ("accept", "*/*"), ("x", "y"), ("cookie", "a=1; b=3; c=4")

    for name in ("cookie", "Cookie"):
        assert own.merge(Headers(((name, "b=3; c=4"), ("x", "y")))).pairs == merged


@pytest.mark.parametrize(
    "name",
    [
        *("Authorization", "Proxy-Authorization", "Cookie", "Set-Cookie", "X-Api-Key", "Location"),
        *("X-Auth-Token", "WWW-Authenticate", "X-Whatever"),
    ],
)
def test_values_that_may_be_credentials_are_hidden(name: str) -> None:
    headers = Headers((("Content-Type", "text/plain"), (name, "secret")))

    assert headers.redacted() == {"content-type": "text/plain", name.lower(): "***"}
    assert "secret" not in repr(headers)
    assert "secret" not in str(headers)
    assert "text/plain" in repr(headers)
    assert headers[name] == "secret"


# --- computed headers

REQUEST = CallRequest("GET", "http://h/", Headers((("Accept", "a/b"), ("X-Own", "kept"))))


def sent(values: dict[str, Callable[[], Any]], request: CallRequest = REQUEST) -> CallRequest:
    """Send a request with computed headers, and return the request that the transport received."""
    transport = script(scripted_response())
    request = evolve(request, header_functions=values)
    drive_sync(chain([compute_headers])(request), transport, Time())
    return transport.requests[0]


def test_computed_headers_are_added_to_the_request() -> None:
    request = evolve(REQUEST, method="POST", body=b"{}", stream=True, operation="o", attempt=2)

    changed = sent({"Authorization": lambda: "Bearer 1", "x-empty": lambda: ""}, request)

    assert dict(changed.headers) == {
        "accept": "a/b",
        "x-own": "kept",
        "authorization": "Bearer 1",
        "x-empty": "",
    }
    assert evolve(changed, headers=request.headers) == request


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\x00", " a", "€", None, 7, b"a", ["a"]])
def test_invalid_computed_header_value_is_rejected(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="'x-computed'") as caught:
        sent({"x-computed": lambda: value})

    assert caught.value.argument == "headers"


# --- headers of a client


def test_headers_of_a_call_override_fixed_and_computed_headers() -> None:
    transport = script(*(scripted_response(b'{"data": []}') for _ in range(2)))
    headers: dict[str, str | Callable[[], str]] = {
        "x-tenant": "acme",
        "x-kept": "kept",
        "authorization": lambda: "Bearer 1",
    }

    with Flux0(transport=transport, headers=headers) as flux0:
        flux0.agents.list()
        flux0.agents.list(http_headers={"X-Tenant": "other", "Authorization": "Basic 2"})

    names = ("x-tenant", "authorization", "x-kept", "accept")
    assert [[sent.headers[name] for name in names] for sent in transport.requests] == [
        ["acme", "Bearer 1", "kept", "application/json"],
        ["other", "Basic 2", "kept", "application/json"],
    ]


@in_every_mode
async def test_computed_header_is_computed_for_each_attempt(mode: Mode) -> None:
    numbers = count(1)
    transport = script(
        ConnectError("no"), scripted_response(status=503), scripted_response(b'{"data": []}')
    )
    headers = {"authorization": lambda: f"Bearer {next(numbers)}"}
    at_once = RetryConfig(backoff=BackoffStrategy(initial_interval=0))

    client = Flux0(transport=transport, headers=headers, retry_config=at_once)
    async with in_mode(mode, client) as flux0:
        await flux0.agents.list_async()

    sent = [request.headers["authorization"] for request in transport.requests]
    assert sent == ["Bearer 1", "Bearer 2", "Bearer 3"]


@pytest.mark.parametrize("value", ["mine/1", lambda: "mine/1"])
def test_user_agent_can_be_replaced(value: str | Callable[[], str]) -> None:
    transport = script(scripted_response(b'{"data": []}'))

    with Flux0(transport=transport, headers={"User-Agent": value}) as flux0:
        flux0.agents.list()

    assert transport.requests[0].headers.get_all("user-agent") == ("mine/1",)


@pytest.mark.parametrize(
    "headers", [{"a b": lambda: "x"}, {1: lambda: "x"}, {"a": 1}, [("a", "x")]]
)
def test_client_rejects_invalid_headers(headers: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Flux0(headers=headers)

    assert caught.value.argument == "headers"


class Token:
    def __await__(self) -> Generator[Any, Any, str]:
        yield from anyio.lowlevel.checkpoint().__await__()
        return "Bearer t"


async def token() -> str:
    return await Token()


@in_both_loops
async def test_async_header_function_works_only_in_async_calls(mode: Mode) -> None:
    for compute in (token, Token):
        fake = FakeTransport()
        async with Flux0(transport=fake, headers={"authorization": compute}) as flux0:
            await flux0.agents.list_async()
            problem = r"headers\['authorization'\].* is async: call the _async method"
            with pytest.raises(InvalidArgument, match=problem):
                flux0.agents.list()

        assert [call.headers["authorization"] for call in fake.calls] == ["Bearer t"]
