"""When outcomes trip a circuit: consecutive failures, and a sliding window over calls. Pure.

The window has ten rotating buckets, so it covers between nine and ten tenths of its span.
"""

from __future__ import annotations

from proxy.config.upstreams import Breaker as BreakerRules

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


class TripLimits:
    """The outcomes of one breaker's calls, and whether they reach a limit. `failures` are those in
    a row."""

    def __init__(self) -> None:
        self.failures = 0
        self._window: SlidingWindow | None = None

    def configure(self, rules: BreakerRules) -> None:
        """Apply rules. A window of a different length starts empty."""
        self._rules = rules
        if rules.failure_ratio is None and rules.slow_ratio is None:
            self._window = None
        elif self._window is None or self._window.span != rules.window:
            self._window = SlidingWindow(rules.window)

    def is_slow(self, duration: float) -> bool:
        """Whether a call of `duration` seconds counts as slow."""
        return self._rules.slow_call is not None and duration > self._rules.slow_call

    def succeeded(self, now: float, duration: float) -> str | None:
        """Count a success; why it trips the circuit, if it does."""
        self.failures = 0
        if self._window is None:
            return None
        slow = self.is_slow(duration)
        self._window.add(now, failed=False, slow=slow)
        return self._exceeded() if slow else None

    def failed(self, now: float, kind: str, duration: float) -> str | None:
        """Count a failure; why it trips the circuit, if it does."""
        self.failures += 1
        if self.failures >= self._rules.failure_threshold:
            what = "failure" if self.failures == 1 else "consecutive failures"
            return f"{self.failures} {what}, the last: {kind}"
        if self._window is None:
            return None
        self._window.add(now, failed=True, slow=self.is_slow(duration))
        return self._exceeded()

    def _exceeded(self) -> str | None:
        assert self._window is not None
        rules = self._rules
        why = self._window.exceeded(rules.minimum_calls, rules.failure_ratio, rules.slow_ratio)
        return f"{why} within {rules.window:g}s" if why is not None else None

    def clear(self) -> None:
        """Forget every outcome."""
        self.failures = 0
        if self._window is not None:
            self._window.clear()
