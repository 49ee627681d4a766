"""Limits the concurrent requests to one upstream, with a short queue. Pure.

Rules
1. `enter` returns a ticket at once, running or waiting in a bounded queue. A full queue refuses.
2. `leave` must be called for every ticket, whatever became of it. It hands the slot to the ticket
   that has waited longest, and calls that ticket's `ready`.
3. A waiting ticket has a deadline. The caller, not a timer here, notices it and calls `refuse`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from proxy.config.upstreams import Bulkhead as BulkheadRules
from proxy.core.errors import Overloaded


class BulkheadTicket:
    """A place at an upstream: `waiting` until `ready` is called. `deadline` is when to give up."""

    __slots__ = ("deadline", "left", "ready", "waiting")

    def __init__(self, waiting: bool, deadline: float, ready: Callable[[], None]) -> None:
        self.waiting = waiting
        self.deadline = deadline
        self.ready = ready
        self.left = False


class Bulkhead:
    """The slots of the upstream `name`; `what` is the word for tticket users in error messages."""

    def __init__(self, name: str, rules: BulkheadRules, what: str = "requests") -> None:
        self.name = name
        self._what = what
        self.rules = rules
        self.running = 0
        self._queue: deque[BulkheadTicket] = deque()
        self.rejections = 0

    @property
    def waiting(self) -> int:
        """The length of the queue."""
        return len(self._queue)

    def configure(self, rules: BulkheadRules) -> None:
        """Apply new limits at a reload. Running requests stay; new slots go to waiting ones."""
        self.rules = rules
        self._hand_on()

    def enter(self, now: float, ready: Callable[[], None]) -> BulkheadTicket:
        """A ticket, running or waiting. Raises `Overloaded` when the queue is full too."""
        if self.running < self.rules.max_concurrent and not self._queue:
            self.running += 1
            return BulkheadTicket(False, now, ready)
        if len(self._queue) >= self.rules.queue:
            raise self._overloaded("queue_full", f"and {len(self._queue)} wait already")
        ticket = BulkheadTicket(True, now + self.rules.queue_timeout, ready)
        self._queue.append(ticket)
        return ticket

    def refuse(self, ticket: BulkheadTicket) -> Overloaded:
        """Remove a ticket whose deadline has passed; returns the error to raise."""
        self.leave(ticket)
        waited = f"none became free within {self.rules.queue_timeout:g}s"
        return self._overloaded("queue_timeout", waited)

    def leave(self, ticket: BulkheadTicket) -> None:
        """Return the place. Idempotent."""
        if ticket.left:
            return
        ticket.left = True
        if ticket.waiting:
            self._queue.remove(ticket)
            return
        self.running -= 1
        self._hand_on()

    def _hand_on(self) -> None:
        while self._queue and self.running < self.rules.max_concurrent:
            ticket = self._queue.popleft()
            ticket.waiting = False
            self.running += 1
            ticket.ready()

    def _overloaded(self, reason: str, why: str) -> Overloaded:
        self.rejections += 1
        limit = self.rules.max_concurrent
        return Overloaded(
            f"{limit} {self._what} to {self.name} are under way, the most allowed, {why}",
            retry_after=1.0,
            reason=reason,
            upstream=self.name,
            limit=limit,
        )
