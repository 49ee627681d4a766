"""When a daily task is due, whatever the clocks do on that day, and the loop that runs it.

A time of day that is skipped when clocks go forward counts as the moment after the gap; one that
comes twice counts the first time only. A run that was missed while the process was down is made up
once. `tz` None is the process's own time zone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, time, timedelta, tzinfo

from proxy.core.clock import Clock
from proxy.core.waiting import happened

log = logging.getLogger(__name__)

LONGEST_NAP = 30.0  # seconds: the wall clock may be set while we wait


def next_run(after: float, at: tuple[int, int], tz: tzinfo | None) -> float:
    """The first moment later than `after` (Unix seconds) at which it is `at` (hour, minute)."""
    day = datetime.fromtimestamp(after, tz).date() - timedelta(days=1)
    while True:
        # fold=0: the first of two; in a gap, the offset from before it, thus a moment behind it.
        moment = datetime.combine(day, time(*at), tz)
        # Through UTC: arithmetic within one zone would ignore its changes.
        candidate = moment.astimezone(UTC).timestamp()
        if candidate > after:
            return candidate
        day += timedelta(days=1)


def is_due(last: float | None, now: float, at: tuple[int, int], tz: tzinfo | None) -> bool:
    """Whether a run is owed at `now` when the last one was at `last`; a first start owes none."""
    return last is not None and next_run(last, at, tz) <= now


class Daily:
    """Runs `work` once a day. `last` is when it last ran (Unix seconds), None if never."""

    def __init__(
        self,
        name: str,
        at: tuple[int, int],
        work: Callable[[], Awaitable[bool]],
        clock: Clock,
        *,
        last: float | None = None,
        tz: tzinfo | None = None,
        nap: float = LONGEST_NAP,
    ) -> None:
        self.name = name
        self.last = last
        self._at = at
        self._work = work
        self._clock = clock
        self._tz = tz
        self._nap = nap
        self._stop = asyncio.Event()

    @property
    def next(self) -> float:
        """When the work is due next, in Unix seconds; in the past while it is overdue."""
        return next_run(self.last or self._clock.time(), self._at, self._tz)

    async def run(self) -> None:
        """Run the work whenever it is due; if it returns False, try again."""
        if self.last is None:
            self.last = self._clock.time()
        while not self._stop.is_set():
            now = self._clock.time()
            if is_due(self.last, now, self._at, self._tz) and await self._work():
                self.last = now
            # A clock set back must not postpone the work by as much.
            self.last = min(self.last, now)
            until_next = self.next - now
            nap = min(self._nap, until_next) if until_next > 0 else self._nap
            await happened(self._stop, nap)

    def stop(self) -> None:
        self._stop.set()
