"""Callers that wait for a probe lease from Redis. Pure.

A lease arrives a round trip after the request for it. A caller refused meanwhile might return only
a minute later, long after its lease has been given back, and so never get one. Therefore a caller
may wait briefly for the reply (forward/admission.py defines how long).
"""

from __future__ import annotations

from collections.abc import Callable


class Caller:
    """One waiting caller: `waiting` until the reply calls `ready`."""

    __slots__ = ("ready", "waiting")

    def __init__(self, ready: Callable[[], None]) -> None:
        self.waiting = True
        self.ready = ready


class Callers:
    """All callers that wait at one breaker."""

    def __init__(self) -> None:
        self._waiting: dict[Caller, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, ready: Callable[[], None]) -> Caller:
        """Start waiting. Owes a `leave`."""
        caller = Caller(ready)
        self._waiting[caller] = None
        return caller

    def leave(self, caller: Caller) -> None:
        """Stop waiting. Idempotent."""
        self._waiting.pop(caller, None)

    def answer(self) -> None:
        """Redis has replied, or will not: let every caller ask the breaker for a permit."""
        answered, self._waiting = self._waiting, {}
        for caller in answered:
            caller.waiting = False
            caller.ready()
