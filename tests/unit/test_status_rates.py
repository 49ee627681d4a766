"""Rates and percentiles of a stretch of time, and the history that the charts show."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.telemetry.metrics.counters import BUCKETS, FINE_BUCKETS, Distribution, RouteTally
from proxy.telemetry.metrics.history import IDLE, SPAN, STEP, WINDOW, History
from proxy.telemetry.metrics.rates import (
    CounterReading,
    between,
    quantile,
    read_distribution,
    read_routes,
)
from tests.telemetry_facts import Facts


def new_counters() -> RouteTally:
    """A route's."""
    return RouteTally("ingress", "job-status", "make-video", egress=False, upstreams={})


def count_answers(route: RouteTally, *statuses: int, duration: float = 0.15) -> None:
    """Exchanges with these statuses."""
    for status in statuses:
        route.begin()
        route.record(replace(Facts(), status=status, duration=duration))


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ((0, 0, 0, 0), 0.5, None),
        ((4, 0, 0, 0), 0.5, 0.5),  # from zero in the first bucket
        ((0, 4, 0, 0), 0.5, 1.5),
        ((2, 2, 0, 0), 0.5, 1.0),
        ((0, 0, 10, 0), 0.9, 3.8),
        ((0, 0, 0, 7), 0.5, 4.0),  # above the last bound: the last bound
        ((1, 0, 1, 0), 0.99, 3.96),
    ],
)
def test_quantiles_are_those_of_prometheus(
    counts: tuple[int, ...], share: float, expected: float | None
) -> None:
    """Linear within the bucket, as `histogram_quantile` has it."""
    found = quantile((1.0, 2.0, 4.0), counts, share)
    assert found == (None if expected is None else pytest.approx(expected))


@given(
    st.lists(st.floats(0, 59.9), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.95, 0.99])
)
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], share: float) -> None:
    """However the values lie, the estimate is off by its bucket's width at most."""
    distribution = Distribution()
    for value in values:
        distribution.observe(value)
    found = quantile(BUCKETS, distribution.counts, share)
    rank = len(values) * share
    true = sorted(values)[max(0, -(-int(rank * 1e9) // 10**9) - 1)]
    bucket = bisect_left(BUCKETS, true)
    lower = BUCKETS[bucket - 1] if bucket else 0.0
    assert found is not None
    assert lower <= found <= BUCKETS[bucket] + 1e-9


def test_a_summary_is_the_difference_of_two_readings() -> None:
    """What was counted before the first reading plays no part; errors are 5xx, refusals 4xx, and a
    client that left is neither."""
    route = new_counters()
    count_answers(route, 200, 500, 500, duration=10.0)
    before = read_routes([route])
    count_answers(route, 200, 200, 200, 404, 502, 499)
    summary = between(before, read_routes([route]), 12.0)
    assert (summary.count, summary.errors, summary.refused) == (6, 1, 1)
    assert summary.rate == pytest.approx(0.5)
    assert summary.error_share == pytest.approx(1 / 6)
    assert summary.p99 is not None
    assert 0.1 < summary.p99 <= 0.2  # the ten seconds were earlier


def test_routes_are_read_together() -> None:
    """A service's figures are those of all its routes and methods."""
    one, other = new_counters(), new_counters()
    count_answers(one, 200)
    other.record(replace(Facts(), method="POST", status=503))
    reading = read_routes([one, other])
    assert (sum(reading.counts), reading.errors) == (2, 1)
    assert sum(read_routes([]).counts) == 0


def at(count: int) -> CounterReading:
    """A reading after so many quick requests."""
    return CounterReading((count,) + (0,) * len(BUCKETS))


def test_the_window_is_a_minute_and_at_most_a_step_more() -> None:
    """Older readings are let go, so that the minute does not become an hour."""
    history = History()
    for step in range(100):
        history.record(step * STEP, {"r": at(step * 10)}, {})
    now = 99 * STEP + 3.0
    summary = history.summary("r", now, at(1000))
    assert WINDOW <= summary.seconds < WINDOW + STEP
    assert summary.rate == pytest.approx(2.0, rel=0.15)


def test_a_young_series_covers_its_own_time() -> None:
    """Seven seconds after the start, rates are those of seven seconds."""
    history = History()
    history.record(0.0, {"r": at(0)}, {})
    summary = history.summary("r", 7.0, at(14))
    assert (summary.seconds, summary.rate) == (7.0, 2.0)
    assert history.summary("unknown", 7.0, at(14)).count == 0


def test_points_are_of_their_step_and_bounded() -> None:
    """A rate is the step's own, silence is `IDLE`, and a quarter of an hour is kept."""
    history = History()
    count = 0
    for step in range(int(SPAN / STEP) + 50):
        count += 20 if step == 3 else 0
        history.record(step * STEP, {"r": at(count)}, {})
        if step == 4:
            point = history.points("r", since=4)[-1]
            assert point[0] == 0.0  # nothing in this step, but percentiles of the minute
            assert point[2] is not None
            assert history.points("r")[2][0] == 4.0
    assert len(history.points("r")) == SPAN / STEP
    assert history.points("r")[-1] is IDLE
    assert history.points("r", since=history.steps - 2) == [IDLE, IDLE]
    assert history.points("r", since=history.steps) == []


def test_a_series_that_is_gone_is_forgotten() -> None:
    """A reload that removes routes does not leave their points behind."""
    history = History()
    history.record(0.0, {"a": at(0), "b": at(0)}, {})
    history.record(5.0, {"b": at(1)}, {})
    assert history.names() == ["b"]
    assert history.points("a") == []


def test_series_may_have_other_bounds() -> None:
    """Upstreams are measured from 100 microseconds on."""
    fine = Distribution(FINE_BUCKETS)
    history = History()
    history.record(0.0, {"u": read_distribution(fine)}, {"u": FINE_BUCKETS})
    fine.observe(0.0003)
    summary = history.summary("u", 5.0, read_distribution(fine))
    assert summary.p50 is not None
    assert 0.0002 <= summary.p50 <= 0.0005


def test_what_is_usual_is_from_before_the_trouble() -> None:
    """The median of earlier minutes; the last two do not count, and a few points say nothing."""
    history = History()
    counts = [0] * (len(BUCKETS) + 1)
    for step in range(1, 61):
        # Ten answers a step: of 15 ms, and in the last two minutes of 6 s.
        counts[bisect_left(BUCKETS, 0.015 if step <= 36 else 6.0)] += 10
        history.record(step * STEP, {"a": CounterReading(tuple(counts))}, {})
        if step == 10:
            assert history.usual("a") is None
    usual = history.usual("a")
    assert usual is not None
    assert 0.01 <= usual <= 0.02
    assert history.usual("unknown") is None


def test_the_service_s_own_share_of_the_time() -> None:
    """What was spent in queues and on slow clients is not the service's."""
    route = new_counters()
    before = read_routes([route])
    count_answers(route, 200, duration=0.5)  # of which the upstream took 0.125 s
    assert between(before, read_routes([route]), 1.0).served == pytest.approx(0.25)
    assert between(before, before, 1.0).served == 1.0


def test_the_last_failure_is_kept_in_its_own_words() -> None:
    """The proxy's answer, or that the service failed by itself; good answers change nothing."""
    route = new_counters()
    count_answers(route, 200)
    assert route.last_failure is None
    count_answers(route, 500)
    assert route.last_failure == "http://127.0.0.1:8005 answered 500"  # which of its targets
    route.record(replace(Facts(), status=503, code="overloaded", detail="Queue full"))
    count_answers(route, 200)
    assert route.last_failure == "Queue full"
