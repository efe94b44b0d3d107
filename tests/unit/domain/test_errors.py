"""Errors: base classes, messages, pickling and copying."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import pytest

from flux0 import models
from flux0.domain import api_errors, background_errors, errors
from flux0.domain.headers import Headers

E = TypeVar("E", bound=BaseException)

DETAIL = api_errors.HTTPValidationErrorData(
    (api_errors.ValidationError(("body", 0), "too short", "short", input="x"),)
)


def with_subclasses(kind: type[errors.Flux0Error]) -> Iterator[type[errors.Flux0Error]]:
    yield kind
    for child in kind.__subclasses__():
        yield from with_subclasses(child)


KINDS = sorted(
    {
        kind
        for kind in with_subclasses(errors.Flux0Error)
        if kind.__module__ in ("flux0", errors.__name__, api_errors.__name__)
    },
    key=lambda kind: kind.__name__,
)


API_ERROR: dict[str, Any] = {
    "status_code": 422,
    "body": "the body",
    "headers": Headers((("Retry-After", "3"),)),
    "raw_response": object(),
}


def validation_error() -> api_errors.HTTPValidationError:
    error = api_errors.HTTPValidationError("problem", **API_ERROR)
    error.data = DETAIL
    return error


# Functions that create errors. For a class that is not listed, use the entry of its base class.
FACTORIES: dict[type[errors.Flux0Error], Callable[[Any], Any]] = {
    api_errors.APIError: lambda kind: kind("problem", **API_ERROR),
    api_errors.HTTPValidationError: lambda _: validation_error(),
    errors.StreamError: lambda kind: kind("problem"),
    errors.EventTooLarge: lambda kind: kind(16),
    background_errors.TurnTooLarge: lambda kind: kind(16),
    errors.DecodeError: lambda kind: kind("problem", field="data[0].id", body="{"),
    errors.ResponseTooLarge: lambda kind: kind(16),
    errors.InvalidArgument: lambda kind: kind("agent_id", "must not be empty"),
    errors.AgentNotFound: lambda kind: kind("type 'x'", ()),
    errors.StreamInUse: lambda kind: kind(),
    errors.Flux0Error: lambda kind: kind("problem"),
}


def make(kind: type[errors.Flux0Error]) -> Any:
    """Return an error of this class with a value in each of its attributes."""
    return next(FACTORIES[base](kind) for base in kind.__mro__ if base in FACTORIES)


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_in_models_and_can_be_pickled_and_copied(
    kind: type[errors.Flux0Error],
) -> None:
    error = make(kind)
    error.attempts = 2
    error.sent, error.from_user_code = "yes", True
    error.__notes__ = ["a note"]  # As `add_note` does, which needs Python 3.11.
    pickled = [pickle.dumps(error, number) for number in range(pickle.HIGHEST_PROTOCOL + 1)]

    assert getattr(models, kind.__name__) is kind
    copies = [pickle.loads(data) for data in pickled]  # noqa: S301 - pickled above
    for copied in (*copies, copy.copy(error), copy.deepcopy(error)):
        assert type(copied) is type(error)
        assert copied.args == error.args
        assert str(copied) == str(error) != ""
        assert repr(copied) == repr(error)
        names = set(vars(error)) - {"raw_response"}
        assert {name: getattr(copied, name) for name in names} == {
            name: getattr(error, name) for name in names
        }
        if isinstance(error, api_errors.APIError):
            assert error.raw_response is not None
            # A raw response cannot be pickled, because it contains sockets and locks.
            assert copied.raw_response is None


@pytest.mark.parametrize(("sent", "value"), [(False, "no"), (True, "maybe")])
def test_sent_of_an_error_of_user_code_describes_the_current_call(
    sent: bool, value: errors.Sent
) -> None:
    for error in (errors.ConnectError("of another call"), errors.ConnectionInterrupted("reset")):
        errors.mark_user_error(error, sent=sent)
        assert (error.from_user_code, error.sent) == (True, value)


def raised(error: E, cause: BaseException | None = None) -> E:
    with suppress(type(error)):
        raise error from cause
    return error


def test_tracebacks_of_an_error_and_of_all_earlier_errors_are_dropped() -> None:
    cause = raised(OSError("the cause"))
    context = raised(KeyError("the context"), cause)
    error = raised(errors.StreamInterrupted("reset"))
    error.__context__ = context
    # An error with a cause does not need its context, which tracebacks do not show.
    context.__context__ = raised(ValueError("hidden"))
    assert all(each.__traceback__ for each in (cause, context, error))

    errors.drop_tracebacks(error)

    assert [each.__traceback__ for each in (cause, context, error)] == [None] * 3
    assert [each.__context__ for each in (error, context)] == [context, None]
    assert context.__cause__ == cause


def test_tracebacks_of_errors_that_cause_each_other_are_dropped() -> None:
    first, second = raised(KeyError("first")), raised(OSError("second"))
    for cause in (first, second):
        first.__cause__, second.__cause__ = cause, first
        errors.drop_tracebacks(first)
        assert (first.__traceback__, cause.__traceback__) == (None, None)


def test_fresh_copy_has_the_cause_but_no_traceback() -> None:
    error = raised(errors.StreamInterrupted("reset"), OSError("the cause"))
    error.event_count = 3

    copied = errors.fresh(error)

    assert (copied.problem, copied.event_count, copied.__traceback__) == ("reset", 3, None)
    assert copied.__cause__ is error.__cause__ is not None


def test_decode_error_has_the_start_of_the_body() -> None:
    assert errors.DecodeError("problem", body="x" * 201).body == "x" * 200


class UserError(errors.Flux0Error):
    def __init__(self, code: int, hint: str) -> None:
        super().__init__(f"{code}: {hint}")
        self.code = code


def test_error_subclass_of_the_user_can_be_pickled() -> None:
    copied = pickle.loads(pickle.dumps(UserError(7, "seven")))  # noqa: S301 - pickled above

    assert (str(copied), copied.code) == ("7: seven", 7)
    missing = pickle.loads(pickle.dumps(errors.MissingDependency("needs requests")))  # noqa: S301 - pickled above
    assert missing.msg == "needs requests"


PARENTS: dict[type[errors.Flux0Error], tuple[type[Exception], ...]] = {
    errors.InvalidArgument: (ValueError,),
    errors.ClientClosed: (RuntimeError,),
    errors.StreamInUse: (RuntimeError,),
    errors.MissingDependency: (ImportError,),
    errors.ConnectTimeout: (errors.ConnectError, errors.TransportTimeout, errors.TransportError),
    errors.PoolTimeout: (errors.ConnectError, errors.TransportTimeout),
    errors.ReadTimeout: (errors.TransportTimeout,),
    errors.WriteTimeout: (errors.TransportTimeout,),
    errors.TLSError: (errors.ConnectError,),
    api_errors.HTTPValidationError: (api_errors.APIError,),
    errors.StreamInterrupted: (errors.StreamError,),
    errors.StreamIdleTimeout: (errors.StreamError,),
    errors.EventTooLarge: (errors.StreamError,),
}


def test_base_classes_catch_their_errors() -> None:
    for kind, parents in PARENTS.items():
        assert all(issubclass(kind, parent) for parent in (*parents, errors.Flux0Error)), kind
    # A ConnectError means that the request was not sent. With these errors, it may have been sent.
    for kind in (
        errors.ReadTimeout,
        errors.WriteTimeout,
        errors.ConnectionInterrupted,
        errors.ProtocolError,
    ):
        assert not issubclass(kind, errors.ConnectError)


BODY_TOO_LARGE = "the response body is larger than 65,536 bytes (max_body_bytes)"
EVENT_TOO_LARGE = "an event of the stream is larger than 65,536 bytes (max_event_bytes)"
TURN_TOO_LARGE = (
    "the first events of the turn were dropped: the turn is larger than 65,536 bytes "
    "(max_turn_bytes)"
)
LONG_BODY = '{"token": "secret", "id": "' + 200 * "x" + '"}'
NO_AGENT = (
    "the server has no agent; existing agents: none; create one with "
    "agents.create(name=..., type_=...)"
)
SHOWN_BODY = '{"token": "***", "id": "' + 176 * "x"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (make(api_errors.NotFoundError), "422: problem"),
        (make(errors.InvalidArgument), "agent_id must not be empty"),
        (make(errors.DecodeError), "data[0].id: problem in '{'"),
        (errors.DecodeError("problem"), "problem"),
        (errors.DecodeError("problem", body='{"id": "\\u00e9"}'), """problem in '{"id": "é"}'"""),
        (errors.DecodeError("problem", body=LONG_BODY), f"problem in {SHOWN_BODY!r}"),
        (errors.ResponseTooLarge(65536), BODY_TOO_LARGE),
        (errors.EventTooLarge(65536), EVENT_TOO_LARGE),
        (background_errors.TurnTooLarge(65536), TURN_TOO_LARGE),
        (errors.StreamInterrupted("problem"), "problem"),
        (errors.AgentNotFound("", ()), NO_AGENT),
    ],
)
def test_error_has_its_message(error: errors.Flux0Error, text: str) -> None:
    assert str(error) == text


def test_message_of_an_error_names_the_request_and_the_attempts() -> None:
    error = errors.ConnectError("refused")
    assert (str(error), error.attempts) == ("refused", 1)

    error.attach_request("agents.list", "GET", "http://h:1/api/agents")
    error.attach_request("another", "POST", "http://other")
    error.attempts = 3

    assert str(error) == "GET http://h:1/api/agents: refused (3 attempts)"
    assert (error.operation, error.method) == ("agents.list", "GET")


def test_message_of_an_error_is_one_line() -> None:
    error = errors.ConnectError("refused\nGET http://h returned 200\x1b[2J")
    assert error.problem == str(error) == "refused\\nGET http://h returned 200\\x1b[2J"


def test_validation_error_without_details_has_an_empty_list() -> None:
    error = api_errors.HTTPValidationError("problem", status_code=422, body="", headers=Headers())

    assert error.data.detail == ()
    assert error.raw_response is None


def test_stored_events_cannot_be_listed_after_unpickling() -> None:
    error = errors.StreamInterrupted("problem")
    assert (error.correlation_id, error.event_count) == (None, 0)
    error.correlation_id = "c"
    error.attach_stream((), lambda: "stored")
    assert error.stored_events() == "stored"

    copied = pickle.loads(pickle.dumps(error))  # noqa: S301 - pickled above

    assert copied.correlation_id == "c"
    with pytest.raises(errors.Flux0Error, match="cannot list the stored events"):
        copied.stored_events()


def test_status_shows_whether_the_server_accepted_the_request() -> None:
    for status, sent in ((400, "no"), (429, "no"), (408, "maybe"), (500, "maybe")):
        kind = api_errors.api_error_class(status)
        assert kind("problem", status_code=status, body="", headers=Headers()).sent == sent
