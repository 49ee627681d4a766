"""The last quarter of an hour of every route and upstream, in steps of five seconds. Pure.

1. Readings of the tallies are kept for slightly more than the window (one minute), so that
   `summary` can cover it; points, which are a few numbers each, are kept for the whole span.
2. A point's rate and counts are those of its step. Its percentiles are those of the window that
   ends with it, because five seconds have too few requests for a 99th percentile.
3. A series that was not read in the last step (of a removed route) is dropped.
4. Memory is bounded by the number of series times `SPAN / STEP` points. Idle steps share one
   point.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from proxy.telemetry.metrics.counters import BUCKETS
from proxy.telemetry.metrics.rates import CounterReading, Summary, between

STEP = 5.0  # seconds
SPAN = 900.0  # seconds
WINDOW = 60.0  # seconds
FEWEST_POINTS = 6  # points with requests that `usual` needs

Point = tuple[float, int, float | None, float | None, float | None]
"""Requests per second, server errors, P50, P95, P99 (seconds)."""

IDLE: Point = (0.0, 0, None, None, None)


@dataclass(slots=True)
class _Series:
    bounds: Sequence[float]
    #: (monotonic time, reading), oldest first; the first is at or before the window's start
    readings: deque[tuple[float, CounterReading]] = field(default_factory=deque)
    points: deque[Point] = field(default_factory=lambda: deque(maxlen=int(SPAN / STEP)))


class History:
    """Call `record` every `STEP` seconds, `summary` and `points` at any time."""

    def __init__(self) -> None:
        self._series: dict[str, _Series] = {}
        self.steps = 0  #: steps since the start

    def record(
        self,
        now: float,
        readings: Mapping[str, CounterReading],
        bounds: Mapping[str, Sequence[float]],
    ) -> None:
        """End a step at `now` (monotonic seconds). `bounds` holds the bucket bounds of the series
        that do not use the default ones."""
        self.steps += 1
        for name in [name for name in self._series if name not in readings]:
            del self._series[name]
        for name, reading in readings.items():
            series = self._series.get(name)
            if series is None:
                series = self._series[name] = _Series(bounds.get(name, BUCKETS))
                series.readings.append((now, reading))
                continue
            series.points.append(self._point(series, now, reading))
            kept = series.readings
            kept.append((now, reading))
            while len(kept) > 1 and kept[1][0] <= now - WINDOW:
                kept.popleft()

    def _point(self, series: _Series, now: float, reading: CounterReading) -> Point:
        before, earlier = series.readings[-1]
        step = between(earlier, reading, now - before, series.bounds)
        window = _window(series, now, reading)
        if not window.count:
            return IDLE
        return (
            round(step.rate, 3),
            step.errors,
            _rounded(window.p50),
            _rounded(window.p95),
            _rounded(window.p99),
        )

    def summary(self, name: str, now: float, reading: CounterReading) -> Summary:
        """The last minute (at most one step more), or the time since the series began."""
        series = self._series.get(name)
        if series is None:
            return Summary(0.0, 0, 0, 0, None, None, None)
        return _window(series, now, reading)

    def usual(self, name: str) -> float | None:
        """The median of the medians from before the last two minutes, so that a problem that has
        just begun does not count; None if there are too few."""
        series = self._series.get(name)
        if series is None:
            return None
        before = list(series.points)[: -int(2 * WINDOW / STEP)]
        known = sorted(median for _, _, median, _, _ in before if median is not None)
        return known[len(known) // 2] if len(known) >= FEWEST_POINTS else None

    def points(self, name: str, since: int = 0) -> list[Point]:
        """The points after step `since` that are still kept, oldest first."""
        series = self._series.get(name)
        wanted = self.steps - since
        if series is None or wanted <= 0:
            return []
        return list(series.points)[-wanted:]

    def names(self) -> list[str]:
        """Every series."""
        return list(self._series)


def _window(series: _Series, now: float, reading: CounterReading) -> Summary:
    """The summary since the newest reading that is at least a window old, or since the first."""
    start, first = series.readings[0]
    for moment, earlier in series.readings:
        if moment > now - WINDOW:
            break
        start, first = moment, earlier
    return between(first, reading, now - start, series.bounds)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 5)
