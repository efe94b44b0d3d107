"""The retry middleware: attempts, waits, the budget, and the reports of retries."""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import pytest
from attrs import define, evolve, field
from attrs.exceptions import FrozenInstanceError

from flux0 import BackoffStrategy, Flux0, RetryConfig, RetryDetails
from flux0.adapters.json import JsonCodec
from flux0.domain import api_errors, errors
from flux0.domain.headers import Headers
from flux0.domain.timeouts import Deadline
from flux0.flows import CallRequest, Flow, SendFlow, chain
from flux0.middleware.responses import ResponsePolicy
from flux0.middleware.retry import Retry, RetryBudget
from flux0.ports import Response
from support.driving import Slow, Time, drive, drive_sync
from support.in_memory import (
    SSE,
    Script,
    in_every_mode,
    response_from,
    script,
    scripted_response,
    tape,
)
from support.modes import in_mode
from support.transports import Mode

T = TypeVar("T")

LIMIT = 1000
STEADY = RetryConfig(backoff=BackoffStrategy(initial_interval=1000, exponent=1))
NO_WAIT = RetryConfig(backoff=BackoffStrategy(initial_interval=0))
GET = CallRequest("GET", "http://h/api/agents", Headers(), operation="agents.list", retries=STEADY)
POST = evolve(GET, method="POST", operation="agents.create")
TURN = evolve(POST, operation="sessions.create_event", stream=True)


@define
class Policy:
    """The retry middleware around the response middleware, with the retries it reported."""

    transport: Script
    time: Time = field(factory=Time)
    budget: RetryBudget = field(factory=RetryBudget)
    jitter: float = 1.0
    reported: list[RetryDetails] = field(factory=list[RetryDetails])

    def flow(self, request: CallRequest) -> Flow[Response[Any]]:
        self.time.random = self.jitter
        retry = Retry(self.budget, self.time, self.reported.append)
        return chain([retry, ResponsePolicy(JsonCodec(), LIMIT)])(request)

    async def send(self, mode: Mode, request: CallRequest) -> Any:
        return await drive(mode, self.flow(request), self.transport, self.time)

    def send_sync(self, request: CallRequest) -> Any:
        return drive_sync(self.flow(request), self.transport, self.time)

    async def fails(self, mode: Mode, request: CallRequest) -> errors.Flux0Error:
        with pytest.raises(errors.Flux0Error) as caught:
            await self.send(mode, request)
        return caught.value

    @property
    def attempts(self) -> list[int]:
        return [request.attempt for request in self.transport.requests]


def refused() -> errors.ConnectError:
    return errors.ConnectError("refused")


def reset() -> errors.ConnectionInterrupted:
    return errors.ConnectionInterrupted("reset")


# --- attempts and waits


@in_every_mode
async def test_call_is_retried_until_it_succeeds(mode: Mode) -> None:
    policy = Policy(
        script(
            scripted_response(status=503),
            refused(),
            scripted_response(status=429),
            scripted_response(b"ok"),
        ),
        jitter=0.5,
    )
    growing = RetryConfig(backoff=BackoffStrategy(initial_interval=1000, exponent=2))

    response = await policy.send(mode, evolve(GET, retries=growing))

    assert response.body == b"ok"
    assert policy.attempts == [1, 2, 3, 4]
    assert policy.time.waits == [0.5, 1.0, 2.0]


@in_every_mode
async def test_on_retry_gets_the_details_of_a_retry(mode: Mode) -> None:
    date = "Thu, 01 Jan 2026 00:00:07 GMT"
    policy = Policy(
        script(
            scripted_response(status=503, headers={"retry-after": date}), scripted_response(b"ok")
        )
    )

    await policy.send(mode, GET)

    (details,) = policy.reported
    assert isinstance(details.cause, api_errors.ServerError)
    assert (details.operation, details.method, details.url) == ("agents.list", "GET", GET.url)
    assert (details.attempt, details.delay_ms) == (1, 7000.0)
    assert policy.time.waits == [7.0]
    with pytest.raises(FrozenInstanceError):
        details.attempt = 2  # type: ignore[misc]


@in_every_mode
async def test_last_error_is_raised_with_the_number_of_attempts(mode: Mode) -> None:
    policy = Policy(
        script(scripted_response(status=503), reset(), refused(), scripted_response(b"not sent"))
    )

    error = await policy.fails(mode, evolve(GET, retries=None))

    assert isinstance(error, errors.ConnectError)
    assert error.attempts == 3
    assert str(error) == f"GET {GET.url}: refused (3 attempts)"
    assert [details.attempt for details in policy.reported] == [1, 2]
    assert len(policy.time.waits) == 2


