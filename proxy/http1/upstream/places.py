"""Shares a target's connections when they are scarce. Pure: takes `now`, monotonic seconds.

Rules, for targets with at most `FEW` connections:

1. A client that uses all other connections does not get the last one while other clients are
   active, or were in the last `LATELY` seconds: its slow or abandoned requests must not block the
   target for all. A client that is alone may use all of them.
2. Slow requests leave the last connection to others, too: a client with a request that holds its
   connection for longer than `SLOW`, or did in the last `LATELY` seconds, does not get the last one
   while other clients are active. So what is quick at the upstream does not wait for what is slow,
   whoever else is slow.
3. Slow readers and tunnels hold at most half of the connections while somebody waits: of those
   that have for `HELD_UP` seconds, the slowest becomes `unwanted`.
4. Where abandoned requests keep their places, they hold at most half while somebody waits: of those
   abandoned for `HELD_UP` seconds, the oldest is given up. The upstream may still work on it, so no
   more are given up than there are connections, until their time is over. Clients with abandoned
   requests share half of the places while others are active.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.http1.upstream.connection import UpstreamStream

#: With fewer or more connections than these, the last one is not reserved.
LEAST, FEW = 4, 64

#: Seconds.
LATELY, HELD_UP, SLOW = 10.0, 0.2, 0.2

#: Clients with slow requests that are remembered.
_MOST_SLOW = 4096


@dataclass(slots=True)
class _HeldUp:
    """A response held up by its client alone. Since the monotonic second `since`, the client has
    taken the bytes from `begun_at` to `taken`."""

    since: float
    begun_at: int
    taken: int

    def rate(self, now: float) -> float:
        return (self.taken - self.begun_at) / max(now - self.since, HELD_UP)


class Places:
    """The sharing rules for one target with `most` connections."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.seen: object = None  # the client that asked last
        self._others_until = 0.0  # until when clients before it count as active
        self.held_up: dict[UpstreamStream, _HeldUp] = {}
        self._half = max(1, most // 2)
        self._slow: dict[object, float] = {}  # clients, and until when they count as slow
        self._given_up: dict[object, list[float]] = {}  # by client: until when each may still run

    # --- rules 1 and 2 --------------------------------------------------------------------------

    def saw(self, client: object, now: float) -> None:
        """A client other than `seen` asks for a connection."""
        if self.seen is not None:
            self._others_until = now + LATELY
        self.seen = client

    def was_slow(self, client: object, now: float) -> None:
        """A request of `client` has held a connection for longer than `SLOW`."""
        self._slow.pop(client, None)  # the dict is in order of time
        self._slow[client] = now + LATELY
        while len(self._slow) > _MOST_SLOW or next(iter(self._slow.values())) <= now:
            del self._slow[next(iter(self._slow))]

    def keeps_last_from(
        self, client: object, users: Iterable[tuple[object, float]], now: float
    ) -> bool:
        """Whether `client` is refused the last connection. `users` are the clients of the others,
        with the seconds at which their requests got them."""
        if self._alone(client, now):
            return False
        if self._slow.get(client, now) > now:
            return True
        users = list(users)
        own = [since for user, since in users if user == client]
        return len(own) == len(users) or any(now - since > SLOW for since in own)

    def _alone(self, client: object, now: float) -> bool:
        return client == self.seen and now >= self._others_until

    # --- rule 3 -----------------------------------------------------------------------------------

    def hold_up(self, stream: UpstreamStream, taken: int, now: float) -> float:
        """The client of `stream` has taken `taken` bytes and takes no more now. Returns when to
        report again."""
        held = self.held_up.get(stream)
        if held is None:
            held = self.held_up[stream] = _HeldUp(now, taken, taken)
        held.taken = taken
        return max(now, held.since) + HELD_UP

    def flows(self, stream: UpstreamStream) -> None:
        """The client reads again, or the exchange is over."""
        self.held_up.pop(stream, None)

    def unwanted(self, now: float) -> UpstreamStream | None:
        """The slowest reader's connection, if one must be freed for a waiting caller."""
        if len(self.held_up) <= self._half:
            return None
        held = [one for one in self.held_up.items() if now >= one[1].since + HELD_UP]
        if not held:
            return None
        slowest, _ = min(held, key=lambda one: one[1].rate(now))
        del self.held_up[slowest]
        return slowest

    # --- rule 4 -----------------------------------------------------------------------------------

    def gives_up(self, left_at: float, others: int, now: float) -> bool:
        """Whether the oldest abandoned request, left at `left_at`, loses its place to a waiting
        caller. `others` is the number of other abandoned requests."""
        if others < self._half or now < left_at + HELD_UP:
            return False
        self._forget(now)
        return sum(map(len, self._given_up.values())) < self._most

    def give_up(self, client: object, until: float) -> None:
        """An abandoned request of `client` has lost its place; the upstream may work on it until
        `until`."""
        self._given_up.setdefault(client, []).append(until)

    def half_matters(self, left: int) -> bool:
        """Whether the limit of half the places may apply; `left` abandoned requests keep theirs."""
        return left >= self._half or bool(self._given_up)

    def keeps_half_from(
        self, client: object, users: Iterable[object], left: Collection[object], now: float
    ) -> bool:
        """Whether `client` is refused because clients with abandoned requests use half of the
        places. `users` are the clients of all connections, `left` those of abandoned requests."""
        self._forget(now)
        given_up = self._given_up
        if (client not in given_up and client not in left) or self._alone(client, now):
            return False
        return sum(user in given_up or user in left for user in users) >= self._half

    def _forget(self, now: float) -> None:
        """Forget requests that were given up and whose time is over."""
        for client, running in list(self._given_up.items()):
            running[:] = [until for until in running if until > now]
            if not running:
                del self._given_up[client]
