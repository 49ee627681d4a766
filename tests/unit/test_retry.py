"""Retries: what is tried again, how long after, and what the budget allows."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.upstreams import Retry as RetryRules
from proxy.resilience.retry import (
    Ended,
    RetryBudget,
    RetryPlan,
    RetryPolicy,
    parse_retry_after,
)

NOW = 5_000.0


def policy(**rules: Any) -> RetryPolicy:
    """A policy with a fixed random seed."""
    return RetryPolicy(RetryRules.model_validate(rules), random.Random(3))


def plan(method: str = "GET", *, key: bool = False, **rules: Any) -> RetryPlan:
    """A request that begins at NOW."""
    return policy(**rules).begin(method, NOW, idempotency_key=key)


@pytest.mark.parametrize(
    ("method", "key", "ended", "reason"),
    [
        ("GET", False, Ended("503", sent=True), "again"),
        ("GET", False, Ended("500", sent=True), "kind"),
        ("GET", False, Ended("circuit_open", sent=False), "kind"),
        ("POST", False, Ended("connect", sent=False), "again"),
        ("POST", False, Ended("503", sent=True), "unsafe"),
        ("POST", True, Ended("503", sent=True), "again"),
        ("PUT", False, Ended("503", sent=True, body_whole=False), "body"),
        ("GET", False, Ended("503", sent=True, retry_after=6.0), "retry_after"),
    ],
)
def test_only_safe_and_listed_outcomes_are_tried_again(
    method: str, key: bool, ended: Ended, reason: str
) -> None:
    """Kind, safety, body and Retry-After each say no by their own name."""
    assert plan(method, key=key, idempotency_key=True).after(ended, NOW).reason == reason


def test_an_idempotency_key_counts_only_where_configured() -> None:
    """The upstream must be known to heed the key."""
    assert plan("POST", key=True).after(Ended("503", sent=True), NOW).reason == "unsafe"


def test_attempts_are_counted_with_the_first() -> None:
    """Three attempts are two retries."""
    request = plan(attempts=3)
    outcomes = [request.after(Ended("503", sent=True), NOW).reason for _ in range(3)]
    assert outcomes == ["again", "again", "attempts"]
    assert request.retries == 2


def test_no_attempt_begins_after_the_deadline() -> None:
    """A wait that would end beyond the deadline is not begun."""
    ended = Ended("503", sent=True, retry_after=2.0)
    assert plan(deadline="1s").after(ended, NOW).reason == "deadline"


def test_retry_after_is_a_floor_with_jitter_on_top() -> None:
    """Callers that got the same `Retry-After` come back at different moments."""
    waits = set()
    rules = policy(attempts=10, min_per_second=50)
    for _ in range(20):
        request = rules.begin("GET", NOW, idempotency_key=False)
        waits.add(request.after(Ended("503", sent=True, retry_after=2.0), NOW).wait)
    assert len(waits) == 20
    assert all(wait is not None and 2.0 <= wait <= 2.2 for wait in waits)


@given(st.integers(1, 40))
def test_full_jitter_stays_between_zero_and_the_doubling_range(retry: int) -> None:
    """No wait is negative or beyond the range, and the range ends at max_backoff."""
    wait = policy().backoff(retry)
    assert 0.0 <= wait <= min(5.0, 0.2 * 2 ** (retry - 1))


@given(
    st.lists(st.tuples(st.floats(0, 2), st.integers(0, 30), st.integers(0, 30)), max_size=60),
    st.sampled_from([0.0, 0.1, 0.2, 1.0]),
    st.integers(0, 5),
)
def test_the_budget_bounds_retries_in_every_window(
    steps: list[tuple[float, int, int]], share: float, rate: int
) -> None:
    """Over any run, retries stay within the share of all calls plus the rate times the time."""
    budget = RetryBudget(share, rate)
    now, calls, retries = NOW, 0, 0
    for pause, new_calls, wishes in steps:
        now += pause
        for _ in range(new_calls):
            budget.call(now)
        calls += new_calls
        retries += sum(budget.spend(now) for _ in range(wishes))
    assert retries <= share * calls + rate * (now - NOW + 1) + 1e-6


def test_a_dead_upstream_under_load_gets_a_fifth_more_and_no_more() -> None:
    """200 requests a second that all fail: at most 20 % retries over ten seconds."""
    rules = policy(attempts=5)
    retries = 0
    for tick in range(2000):
        now = NOW + tick / 200
        request = rules.begin("GET", now, idempotency_key=False)
        while request.after(Ended("503", sent=True), now).wait is not None:
            retries += 1
    assert 350 <= retries <= 400 + 3


def test_a_quiet_upstream_gets_its_minimum() -> None:
    """One failing poll every two seconds may be retried although 20 % of it is nothing."""
    rules = policy()
    for tick in range(10):
        request = rules.begin("GET", NOW + 2 * tick, idempotency_key=False)
        assert request.after(Ended("503", sent=True), NOW + 2 * tick).wait is not None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Wed, 21 Oct 2015 07:28:10 GMT", 10.0),
        ("Wed, 21 Oct 2015 07:27:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("", None),
    ],
)
def test_retry_after_is_read_in_both_forms(value: str, seconds: float | None) -> None:
    """Seconds or an HTTP date; anything else is as if it were not there."""
    assert parse_retry_after(value, 1445412480.0) == seconds


def test_a_route_may_say_that_its_post_is_repeatable() -> None:
    """A query in POST's clothes is retried as a GET is."""
    post = policy().begin("POST", NOW, idempotency_key=False, repeatable=True)
    assert post.after(Ended("503", sent=True), NOW).reason == "again"


def test_attempts_that_a_circuit_held_back_are_free() -> None:
    """Three attempts, and one more for each that was a probe after a wait."""
    following = plan(attempts=3, min_per_second=1000)
    following.held = 2
    reasons = [following.after(Ended("503", sent=True), NOW).reason for _ in range(5)]
    assert reasons == ["again"] * 4 + ["attempts"]


@pytest.mark.parametrize(("left", "reason"), [(3.0, "again"), (1.0, "again"), (0.1, "deadline")])
def test_the_last_wait_is_shortened_to_use_the_time_that_is_left(left: float, reason: str) -> None:
    """A wait that would end after the deadline leaves a quarter of the rest for the attempt;
    what is left after that is too short for another."""
    following = plan(backoff="200ms", max_backoff="1000s", deadline="100s", attempts=10)
    following.retries = 8  # a range of 51.2 s
    decision = following.after(Ended("503", sent=True), NOW + 100.0 - left)
    assert decision.reason == reason
    assert decision.wait is None or decision.wait <= 0.75 * left
