"""The benchmark's statistics."""

from __future__ import annotations

import random

import pytest

from tests.bench.measures import Results
from tests.bench.stats import Summary, quantile


def test_summary_is_median_and_extremes() -> None:
    """Three rounds: the middle one counts, the others are the range."""
    assert Summary.of([30.0, 10.0, 20.0]) == Summary(20.0, 10.0, 30.0)
    assert Summary.of([]) is None


def test_quantile_is_a_sample_by_nearest_rank() -> None:
    """The 99th percentile of 1..100 is 99, of a single sample the sample."""
    samples = [float(n) for n in range(1, 101)]
    random.Random(1).shuffle(samples)
    assert quantile(samples, 0.5) == 50
    assert quantile(samples, 0.99) == 99
    assert quantile(samples, 1.0) == 100
    assert quantile(samples, 0.0) == 1
    assert quantile([7.0], 0.99) == 7


def test_quantile_needs_samples() -> None:
    """No samples, no quantile."""
    with pytest.raises(ValueError, match="no samples"):
        quantile([], 0.5)


def test_ratio_is_of_medians_and_needs_both() -> None:
    """Missing or zero figures give no ratio."""
    results = Results()
    for value in (100.0, 300.0, 200.0):
        results.add("ours", "k", value)
    results.add("other", "k", 50.0)
    results.add("broken", "k", 0.0)
    assert results.ratio("ours", "other", "k") == 4.0
    assert results.ratio("ours", "broken", "k") is None
    assert results.ratio("ours", "absent", "k") is None


def test_added_latency_is_measured_against_the_median_without_a_proxy() -> None:
    """One disturbed round without a proxy does not make every proxy look fast."""
    results = Results()
    for value in (100.0, 5000.0, 110.0):
        results.add("direct", "paced.p99_us", value)
    results.add("envoy", "paced.p99_us", 400.0)
    results.subtract("direct", "paced", "added")
    assert results.samples["envoy"]["added.p99_us"] == [290.0]
    assert "added.p99_us" not in results.samples["direct"]


def test_a_remark_is_kept_once() -> None:
    """The same failure in each round is one remark."""
    results = Results()
    results.remark("envoy", "left out")
    results.remark("envoy", "left out")
    assert results.notes == {"envoy": ["left out"]}
