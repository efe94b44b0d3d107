"""The budget that keeps retries from multiplying an outage."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from flux0 import BackoffStrategy, Flux0, RetryConfig
from flux0.domain.errors import ConnectError
from flux0.middleware.retry import RetryBudget
from support.in_memory import answer, script

ENDLESS = RetryConfig(backoff=BackoffStrategy(initial_interval=0))


def takes(budget: RetryBudget, times: int) -> int:
    """Return how often a retry was to be had."""
    return sum(budget.take() for _ in range(times))


def test_a_budget_is_full_to_begin_with_and_then_empty() -> None:
    assert takes(RetryBudget(), 200) == 100
    assert takes(RetryBudget(capacity=3), 5) == 3


@pytest.mark.parametrize("successes_per_retry", [1, 2, 7, 10])
def test_so_many_successes_give_one_retry_back(successes_per_retry: int) -> None:
    budget = RetryBudget(capacity=3, successes_per_retry=successes_per_retry)
    takes(budget, 3)

    for _ in range(3):
        for _ in range(successes_per_retry):
            assert not budget.take()
            budget.give()
        assert takes(budget, 2) == 1


def test_a_budget_never_grows_past_what_it_was() -> None:
    budget = RetryBudget(capacity=2, successes_per_retry=3)
    budget.take()

    for _ in range(100):
        budget.give()

    assert takes(budget, 5) == 2


def test_a_client_has_one_budget_for_all_its_calls() -> None:
    transport = script(*(ConnectError("refused") for _ in range(104)))

    with Flux0(transport=transport, retry_config=ENDLESS) as flux0:
        with pytest.raises(ConnectError, match="101 attempts"):
            flux0.agents.list()
        with pytest.raises(ConnectError) as caught:
            flux0.sessions.list()
        assert caught.value.attempts == 1
        transport.answers[:0] = [answer(b'{"data": []}') for _ in range(10)]
        for _ in range(10):
            flux0.agents.list()
        with pytest.raises(ConnectError, match="2 attempts"):
            flux0.agents.list()
    assert transport.answers == []


def test_threads_share_a_budget_and_none_of_it_is_lost() -> None:
    budget = RetryBudget(capacity=100, successes_per_retry=1)

    def take_and_give_back(_: int) -> None:
        for _ in range(takes(budget, 50)):
            budget.give()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(take_and_give_back, range(100)))

    assert takes(budget, 200) == 100
