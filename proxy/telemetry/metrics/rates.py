"""Rates, error shares and percentiles of a stretch of time, from two readings of the tallies. Pure.

Tallies only grow. What happened between two readings is their difference; a percentile of it is
interpolated within its bucket, linearly and from zero in the first one, as Prometheus'
`histogram_quantile` does, so that both tell the same. Above the last bound nothing is known: the
last bound is told.
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
    """Counts since the start: of durations by bucket, of server errors, of refusals (4xx), of good
    answers that are not what the route is for, of answers with 429."""

    counts: tuple[int, ...]
    errors: int = 0
    refused: int = 0
    total: float = 0.0  # sum of the durations, where it is kept
    waited: float = 0.0  # of these, what was not the service's own time
    unexpected: int = 0
    limited: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """What happened in a stretch of time. Percentiles in seconds, None where nothing happened.

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
        """The share of all durations that was the service's own time; 0 to 1, 1 if unknown."""
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
    """A histogram without statuses."""
    return CounterReading(tuple(distribution.counts), total=distribution.total)


def read_routes(tallies: Sequence[RouteTally]) -> CounterReading:
    """The routes together, all methods; none at all read as nothing."""
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
    """The sum of readings of routes; none at all read as nothing."""
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
    """What happened from `before` (None: from the start) to `after`, `seconds` later."""
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
    """The value below which `share` (0 to 1) of the counted ones lie; None where none were."""
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
