"""How far the clocks of other machines are from ours.

Job times come from the app's clock, lease times from Redis' and log times from ours. Where they
differ, events cannot be put in order, and new data looks old. Redis returns its time along with
other replies; services send theirs in `Date`, to the second, which is read now and then.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from proxy.core.clock import parse_http_date

#: Seconds of skew that are worth reporting: `Date` is exact to one, and responses take time.
NOTABLE = 5.0

#: Seconds between two readings of one upstream's `Date`.
EVERY = 15.0


class ClockSkews:
    """`seconds` by source, `redis` or an upstream's name: positive where its clock is ahead."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._due: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    def note(self, source: str, theirs: float) -> None:
        """Record that the source's clock shows `theirs` now, in Unix seconds."""
        self.seconds[source] = theirs - self._now()

    def wants(self, source: str, monotonic: float) -> bool:
        """Whether the source's `Date` is due to be read; if so, it is not due again for a while."""
        if monotonic < self._due.get(source, 0.0):
            return False
        self._due[source] = monotonic + EVERY
        return True

    def note_date(self, source: str, date: str) -> None:
        """Record a `Date` (RFC 9110 §6.6.1) that has just arrived; a malformed one is ignored."""
        theirs = parse_http_date(date)
        if theirs is None:
            return
        ours = self._now()
        # It may stand for any moment within its second.
        self.seconds[source] = min(max(ours, theirs), theirs + 1.0) - ours