@in_every_mode
async def test_nothing_is_retried_after_the_deadline_or_max_elapsed_time(mode: Mode) -> None:
    longest = evolve(STEADY, backoff=evolve(STEADY.backoff, max_elapsed_time=5000))
    for changes, waits in (
        ({"deadline": Deadline(Time().now + 3.5, 3.5)}, [1.0]),
        ({"retries": longest}, [1.0, 1.0]),
    ):
        time = Time()
        transport = Slow(
            [reset(), reset(), reset(), scripted_response(b"late")], time=time, seconds=1.0
        )
        policy = Policy(transport, time)

        error = await policy.fails(mode, evolve(GET, **changes))

        assert isinstance(error, errors.ConnectionInterrupted)
        assert error.attempts == len(waits) + 1
        assert policy.time.waits == waits


# --- a new token after a 401

COMPUTED = {"authorization": lambda: "Bearer new"}


@in_every_mode
async def test_request_is_sent_again_once_after_a_401_if_a_function_returns_the_token(
    mode: Mode,
) -> None:
    for request in (GET, POST, TURN):
        renewable = evolve(request, header_functions=COMPUTED)
        policy = Policy(script(scripted_response(status=401), scripted_response(b"ok")))
        assert (await policy.send(mode, renewable)).status_code == 200
        assert (policy.attempts, policy.time.waits) == ([1, 2], [0])
        assert [type(each.cause) for each in policy.reported] == [api_errors.AuthenticationError]

        policy = Policy(script(*(scripted_response(status=401) for _ in range(3))))
        error = await policy.fails(mode, renewable)
        assert isinstance(error, api_errors.AuthenticationError)
        assert (error.attempts, error.sent, policy.attempts) == (2, "no", [1, 2])


@in_every_mode
async def test_request_with_a_fixed_token_is_sent_once_if_the_response_is_a_401(mode: Mode) -> None:
    fixed = Headers((("Authorization", "Bearer fixed"),))
    other = {"x-request-id": lambda: "1"}
    for changes in (
        {"headers": fixed},
        {"headers": fixed, "header_functions": COMPUTED},
        {"headers": fixed, "header_functions": other},
        {"retries": evolve(STEADY, retry_posts=True)},
        {"retries": RetryConfig("none"), "header_functions": COMPUTED},
        {"retries": evolve(STEADY, max_attempts=1), "header_functions": COMPUTED},
    ):
        for request in (GET, POST, TURN):
            policy = Policy(script(scripted_response(status=401)))
            await policy.fails(mode, evolve(request, **changes))
            assert policy.attempts == [1]


def test_only_one_of_several_401_responses_is_retried_among_other_failures() -> None:
    statuses = (503, 401, 503, 401)
    policy = Policy(script(*(scripted_response(status=status) for status in statuses)))

    with pytest.raises(api_errors.AuthenticationError):
        policy.send_sync(evolve(GET, header_functions=COMPUTED))

    assert policy.attempts == [1, 2, 3, 4]


def test_new_token_needs_no_retry_budget() -> None:
    responses = [scripted_response(status=status) for _ in range(3) for status in (401, 200)]
    policy = Policy(script(*responses), budget=RetryBudget(0))

    for _ in range(3):
        assert policy.send_sync(evolve(POST, header_functions=COMPUTED)).status_code == 200


# --- which failures are retried

_DOC = (Path(__file__).parents[3] / "docs" / "reliability.md").read_text("utf-8")


def documented() -> list[tuple[str, str, str]]:
    """Return the table of docs/reliability.md as rows of method, cause and outcome."""
    rows = re.findall(r"^\| (.+) \| (retried|raised) \| (retried|raised) \|$", _DOC, re.MULTILINE)
    assert "| failure | GET | POST |" in _DOC
    return [
        (method, cause, outcome)
        for cause, *outcomes in rows
        for method, outcome in zip(("GET", "POST"), outcomes, strict=True)
    ]


def failures(cause: str) -> Sequence[Response[Any] | errors.TransportError]:
    if cause == "the connection could not be established":
        return [refused()]
    if cause == "the connection was interrupted":
        return [reset(), scripted_response(b"half", reset())]
    return [scripted_response(status=int(status)) for status in re.findall(r"\d+", cause)]


def test_documented_table_has_all_cases() -> None:
    assert len(documented()) == 2 * 4
    assert sum(len(failures(cause)) for _, cause, _ in documented()) == 2 * (1 + 2 + 1 + 5)


