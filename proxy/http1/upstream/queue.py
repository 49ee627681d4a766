"""The queue for connections to a target, fair between routes and clients. Pure.

Rules
1. Routes take turns: a route with slow or many requests delays another route by one of them, not by
   all.
2. Within a route, clients take turns: each has one request per round (start-time fair queueing).
3. When the queue is full, the route with the most waiting requests loses the last of them: that of
   the client with the most waiting.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.http1.client import ClientStream
    from proxy.http1.upstream.connection import UpstreamStream
    from proxy.http1.upstream.pool import TargetPool


class ConnectionRequest:
    """A place in the queue: `stream` or `error` is set when its turn comes."""

    __slots__ = ("error", "fresh", "owner", "pool", "round", "route", "stream")

    def __init__(
        self, pool: TargetPool, owner: ClientStream, *, fresh: bool = False, route: str = ""
    ) -> None:
        self.pool = pool
        self.owner = owner
        self.fresh = fresh  # needs a connection that has not been used
        self.route = route
        self.round = 0  # in which it is served (rule 2)
        self.stream: UpstreamStream | None = None
        self.error: Exception | None = None

    @property
    def pending(self) -> bool:
        return self.stream is None and self.error is None


def client_of(owner: ClientStream) -> object:
    """The client behind a connection (`ClientStream.who`)."""
    return owner.who


class ConnectionQueue(deque[ConnectionRequest]):
    """Waiting requests in the order of their rounds."""

    def __init__(self) -> None:
        super().__init__()
        self._round = 0  # of the request served last
        self._turn = 0  # of the route served last
        self._turns: dict[str, int] = {}  # of each waiting route

    def enter(
        self, ticket: ConnectionRequest, *, left_behind: int, full: bool
    ) -> ConnectionRequest | None:
        """Add `ticket`. `left_behind` is the number of requests that its client has abandoned and
        that still hold places. If the queue is `full`, returns the request that loses its place,
        which may be `ticket` itself."""
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
        """The request that loses its place to `ticket` (rule 3)."""
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
        """The request whose turn it is, among those for which `may` is true."""
        first, turn = None, 0
        for ticket in self:
            if (first is None or self._turns[ticket.route] < turn) and (may is None or may(ticket)):
                first, turn = ticket, self._turns[ticket.route]
        return first

    def serve(self, ticket: ConnectionRequest) -> None:
        """Remove `ticket`, which has its turn now."""
        self.remove(ticket)
        self._round = max(self._round, ticket.round)
        self._turn = max(self._turn, self._turns[ticket.route])
        self._turns[ticket.route] += 1
        if not self:
            self._turns.clear()
            self._turn = 0
