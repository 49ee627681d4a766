"""Time limits without timers: one periodic sweep over all streams instead of a timer for each.

Setting a timer costs microseconds several times per exchange; setting an attribute costs nothing.
The price is precision: a deadline fires up to one tick late.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol

from proxy.core.clock import Clock
from proxy.core.tasks import Supervised, Tasks
from proxy.http1.turns import Turns

_log = logging.getLogger(__name__)

NEVER = float("inf")

#: Seconds between two sweeps; 10,000 streams take well under a millisecond each time.
TICK = 0.05


class HasDeadline(Protocol):
    """Something that wants `on_deadline` called once `deadline` (monotonic seconds) is past."""

    deadline: float

    def on_deadline(self) -> None: ...


class Sweeper:
    """Calls `on_deadline` on every member whose deadline has passed, after resetting the deadline.

    `turns` shares the event loop among the members.
    """

    def __init__(self, clock: Clock, tasks: Tasks | None = None) -> None:
        self.turns = Turns(clock)
        self._tasks = tasks or Tasks()
        self._clock = clock
        self._members: set[HasDeadline] = set()
        self._sweeping: Supervised | None = None

    def add(self, member: HasDeadline) -> None:
        self._members.add(member)

    def discard(self, member: HasDeadline) -> None:
        self._members.discard(member)

    @property
    def members(self) -> Iterable[HasDeadline]:
        """All streams with deadlines."""
        return self._members

    def start(self) -> None:
        """Start sweeping on the running loop."""
        self.turns.start()
        self._sweeping = Supervised("deadlines", self._sweep_on, self._tasks, vital=True)
        self._sweeping.start()

    def stop(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None

    def sweep(self) -> None:
        """Call every member that is due now."""
        now = self._clock.monotonic()
        due = [member for member in self._members if member.deadline <= now]
        for member in due:
            member.deadline = NEVER
            try:
                member.on_deadline()
            except Exception:  # one member's bug must not disable the others' time limits
                _log.exception("time limit not applied")

    async def _sweep_on(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            self.sweep()