@pytest.mark.parametrize(("method", "cause", "outcome"), documented())
def test_documented_table_is_correct(method: str, cause: str, outcome: str) -> None:
    request = evolve(GET, method=method, retries=None)

    for failure in failures(cause):
        policy = Policy(script(failure, scripted_response(b"ok")))
        if outcome == "retried":
            assert policy.send_sync(request).body == b"ok"
        else:
            assert outcome == "raised"
            with pytest.raises(errors.Flux0Error):
                policy.send_sync(request)
            assert policy.attempts == [1]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_idempotent_request_is_retried_after_a_reset(method: str) -> None:
    policy = Policy(script(reset(), scripted_response(b"ok")))

    assert policy.send_sync(evolve(GET, method=method)).body == b"ok"


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_request_that_is_not_idempotent_is_not_retried_after_a_reset(method: str) -> None:
    policy = Policy(script(reset(), scripted_response(b"ok")))

    with pytest.raises(errors.ConnectionInterrupted):
        policy.send_sync(evolve(GET, method=method))

    assert policy.attempts == [1]


def test_retry_posts_retries_a_post_like_a_get() -> None:
    opted_in = evolve(STEADY, retry_posts=True)

    for cause in {cause for _, cause, _ in documented()}:
        for failure in failures(cause):
            policy = Policy(script(failure, scripted_response(b"ok")))
            assert policy.send_sync(evolve(POST, retries=opted_in)).body == b"ok"


@pytest.mark.parametrize("retry_posts", [True, False])
def test_turn_is_retried_only_if_the_server_did_not_act_on_it(retry_posts: bool) -> None:
    request = evolve(TURN, retries=evolve(STEADY, retry_posts=retry_posts))

    for failure in (*failures("the connection could not be established"), *failures("429")):
        policy = Policy(script(failure, scripted_response(headers=SSE)))
        assert policy.send_sync(request).status_code == 200
    for failure in (*failures("503, 408"), reset()):
        policy = Policy(script(failure, scripted_response(headers=SSE)))
        with pytest.raises((errors.TransportError, api_errors.APIError)):
            policy.send_sync(request)
        assert policy.attempts == [1]


def test_turn_is_not_retried_after_its_response_head() -> None:
    policy = Policy(
        script(scripted_response(b"event", reset(), headers=SSE), scripted_response(headers=SSE))
    )

    body = policy.send_sync(TURN).body

    assert body.read(None) == b"event"
    with pytest.raises(errors.ConnectionInterrupted):
        body.read(None)
    assert policy.attempts == [1]


@in_every_mode
async def test_interrupted_body_is_released_and_the_request_retried(mode: Mode) -> None:
    half, failed = tape(b"half", reset()), tape(b"no")
    policy = Policy(
        script(response_from(half), response_from(failed, status=500), scripted_response(b"whole"))
    )

    response = await policy.send(mode, GET)

    assert response.body == b"whole"
    assert half.releases
    assert failed.releases


@in_every_mode
async def test_too_large_response_is_not_retried(mode: Mode) -> None:
    policy = Policy(
        script(refused(), scripted_response(bytes(LIMIT + 1)), scripted_response(b"ok"))
    )

    error = await policy.fails(mode, GET)

    assert isinstance(error, errors.ResponseTooLarge)
    assert error.attempts == 2
    assert policy.attempts == [1, 2]


@in_every_mode
async def test_exception_of_user_code_is_not_retried(mode: Mode) -> None:
    policy = Policy(script(TypeError("a bug"), scripted_response(b"ok")))

    with pytest.raises(TypeError, match="a bug"):
        await policy.send(mode, GET)

    assert policy.attempts == [1]
    assert policy.reported == []


@in_every_mode
async def test_error_of_flux0_from_user_code_gets_no_request_and_is_not_retried(mode: Mode) -> None:
    """The error may describe another request, such as one of an authentication class."""
    error = refused()
    errors.mark_user_error(error)
    policy = Policy(script(error, scripted_response(b"ok")))

    raised = await policy.fails(mode, GET)

    assert raised is error
    assert (raised.operation, raised.method, raised.url, str(raised)) == ("", "", "", "refused")
    assert policy.attempts == [1]


