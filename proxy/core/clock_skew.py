"""How far other machines' clocks are from ours, as they let us see it.

Times of jobs are the app's, leases in Redis are Redis', log lines are ours: where they differ, a
story cannot be put in order, and what is new looks old. Redis says its time with what it is asked
anyway; services say theirs in `Date`, to the second, which is read once in a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

#: Seconds from which on a skew is worth a word; `Date` is exact to one, and answers take time.
NOTABLE = 5.0

#: Seconds between two looks at the `Date` of one upstream.
EVERY = 15.0


class ClockSkews:
    """`seconds` by source, `redis` or an upstream's name: positive where its clock is ahead."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._due: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    def note(self, source: str, theirs: float) -> None:
        """Its clock says now `theirs`, in Unix seconds."""
        self.seconds[source] = theirs - self._now()

    def wants(self, source: str, monotonic: float) -> bool:
        """Whether to look at the source's `Date` again; then it is not due for a while."""
        if monotonic < self._due.get(source, 0.0):
            return False
        self._due[source] = monotonic + EVERY
        return True

    def note_date(self, source: str, date: str) -> None:
        """A `Date` (RFC 9110 §6.6.1) that has just come; one that cannot be read is none."""
        try:
            theirs = parsedate_to_datetime(date).timestamp()
        except (ValueError, TypeError, OverflowError):
            return
        ours = self._now()
        # Anything within its second.
        self.seconds[source] = min(max(ours, theirs), theirs + 1.0) - ours
