"""Minimum transfer rates, in the manner of Apache's mod_reqtimeout.

A client starts with a credit of `GRACE` seconds. Time spent waiting for the client alone uses it
up; each byte moved adds the time that it may take at the minimum rate, up to `_MOST` seconds. Time
spent waiting for anything else is free. Pure: takes `now`, monotonic seconds.
"""

from __future__ import annotations

#: The initial credit in seconds, and the most that a fast transfer can accumulate.
GRACE, _MOST = 10.0, 60.0


class Pace:
    """The rate of one message in one direction. `rate` is the minimum, in bytes a second."""

    __slots__ = ("_credit", "_moved", "_rate", "_since")

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._credit = GRACE
        self._moved = 0
        self._since: float | None = None

    def waits(self, moved: int, now: float) -> float:
        """Wait for the client from now on; `moved` bytes have moved in all. Returns the time at
        which the client is too slow."""
        self.rests(moved, now)
        self._since = now
        return now + max(0.0, self._credit)

    def rests(self, moved: int, now: float) -> None:
        """Stop the clock: from now on the wait is not for the client."""
        if self._since is not None:
            self._credit -= now - self._since
            self._since = None
        self._credit = min(_MOST, self._credit + max(0, moved - self._moved) / self._rate)
        self._moved = max(moved, self._moved)
