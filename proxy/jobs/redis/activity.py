"""Whether a mirror's jobs are active: while idle, the mirror polls Redis rarely. Pure.

Ten thousand idle sidecars must not keep one Redis busy with polls that nobody needs. Pushed
changes, pushed flushes and the end of the connection are noticed as quickly as ever. Only a hung
server is noticed later while idle; the first activity reveals it at once.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.core.clock import Clock

QUIET = 60.0
"""Seconds without a change, a creation or a read, after which a mirror is idle."""


class Activity:
    """Call `touch()` on activity. `random` returns 0 <= x < 1, so that a fleet does not poll in
    step."""

    def __init__(self, clock: Clock, random: Callable[[], float]) -> None:
        self._clock = clock
        self._random = random
        self._last = clock.monotonic()
        self._share = random()

    def touch(self) -> None:
        """Record activity."""
        self._last = self._clock.monotonic()

    @property
    def idle(self) -> bool:
        """Whether nothing has happened for `QUIET` seconds."""
        return self._clock.monotonic() - self._last >= QUIET

    def due(self, since: float, busy: float, idle: float) -> bool:
        """Whether a poll last done at `since` (monotonic) is due: after `busy` seconds, or after
        about `idle` seconds while idle."""
        waited = self._clock.monotonic() - since
        if not self.idle:
            return waited >= busy
        if waited < idle * (0.75 + 0.5 * self._share):
            return False
        self._share = self._random()  # one draw per wait: of many draws the shortest would win
        return True
