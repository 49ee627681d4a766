"""Calls that wait at an open circuit instead of being refused. Pure: wakes by callback.

Rules
1. First come, first served: whoever comes while others wait queues behind them.
2. A free probe slot wakes one call (`wake`). A call that leaves without having used its turn passes
   it on, and so does the first one, whose part it is to watch the clock.
3. When the circuit closes, the calls go a few at a time (`release`): a service that has just come
   back must not meet all of them in the same millisecond.
4. Nobody's time is kept here: the caller notices that it has waited long enough, and leaves.
"""

from __future__ import annotations

from collections.abc import Callable

#: Seconds between two groups of calls that go when the circuit has closed. With groups of three,
#: fifty calls are on their way within a second.
PACE = 0.05

NEVER = float("inf")


class Held:
    """One waiting call. It may ask for its permit from the monotonic second `turn` on."""

    __slots__ = ("ready", "turn")

    def __init__(self, ready: Callable[[], None]) -> None:
        self.ready = ready
        self.turn = NEVER


class HoldQueue:
    """All calls that wait at one breaker, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: dict[Held, None] = {}
        self.total = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, ready: Callable[[], None]) -> Held:
        """Wait; `ready` is called when there is something to see. Owes a `leave`."""
        held = Held(ready)
        self._waiting[held] = None
        self.total += 1
        return held

    def is_first(self, held: Held) -> bool:
        """Whether nobody has waited longer."""
        return next(iter(self._waiting), None) is held

    def leave(self, held: Held) -> None:
        """Wait no longer. A second time does nothing."""
        if held not in self._waiting:
            return
        first = self.is_first(held)
        del self._waiting[held]
        if held.turn < NEVER:
            self.wake(1)
        elif first and self._waiting:
            next(iter(self._waiting)).ready()

    def wake(self, count: int) -> None:
        """Let the first `count` that are not awake yet ask for a permit now."""
        for held in list(self._waiting):
            if count <= 0:
                return
            if held.turn == NEVER:
                held.turn = 0.0
                held.ready()
                count -= 1

    def release(self, now: float, group: int) -> None:
        """The circuit is closed: let all go, `group` at a time."""
        for index, held in enumerate(self._waiting):
            held.turn = now + index // group * PACE
            held.ready()
