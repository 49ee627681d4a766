"""Rates, error shares and percentiles of an interval, from two readings of the tallies. Pure.

Tallies only grow, so the counts of an interval are the difference of two readings. A percentile is
interpolated within its bucket, linearly and from zero in the first one, as Prometheus'
`histogram_quantile` does, so that both agree. A percentile above the last bound is given as that
bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import add

from proxy.telemetry.metrics.counters import BUCKETS, Distribution, RouteTally

CLIENT_LEFT = 499  # neither the service's error nor the caller's
TOO_MANY = 429


@dataclass(frozen=True, slots=True)
class CounterReading:
    """Counts since the start: durations by bucket, server errors, refusals (4xx), successful
    responses of an unexpected type, and responses with 429."""

    counts: tuple[int, ...]
    errors: int = 0
    refused: int = 0
    total: float = 0.0  # sum of the durations, if it is kept
    waited: float = 0.0  # the part of it that was not the service's own time
    unexpected: int = 0
    limited: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of an interval. Percentiles are in seconds, None without requests.

    `rate` is per second; `error_share` and `refused_share` are 0 to 1.
    """

    seconds: float
    count: int
    errors: int
    refused: int
    p50: float | None
    p95: float | None
    p99: float | None
    total: float = 0.0
    waited: float = 0.0
    unexpected: int = 0
    limited: int = 0

    @property
    def served(self) -> float:
        """The service's own share of all durations, 0 to 1; 1 if unknown."""
        return 1 - min(1.0, max(0.0, self.waited / self.total)) if self.total > 0 else 1.0

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    @property
    def rate(self) -> float:
        return self.count / self.seconds if self.seconds > 0 else 0.0

    @property
    def error_share(self) -> float:
        return self.errors / self.count if self.count else 0.0

    @property
    def refused_share(self) -> float:
        return self.refused / self.count if self.count else 0.0


def nothing(bounds: Sequence[float] = BUCKETS) -> CounterReading:
    """The reading of a tally before its first count."""
    return CounterReading((0,) * (len(bounds) + 1))


def read_distribution(distribution: Distribution) -> CounterReading:
    """The reading of a histogram without statuses."""
    return CounterReading(tuple(distribution.counts), total=distribution.total)


def read_routes(tallies: Sequence[RouteTally]) -> CounterReading:
    """The sum over routes and methods; zero without routes."""
    counts = [0] * (len(BUCKETS) + 1)
    errors = refused = unexpected = limited = 0
    total = waited = 0.0
    for tally in tallies:
        unexpected += tally.unexpected
        waited += tally.added.total
        for method in tally.methods.values():
            total += method.total
            limited += method.statuses.get(TOO_MANY, 0)
            counts = list(map(add, counts, method.counts))
            for status, count in method.statuses.items():
                if status >= 500:
                    errors += count
                elif status >= 400 and status != CLIENT_LEFT:
                    refused += count
    return CounterReading(tuple(counts), errors, refused, total, waited, unexpected, limited)


def together(readings: Iterable[CounterReading]) -> CounterReading:
    """The sum of readings; zero without readings."""
    counts = [0] * (len(BUCKETS) + 1)
    errors = refused = 0
    for reading in readings:
        counts = list(map(add, counts, reading.counts))
        errors += reading.errors
        refused += reading.refused
    return CounterReading(tuple(counts), errors, refused)


def between(
    before: CounterReading | None,
    after: CounterReading,
    seconds: float,
    bounds: Sequence[float] = BUCKETS,
) -> Summary:
    """The figures from `before` (None: the start) to `after`, `seconds` later."""
    if before is None:
        before = nothing(bounds)
    counts = [late - early for late, early in zip(after.counts, before.counts, strict=True)]
    return Summary(
        seconds,
        sum(counts),
        after.errors - before.errors,
        after.refused - before.refused,
        quantile(bounds, counts, 0.5),
        quantile(bounds, counts, 0.95),
        quantile(bounds, counts, 0.99),
        after.total - before.total,
        after.waited - before.waited,
        after.unexpected - before.unexpected,
        after.limited - before.limited,
    )


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """The value below which `share` (0 to 1) of the counted values lie; None without values."""
    rank = sum(counts) * share
    if rank <= 0:
        return None
    seen = 0
    lower = 0.0
    for bound, count in zip(bounds, counts, strict=False):  # `counts` has one more
        if count and seen + count >= rank:
            return lower + (bound - lower) * (rank - seen) / count
        seen += count
        lower = bound
    return bounds[-1]
