"""Whether anything happens around a mirror's jobs: while nothing does, Redis is asked rarely.

Ten thousand idle sidecars on one Redis must not keep it busy with questions whose answers nobody
needs. What needs no question is noticed as ever: changes and flushes are pushed over the
connection, and so is its end. A hung server is noticed some seconds later while nothing happens,
and at once when something does. Pure.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.core.clock import Clock

QUIET = 60.0
"""Seconds without a change, a creation or a question, after which a mirror is idle."""


class Activity:
    """`stir()` when something happens. `random` gives 0 <= x < 1: a fleet must not ask in step."""

    def __init__(self, clock: Clock, random: Callable[[], float]) -> None:
        self._clock = clock
        self._random = random
        self._last = clock.monotonic()
        self._share = random()

    def stir(self) -> None:
        """Something happened."""
        self._last = self._clock.monotonic()

    @property
    def idle(self) -> bool:
        """Whether nothing has happened for `QUIET` seconds."""
        return self._clock.monotonic() - self._last >= QUIET

    def due(self, since: float, busy: float, idle: float) -> bool:
        """Whether it is time to ask again what was last asked at `since`, monotonic: after `busy`
        seconds, or about `idle` seconds while nothing happens."""
        waited = self._clock.monotonic() - since
        if not self.idle:
            return waited >= busy
        if waited < idle * (0.75 + 0.5 * self._share):
            return False
        self._share = self._random()  # one draw a wait: with many, the shortest would win
        return True
