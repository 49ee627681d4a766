"""Whether a client keeps up, as Apache's mod_reqtimeout judges it: in time and fast enough.

A client has a credit of `GRACE` seconds. While we wait for nothing but the client, time uses it up;
each byte that moves adds what it may take at the minimum rate, up to `_MOST` seconds. While
somebody else is waited for, nothing is used up. Pure: takes `now`, monotonic seconds.
"""

from __future__ import annotations

#: Seconds that anybody has, and the most that fast bytes can earn for slow ones.
GRACE, _MOST = 10.0, 60.0


class Pace:
    """Of one message in one direction. `rate` is in bytes a second."""

    __slots__ = ("_credit", "_moved", "_rate", "_since")

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._credit = GRACE
        self._moved = 0
        self._since: float | None = None

    def waits(self, moved: int, now: float) -> float:
        """It is the client's turn; `moved` bytes have moved in all. When it is too slow."""
        self.rests(moved, now)
        self._since = now
        return now + max(0.0, self._credit)

    def rests(self, moved: int, now: float) -> None:
        """Somebody else is waited for from now on."""
        if self._since is not None:
            self._credit -= now - self._since
            self._since = None
        self._credit = min(_MOST, self._credit + max(0, moved - self._moved) / self._rate)
        self._moved = max(moved, self._moved)
