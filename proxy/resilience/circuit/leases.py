"""Callers who wait for the fleet's word on a probe lease. Pure.

A lease comes from Redis, a round trip after it was asked for. A caller that is refused meanwhile
and comes again only in a minute would never meet its lease, which is given back before. So a caller
may wait for the answer, a moment (forward/attempts.py says how long).
"""

from __future__ import annotations

from collections.abc import Callable


class Caller:
    """Someone who waits: `waiting`, until the answer calls `ready`."""

    __slots__ = ("ready", "waiting")

    def __init__(self, ready: Callable[[], None]) -> None:
        self.waiting = True
        self.ready = ready


class Callers:
    """All who wait at one breaker."""

    def __init__(self) -> None:
        self._waiting: dict[Caller, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, ready: Callable[[], None]) -> Caller:
        """Wait. Owes a `leave`."""
        caller = Caller(ready)
        self._waiting[caller] = None
        return caller

    def leave(self, caller: Caller) -> None:
        """Wait no longer. A second time does nothing."""
        self._waiting.pop(caller, None)

    def answer(self) -> None:
        """The fleet has spoken, or will not: everybody asks the breaker for a permit now."""
        answered, self._waiting = self._waiting, {}
        for caller in answered:
            caller.waiting = False
            caller.ready()
