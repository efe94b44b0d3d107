"""Errors: their family, their words, and that each survives pickling and copying."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flux0 import models
from flux0.domain import errors
from flux0.domain.headers import Headers

DETAIL = errors.HTTPValidationErrorData(
    (errors.ValidationError(("body", 0), "too short", "short", input="x"),)
)


def family(kind: type[errors.Flux0Error]) -> Iterator[type[errors.Flux0Error]]:
    yield kind
    for child in kind.__subclasses__():
        yield from family(child)


KINDS = sorted(
    {kind for kind in family(errors.Flux0Error) if kind.__module__ in ("flux0", errors.__name__)},
    key=lambda kind: kind.__name__,
)


FACTS: dict[str, Any] = {
    "status_code": 422,
    "body": "the body",
    "headers": Headers((("Retry-After", "3"),)),
    "raw_response": object(),
}

# The nearest class here makes an error of each kind.
MAKERS: dict[type[errors.Flux0Error], Callable[[Any], Any]] = {
    errors.APIError: lambda kind: kind("words", **FACTS),
    errors.HTTPValidationError: lambda kind: kind("words", data=DETAIL, **FACTS),
    errors.StreamError: lambda kind: kind("words"),
    errors.EventTooLarge: lambda kind: kind(16),
    errors.DecodeError: lambda kind: kind("words", field="data[0].id", body="{"),
    errors.ResponseTooLarge: lambda kind: kind(16),
    errors.InvalidArgument: lambda kind: kind("agent_id", "must not be empty"),
    errors.AgentNotFound: lambda kind: kind("type 'x'", ()),
    errors.Flux0Error: lambda kind: kind("words"),
}


def make(kind: type[errors.Flux0Error]) -> Any:
    """Return an error of any kind with a value in each of its attributes."""
    return next(MAKERS[base](kind) for base in kind.__mro__ if base in MAKERS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_in_models_and_can_be_pickled_and_copied(
    kind: type[errors.Flux0Error],
) -> None:
    error = make(kind)
    error.attempts = 2
    error.__notes__ = ["a note"]  # As add_note does.
    pickled = [pickle.dumps(error, number) for number in range(pickle.HIGHEST_PROTOCOL + 1)]

    assert getattr(models, kind.__name__) is kind
    copies = [pickle.loads(data) for data in pickled]  # noqa: S301 - our own
    for again in (*copies, copy.copy(error), copy.deepcopy(error)):
        assert type(again) is type(error)
        assert again.args == error.args
        assert str(again) == str(error) != ""
        assert repr(again) == repr(error)
        facts = set(vars(error)) - {"raw_response"}
        assert {name: getattr(again, name) for name in facts} == {
            name: getattr(error, name) for name in facts
        }
        if isinstance(error, errors.APIError):
            assert error.raw_response is not None
            assert vars(again)["raw_response"] is None  # It holds sockets and locks.


class OfAUser(errors.Flux0Error):
    def __init__(self, code: int, hint: str) -> None:
        super().__init__(f"{code}: {hint}")
        self.code = code


def test_error_subclass_of_the_user_can_be_pickled() -> None:
    again = pickle.loads(pickle.dumps(OfAUser(7, "seven")))  # noqa: S301 - our own

    assert (str(again), again.code) == ("7: seven", 7)
    missing = pickle.loads(pickle.dumps(errors.MissingDependency("needs requests")))  # noqa: S301 - our own
    assert missing.msg == "needs requests"


PARENTS: dict[type[errors.Flux0Error], tuple[type[Exception], ...]] = {
    errors.InvalidArgument: (ValueError,),
    errors.ClientClosed: (RuntimeError,),
    errors.MissingDependency: (ImportError,),
    errors.ConnectTimeout: (errors.ConnectError, errors.TransportTimeout, errors.TransportError),
    errors.PoolTimeout: (errors.ConnectError, errors.TransportTimeout),
    errors.ReadTimeout: (errors.TransportTimeout,),
    errors.WriteTimeout: (errors.TransportTimeout,),
    errors.TLSError: (errors.ConnectError,),
    errors.HTTPValidationError: (errors.APIError,),
    errors.StreamInterrupted: (errors.StreamError,),
    errors.StreamIdleTimeout: (errors.StreamError,),
    errors.EventTooLarge: (errors.StreamError,),
}


def test_base_classes_of_errors() -> None:
    for kind, parents in PARENTS.items():
        assert all(issubclass(kind, parent) for parent in (*parents, errors.Flux0Error)), kind
    # What may have reached the server is no ConnectError.
    for kind in (
        errors.ReadTimeout,
        errors.WriteTimeout,
        errors.ConnectionInterrupted,
        errors.ProtocolError,
    ):
        assert not issubclass(kind, errors.ConnectError)


BODY_TOO_LARGE = "the response body is larger than 65,536 bytes (max_body_bytes)"
EVENT_TOO_LARGE = "an event of the stream is larger than 65,536 bytes (max_event_bytes)"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (make(errors.NotFoundError), "422: words"),
        (make(errors.InvalidArgument), "agent_id must not be empty"),
        (make(errors.DecodeError), "data[0].id: words in '{'"),
        (errors.DecodeError("words"), "words"),
        (errors.ResponseTooLarge(65536), BODY_TOO_LARGE),
        (errors.EventTooLarge(65536), EVENT_TOO_LARGE),
        (errors.StreamInterrupted("words"), "words"),
    ],
)
def test_message_of_an_error(error: errors.Flux0Error, text: str) -> None:
    assert str(error) == text


def test_message_of_an_error_names_the_request_and_the_attempts() -> None:
    error = errors.ConnectError("refused")
    assert (str(error), error.attempts) == ("refused", 1)

    error.attach_request("agents.list", "GET", "http://h:1/api/agents")
    error.attach_request("another", "POST", "http://other")
    error.attempts = 3

    assert str(error) == "GET http://h:1/api/agents: refused (3 attempts)"
    assert (error.operation, error.method) == ("agents.list", "GET")


def test_validation_error_without_details_has_an_empty_list() -> None:
    error = errors.HTTPValidationError("words", status_code=422, body="", headers=Headers())

    assert error.data.detail == ()
    assert error.raw_response is None


def test_stored_events_cannot_be_listed_after_unpickling() -> None:
    error = errors.StreamInterrupted("words")
    assert (error.correlation_id, error.event_count) == (None, 0)
    error.correlation_id = "c"
    error.attach_stream((), lambda: "stored")
    assert error.stored_events() == "stored"

    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own

    assert again.correlation_id == "c"
    with pytest.raises(errors.Flux0Error, match="cannot list the stored events"):
        again.stored_events()
