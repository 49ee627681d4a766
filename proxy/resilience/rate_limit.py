"""A token bucket. Pure: takes `now`."""

from __future__ import annotations


class TokenBucket:
    """Refilled with `rate` tokens a second, up to `burst`; starts full.

    `now` is in monotonic seconds. A value before the last one counts as the last one.
    """

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at = 0.0

    def configure(self, rate: float, burst: float) -> None:
        """Apply new rules; tokens that were taken stay taken and are refilled at the new rate."""
        self._tokens = max(0.0, burst - (self.burst - self._tokens))
        self.rate = rate
        self.burst = burst

    def tokens(self, now: float) -> float:
        """The number of tokens available."""
        if now > self._at:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
            self._at = now
        return self._tokens

    def take(self, now: float) -> bool:
        """Take a token; False if there is none."""
        # `tokens` inlined, because this is on the path of every request.
        left = self._tokens
        if now > self._at:
            left = min(self.burst, left + (now - self._at) * self.rate)
            self._at = now
        if left < 1.0:
            self._tokens = left
            return False
        self._tokens = left - 1.0
        return True

    def take_what_is_left(self, now: float) -> bool:
        """Take a token, or the fraction of one that is left; whether it was a whole token."""
        left = self.tokens(now)
        self._tokens = max(0.0, left - 1.0)
        return left >= 1.0

    def wait(self, now: float) -> float:
        """Seconds until a token is available; 0 if one is."""
        missing = 1.0 - self.tokens(now)
        return max(0.0, missing / self.rate)

    def full(self, now: float) -> bool:
        """Whether the bucket is full."""
        return self.tokens(now) >= self.burst
