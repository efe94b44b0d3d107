"""Errors: their family, their words, and that each survives pickling and copying."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flux0 import models
from flux0.domain import errors
from flux0.domain.errors import (
    AgentNotFound,
    APIError,
    AuthenticationError,
    BadRequestError,
    ClientClosed,
    ConflictError,
    ConnectError,
    ConnectTimeout,
    DecodeError,
    EventTooLarge,
    Flux0Error,
    HTTPValidationError,
    HTTPValidationErrorData,
    InvalidArgument,
    MissingDependency,
    NotFoundError,
    PermissionDeniedError,
    PoolTimeout,
    RateLimitError,
    ReadTimeout,
    ResponseTooLarge,
    ServerError,
    StreamError,
    StreamIdleTimeout,
    StreamInterrupted,
    TLSError,
    TransportError,
    TransportTimeout,
    ValidationError,
    WriteTimeout,
    api_error_class,
)
from flux0.domain.headers import Headers

DETAIL = HTTPValidationErrorData((ValidationError(("body", 0), "too short", "short", input="x"),))


def family(kind: type[Flux0Error]) -> Iterator[type[Flux0Error]]:
    yield kind
    for child in kind.__subclasses__():
        yield from family(child)


KINDS = sorted(
    {kind for kind in family(Flux0Error) if kind.__module__ in ("flux0", errors.__name__)},
    key=lambda kind: kind.__name__,
)


FACTS: dict[str, Any] = {
    "status_code": 422,
    "body": "the body",
    "headers": Headers((("Retry-After", "3"),)),
    "raw_response": object(),
}

# The nearest class here makes an error of each kind.
MAKERS: dict[type[Flux0Error], Callable[[Any], Any]] = {
    APIError: lambda kind: kind("words", **FACTS),
    HTTPValidationError: lambda kind: kind("words", data=DETAIL, **FACTS),
    StreamError: lambda kind: kind("words"),
    EventTooLarge: lambda kind: kind(16),
    DecodeError: lambda kind: kind("words", field="data[0].id", body="{"),
    ResponseTooLarge: lambda kind: kind(16),
    InvalidArgument: lambda kind: kind("agent_id", "must not be empty"),
    AgentNotFound: lambda kind: kind("type 'x'", ()),
    Flux0Error: lambda kind: kind("words"),
}


def make(kind: type[Flux0Error]) -> Any:
    """Return an error of any kind with a value in each of its attributes."""
    return next(MAKERS[base](kind) for base in kind.__mro__ if base in MAKERS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_among_the_models(kind: type[Flux0Error]) -> None:
    assert getattr(models, kind.__name__) is kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_error_pickles(kind: type[Flux0Error], protocol: int) -> None:
    error = make(kind)
    error.attempts = 2

    again = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 - our own

    check_same(error, again)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_every_error_can_be_copied(kind: type[Flux0Error], duplicate: Any) -> None:
    error = make(kind)

    check_same(error, duplicate(error))


def check_same(error: Flux0Error, again: Any) -> None:
    assert type(again) is type(error)
    assert again.args == error.args
    assert str(again) == str(error) != ""
    assert repr(again) == repr(error)
    facts = set(vars(error)) - {"raw_response"}
    assert {name: getattr(again, name) for name in facts} == {
        name: getattr(error, name) for name in facts
    }
    if isinstance(error, APIError):
        assert error.raw_response is not None
        assert vars(again)["raw_response"] is None  # It holds sockets and locks.


def test_an_error_that_was_raised_and_noted_pickles() -> None:
    with pytest.raises(ConnectError) as caught:
        raise ConnectError("refused") from OSError(111, "refused")
    caught.value.__notes__ = ["a note"]  # type: ignore[attr-defined]  # as add_note does

    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own

    assert str(again) == "refused"
    assert again.__notes__ == ["a note"]


def test_an_import_error_keeps_its_message_attribute() -> None:
    again = pickle.loads(pickle.dumps(MissingDependency("needs requests")))  # noqa: S301 - our own

    assert again.msg == "needs requests"


class OfAUser(Flux0Error):
    def __init__(self, code: int, hint: str) -> None:
        super().__init__(f"{code}: {hint}")
        self.code = code


def test_an_error_of_a_user_s_own_pickles_as_well() -> None:
    again = pickle.loads(pickle.dumps(OfAUser(7, "seven")))  # noqa: S301 - our own

    assert (str(again), again.code) == ("7: seven", 7)


@pytest.mark.parametrize(
    ("kind", "parents"),
    [
        (InvalidArgument, (ValueError,)),
        (ClientClosed, (RuntimeError,)),
        (MissingDependency, (ImportError,)),
        (ConnectTimeout, (ConnectError, TransportTimeout, TransportError)),
        (PoolTimeout, (ConnectError, TransportTimeout)),
        (ReadTimeout, (TransportTimeout,)),
        (WriteTimeout, (TransportTimeout,)),
        (TLSError, (ConnectError,)),
        (HTTPValidationError, (APIError,)),
        (StreamInterrupted, (StreamError,)),
        (StreamIdleTimeout, (StreamError,)),
        (EventTooLarge, (StreamError,)),
    ],
)
def test_errors_can_be_caught_by_what_they_are(
    kind: type[Flux0Error], parents: tuple[type[Exception], ...]
) -> None:
    assert issubclass(kind, (Flux0Error,))
    assert all(issubclass(kind, parent) for parent in parents)


def test_what_may_have_reached_the_server_is_no_connect_error() -> None:
    unsure = [ReadTimeout, WriteTimeout, errors.ConnectionInterrupted, errors.ProtocolError]

    assert not any(issubclass(kind, ConnectError) for kind in unsure)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (300, APIError),
        (307, APIError),
        (400, BadRequestError),
        (401, AuthenticationError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (405, APIError),
        (409, ConflictError),
        (418, APIError),
        (422, HTTPValidationError),
        (429, RateLimitError),
        (499, APIError),
        (500, ServerError),
        (503, ServerError),
        (599, ServerError),
    ],
)
def test_each_status_has_its_class(status: int, kind: type[APIError]) -> None:
    assert api_error_class(status) is kind


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (make(NotFoundError), "422: words"),
        (make(InvalidArgument), "agent_id must not be empty"),
        (make(DecodeError), "data[0].id: words in '{'"),
        (DecodeError("words"), "words"),
        (ResponseTooLarge(65536), "the response's body is larger than 65,536 bytes"),
        (EventTooLarge(65536), "an event of the stream is larger than 65,536 bytes"),
        (StreamInterrupted("words"), "words"),
    ],
)
def test_an_error_says_what_happened(error: Flux0Error, text: str) -> None:
    assert str(error) == text


def test_an_error_says_how_often_the_request_was_tried() -> None:
    error = ConnectError("refused")
    assert error.attempts == 1

    error.attempts = 3

    assert str(error) == "refused (3 attempts)"


def test_an_error_says_what_was_called() -> None:
    error = ConnectError("refused")

    error.concern("agents.list", "GET", "http://h:1/api/agents")
    error.concern("another", "POST", "http://other")
    error.attempts = 3

    assert str(error) == "GET http://h:1/api/agents: refused (3 attempts)"
    assert (error.operation, error.method) == ("agents.list", "GET")


def test_a_validation_error_without_details_has_an_empty_list_of_them() -> None:
    error = HTTPValidationError("words", status_code=422, body="", headers=Headers())

    assert error.data.detail == ()
    assert error.raw_response is None


def test_a_stream_error_may_know_nothing() -> None:
    assert (StreamError("x").correlation_id, StreamError("x").event_count) == (None, 0)


def test_what_a_stream_offers_with_an_error_is_lost_where_the_stream_is() -> None:
    error = StreamInterrupted("words")
    error.correlation_id = "c"
    error.offer((), lambda: "stored")
    assert error.stored_events() == "stored"

    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own

    assert again.correlation_id == "c"
    with pytest.raises(Flux0Error, match="does not know the stream"):
        again.stored_events()
