"""A sliding time window over calls: total, failed and slow. Pure.

It has ten rotating buckets, so it covers between nine and ten tenths of its span.
"""

from __future__ import annotations

_BUCKETS = 10


class SlidingWindow:
    """Counts of the last `span` seconds. The cost of `add` does not depend on the number of
    calls."""

    __slots__ = ("_buckets", "_slot", "_width", "calls", "failed", "slow", "span")

    def __init__(self, span: float) -> None:
        self.span = span
        self._width = span / _BUCKETS
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._buckets = [[0, 0, 0] for _ in range(_BUCKETS)]
        self._slot: int | None = None
        self.calls = self.failed = self.slow = 0

    def expire(self, now: float) -> None:
        """Drop the buckets that are too old at `now` (monotonic seconds)."""
        slot = int(now / self._width)
        if self._slot is None or slot - self._slot >= _BUCKETS:
            self.clear()
            self._slot = slot
            return
        while self._slot < slot:
            self._slot += 1
            bucket = self._buckets[self._slot % _BUCKETS]
            self.calls -= bucket[0]
            self.failed -= bucket[1]
            self.slow -= bucket[2]
            bucket[0] = bucket[1] = bucket[2] = 0

    def add(self, now: float, *, failed: bool, slow: bool) -> None:
        """Count one call that ended at `now`."""
        self.expire(now)
        bucket = self._buckets[int(now / self._width) % _BUCKETS]
        bucket[0] += 1
        self.calls += 1
        if failed:
            bucket[1] += 1
            self.failed += 1
        if slow:
            bucket[2] += 1
            self.slow += 1

    def exceeded(
        self, minimum_calls: int, failure_ratio: float | None, slow_ratio: float | None
    ) -> str | None:
        """Which ratio is exceeded, in words; None if neither is, or if there are too few calls."""
        if self.calls < minimum_calls or not self.calls:
            return None
        if failure_ratio is not None and self.failed / self.calls >= failure_ratio:
            return f"{self.failed} of {self.calls} calls failed"
        if slow_ratio is not None and self.slow / self.calls >= slow_ratio:
            return f"{self.slow} of {self.calls} calls were slow"
        return None
