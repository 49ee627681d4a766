"""Who waits for a connection to a target, and whose turn it is. Pure.

Rules
1. Routes take turns: one whose requests are slow, or many, keeps those of others waiting for one of
   them, not for all.
2. On a route clients take turns: each has one request in a round, its next one in the next round
   (start-time fair queueing).
3. Where the line is full, the last of the route that has most waiting gives way, and of those the
   last of who has most waiting.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.http1.client import ClientStream
    from proxy.http1.upstream.pool import TargetPool, UpstreamStream


class ConnectionRequest:
    """A place in the line: `stream` or `error` is set when its turn comes."""

    __slots__ = ("error", "fresh", "owner", "pool", "round", "route", "stream")

    def __init__(
        self, pool: TargetPool, owner: ClientStream, *, fresh: bool = False, route: str = ""
    ) -> None:
        self.pool = pool
        self.owner = owner
        self.fresh = fresh  # only a connection that has carried nothing yet will do
        self.route = route
        self.round = 0  # in which it is served (rule 2)
        self.stream: UpstreamStream | None = None
        self.error: Exception | None = None

    @property
    def pending(self) -> bool:
        return self.stream is None and self.error is None


def client_of(owner: ClientStream) -> object:
    """Who it is (`ClientStream.who`)."""
    return owner.who


class ConnectionQueue(deque[ConnectionRequest]):
    """In the order of rounds."""

    def __init__(self) -> None:
        super().__init__()
        self._round = 0  # of the last one that was served
        self._turn = 0  # of the route that was served last,
        self._turns: dict[str, int] = {}  # and of each route that waits

    def enter(
        self, ticket: ConnectionRequest, *, left_behind: int, full: bool
    ) -> ConnectionRequest | None:
        """Let `ticket` wait. `left_behind`: requests of its client that hold places without it. The
        one that gives way where the line is `full` is returned; that may be itself."""
        who = client_of(ticket.owner)
        latest = max((one.round for one in self if client_of(one.owner) == who), default=0)
        ticket.round = max(self._round + left_behind, latest) + 1
        last = self._last(ticket) if full else None
        if last is ticket:
            return ticket
        if last is not None:
            self.remove(last)
        if all(one.route != ticket.route for one in self):
            self._turns[ticket.route] = max(self._turn, self._turns.get(ticket.route, 0))
        at = len(self)
        while at and self[at - 1].round > ticket.round:
            at -= 1
        self.insert(at, ticket)
        return last

    def _last(self, ticket: ConnectionRequest) -> ConnectionRequest:
        """Who gives way to `ticket` (rule 3)."""
        waiting = Counter(one.route for one in self)
        waiting[ticket.route] += 1
        most = max(waiting.values())
        of_most = [one for one in self if waiting[one.route] == most]
        if not of_most:
            return ticket
        last = of_most[-1]
        return last if waiting[ticket.route] < most or last.round > ticket.round else ticket

    def first(
        self, may: Callable[[ConnectionRequest], bool] | None = None
    ) -> ConnectionRequest | None:
        """Whose turn it is, of those that `may` have one."""
        first, turn = None, 0
        for ticket in self:
            if (first is None or self._turns[ticket.route] < turn) and (may is None or may(ticket)):
                first, turn = ticket, self._turns[ticket.route]
        return first

    def serve(self, ticket: ConnectionRequest) -> None:
        """It has had its turn."""
        self.remove(ticket)
        self._round = max(self._round, ticket.round)
        self._turn = max(self._turn, self._turns[ticket.route])
        self._turns[ticket.route] += 1
        if not self:
            self._turns.clear()
            self._turn = 0
