"""A token bucket: so many a second, and so many at once. Pure: takes `now`."""

from __future__ import annotations


class TokenBucket:
    """`rate` tokens a second come in, at most `burst` are there; it begins full.

    `now` is in monotonic seconds. One that lies before the last is taken for the last.
    """

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at = 0.0

    def configure(self, rate: float, burst: float) -> None:
        """Take new rules; what was taken stays taken, and comes back at the new rate."""
        self._tokens = max(0.0, burst - (self.burst - self._tokens))
        self.rate = rate
        self.burst = burst

    def tokens(self, now: float) -> float:
        """How many there are."""
        if now > self._at:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
            self._at = now
        return self._tokens

    def take(self, now: float) -> bool:
        """Take one; False where there is none."""
        # As `tokens`, written out: this is on the way of every request.
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
        """Take one, or the part of one that there is; whether it was a whole one."""
        left = self.tokens(now)
        self._tokens = max(0.0, left - 1.0)
        return left >= 1.0

    def wait(self, now: float) -> float:
        """Seconds until there is one; 0 where there is."""
        missing = 1.0 - self.tokens(now)
        return max(0.0, missing / self.rate)

    def full(self, now: float) -> bool:
        """Whether it is as good as a new one."""
        return self.tokens(now) >= self.burst