@in_every_mode
async def test_sent_includes_earlier_attempts(mode: Mode) -> None:
    """The server did not act on the last attempt. Outer middleware gets the same error."""
    seen: list[errors.Sent] = []

    def look(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        try:
            return (yield from send(request))
        except errors.Flux0Error as error:
            seen.append(error.sent)
            raise

    repeating = evolve(NO_WAIT, retry_posts=True, max_attempts=2)
    for earlier, sent in (("refused", "no"), ("429", "no"), ("503", "maybe"), ("reset", "maybe")):
        for last in (scripted_response(status=400), refused()):
            first = {"refused": refused(), "reset": reset()}.get(earlier)
            transport = script(first or scripted_response(status=int(earlier)), last)
            flux0 = in_mode(mode, Flux0(transport=transport, middleware=[look]))

            with pytest.raises(errors.Flux0Error) as caught:
                await flux0.sessions.create_async(agent_id="a", retries=repeating)

            assert (caught.value.attempts, caught.value.sent, seen.pop()) == (2, sent, sent)


# --- reports of retries


def test_exception_in_on_retry_stops_the_retries() -> None:
    class EnoughError(Exception):
        pass

    def stop(details: RetryDetails) -> None:
        raise EnoughError

    transport = script(scripted_response(status=503), scripted_response(b'{"data": []}'))

    with Flux0(transport=transport, on_retry=stop) as flux0, pytest.raises(EnoughError):
        flux0.agents.list()
    assert len(transport.requests) == 1


def test_retry_is_logged_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "flux0")
    reported: list[RetryDetails] = []
    transport = script(refused(), scripted_response(b'{"data": []}'))

    with Flux0(transport=transport, retry_config=NO_WAIT, on_retry=reported.append) as flux0:
        flux0.agents.list()

    (record,) = caplog.records
    assert not any(isinstance(each, BaseException) for each in record.args or ())
    assert (record.name, record.levelname) == ("flux0", "WARNING")
    assert record.message == (
        "GET http://127.0.0.1:8080/api/agents: attempt 1 failed (ConnectError: refused), "
        "retrying in 0 ms"
    )
    assert [type(details.cause) for details in reported] == [errors.ConnectError]


# --- the budget


def allowed(budget: RetryBudget, times: int) -> int:
    """Return how many of these retries the budget allows."""
    return sum(budget.spend() for _ in range(times))


@pytest.mark.parametrize("successes_per_retry", [1, 2, 7, 10])
def test_successes_refill_the_budget_up_to_its_capacity(
    successes_per_retry: int,
) -> None:
    budget = RetryBudget(capacity=3, successes_per_retry=successes_per_retry)
    assert allowed(budget, 5) == 3

    for _ in range(3):
        for _ in range(successes_per_retry):
            assert not budget.spend()
            budget.add_success()
        assert allowed(budget, 2) == 1
    for _ in range(100):
        budget.add_success()
    assert allowed(budget, 5) == 3


def test_error_that_is_not_retried_does_not_use_the_budget() -> None:
    budget = RetryBudget(capacity=1)
    policy = Policy(script(scripted_response(status=404)), budget=budget)
    with pytest.raises(api_errors.NotFoundError):
        policy.send_sync(GET)
    assert budget.spend()


def test_client_has_one_budget_for_all_calls() -> None:
    transport = script(*(errors.ConnectError("refused") for _ in range(104)))

    with Flux0(transport=transport, retry_config=NO_WAIT) as flux0:
        with pytest.raises(errors.ConnectError, match="101 attempts"):
            flux0.agents.list()
        with pytest.raises(errors.ConnectError) as caught:
            flux0.sessions.list()
        assert caught.value.attempts == 1
        transport.responses[:0] = [scripted_response(b'{"data": []}') for _ in range(10)]
        for _ in range(10):
            flux0.agents.list()
        with pytest.raises(errors.ConnectError, match="2 attempts"):
            flux0.agents.list()
    assert transport.responses == []


def with_other_thread(number: int, call: Callable[[], T]) -> list[T]:
    """Return the results of two calls. The second runs before instruction `number` of the first.

    The second call takes the place of another thread, which may run between any two instructions.
    If the first call has fewer instructions, there is only its own result.
    """
    results: list[T] = []
    instructions = count()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        frame.f_trace_opcodes = True
        if event == "opcode" and next(instructions) == number:
            results.append(call())
        return trace

    before, current = sys.gettrace(), inspect.currentframe()
    assert current is not None
    current.f_trace_opcodes = True  # Python 3.12 reads it when `settrace` is called.
    sys.settrace(trace)
    try:
        results.append(call())
    finally:
        sys.settrace(before)
    return results


# More than the budget's methods have.
INSTRUCTIONS = range(200)


def test_two_threads_never_spend_the_same_retry() -> None:
    results = [with_other_thread(n, RetryBudget(capacity=1).spend) for n in INSTRUCTIONS]

    assert {sum(result) for result in results} == {1}
    assert {len(result) for result in results} == {1, 2}


@pytest.mark.parametrize(("successes_per_retry", "retries"), [(1, 2), (2, 1)])
def test_successes_in_two_threads_both_count(successes_per_retry: int, retries: int) -> None:
    calls = set[int]()
    for number in INSTRUCTIONS:
        budget = RetryBudget(2, successes_per_retry)
        assert allowed(budget, 2) == 2
        calls.add(len(with_other_thread(number, budget.add_success)))
        if len(calls) == 1:
            assert allowed(budget, 3) == retries
    assert calls == {1, 2}


def test_successes_in_two_threads_never_exceed_the_capacity() -> None:
    for number in INSTRUCTIONS:
        budget = RetryBudget(capacity=1, successes_per_retry=1)
        assert budget.spend()
        with_other_thread(number, budget.add_success)
        assert allowed(budget, 3) == 1
