"""Calls held at an open circuit instead of being refused. Pure: wakes them by callback.

Rules
1. First come, first served: a call that arrives while others wait queues behind them.
2. A free probe slot wakes one call (`wake`). A call that leaves without using its turn hands it on.
   The first call watches the clock, and hands that on too when it leaves.
3. When the circuit closes, the calls proceed a few at a time (`release`): a service that has just
   recovered must not get all of them in the same millisecond.
4. There are no timers here: the caller notices that it has waited long enough, and leaves.
"""

from __future__ import annotations

from collections.abc import Callable

#: Seconds between two groups of calls that are released when the circuit closes. In groups of
#: three, fifty calls are released within a second.
PACE = 0.05

NEVER = float("inf")


class Held:
    """One held call. It may ask for a permit from the monotonic second `turn` on."""

    __slots__ = ("ready", "turn")

    def __init__(self, ready: Callable[[], None]) -> None:
        self.ready = ready
        self.turn = NEVER


class HoldQueue:
    """All calls held at one breaker, in order of arrival."""

    def __init__(self) -> None:
        self._waiting: dict[Held, None] = {}
        self.total = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, ready: Callable[[], None]) -> Held:
        """Hold a call; `ready` is called when something changes. Owes a `leave`."""
        held = Held(ready)
        self._waiting[held] = None
        self.total += 1
        return held

    def is_first(self, held: Held) -> bool:
        """Whether it has waited longest."""
        return next(iter(self._waiting), None) is held

    def leave(self, held: Held) -> None:
        """Stop waiting. Idempotent."""
        if held not in self._waiting:
            return
        first = self.is_first(held)
        del self._waiting[held]
        if held.turn < NEVER:
            self.wake(1)
        elif first and self._waiting:
            next(iter(self._waiting)).ready()

    def wake(self, count: int) -> None:
        """Let the first `count` calls that have not been woken ask for a permit now."""
        for held in list(self._waiting):
            if count <= 0:
                return
            if held.turn == NEVER:
                held.turn = 0.0
                held.ready()
                count -= 1

    def release(self, now: float, group: int) -> None:
        """The circuit is closed: release all calls, `group` at a time."""
        for index, held in enumerate(self._waiting):
            held.turn = now + index // group * PACE
            held.ready()
