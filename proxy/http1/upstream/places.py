"""Whom a target's connections are for when they are scarce. Pure: takes `now`, monotonic seconds.

Rules, for targets of `FEW` connections at most:

1. The last one is not for a client that has all others, while other clients are there or were in
   the last `LATELY` seconds: its slow requests, or those that it has left behind, must not shut the
   target for all. A client that is alone has all of them.
2. At most half of them are held up by clients that take their answers slowly, while somebody waits
   for one: of those that have been held up for `HELD_UP` seconds the slowest is `unwanted` then.
3. Where places of requests whose clients have left are kept, these hold half at most while somebody
   waits: of those left for `HELD_UP` seconds the first is given up. The upstream may still work on
   it, so no more are given up than it has connections, until their time is over; and clients
   with requests that they have left have half of the places together, while others are there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.http1.upstream.pool import UpstreamStream

#: Of targets with fewer or more connections than these nobody is kept from the last one.
LEAST, FEW = 4, 64

#: Seconds.
LATELY, HELD_UP = 10.0, 0.2


@dataclass(slots=True)
class _HeldUp:
    """An answer that only its client holds up: `since` then it has taken `taken` bytes more."""

    since: float
    begun_at: int
    taken: int

    def rate(self, now: float) -> float:
        return (self.taken - self.begun_at) / max(now - self.since, HELD_UP)


class Places:
    """Of one target with `most` connections. `open_` are its connections, used or not."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.seen: object = None  # the client that asked last,
        self._others_until = 0.0  # and until when those before it count
        self.held_up: dict[UpstreamStream, _HeldUp] = {}
        self._half = max(1, most // 2)
        self._given_up: dict[object, list[float]] = {}  # by client, until when each may run

    # --- rule 1 -----------------------------------------------------------------------------------

    def saw(self, client: object, now: float) -> None:
        """Another client than the one `seen` last asks for a connection."""
        if self.seen is not None:
            self._others_until = now + LATELY
        self.seen = client

    def keeps_last_from(self, client: object, users: Iterable[object], now: float) -> bool:
        """Whether the last connection is not for `client`. `users` are those who use the others."""
        return not self._alone(client, now) and all(user == client for user in users)

    def _alone(self, client: object, now: float) -> bool:
        return client == self.seen and now >= self._others_until

    # --- rule 2 -----------------------------------------------------------------------------------

    def hold_up(self, stream: UpstreamStream, taken: int, now: float) -> float:
        """The client of `stream`, which has taken `taken` bytes by now, does not take more; when to
        say so again."""
        held = self.held_up.get(stream)
        if held is None:
            held = self.held_up[stream] = _HeldUp(now, taken, taken)
        held.taken = taken
        return max(now, held.since) + HELD_UP

    def flows(self, stream: UpstreamStream) -> None:
        """It is not held up any more, or over."""
        self.held_up.pop(stream, None)

    def unwanted(self, now: float) -> UpstreamStream | None:
        """The connection that makes way for somebody who waits, if one has to."""
        if len(self.held_up) <= self._half:
            return None
        held = [one for one in self.held_up.items() if now >= one[1].since + HELD_UP]
        if not held:
            return None
        slowest, _ = min(held, key=lambda one: one[1].rate(now))
        del self.held_up[slowest]
        return slowest

    # --- rule 3 -----------------------------------------------------------------------------------

    def gives_up(self, left_at: float, others: int, now: float) -> bool:
        """Whether the request whose client left first, at `left_at`, loses its place to somebody
        who waits; `others` have been left, too."""
        if others < self._half or now < left_at + HELD_UP:
            return False
        self._forget(now)
        return sum(map(len, self._given_up.values())) < self._most

    def give_up(self, client: object, until: float) -> None:
        """A request of `client`'s has lost its place; the upstream may work on it `until` then."""
        self._given_up.setdefault(client, []).append(until)

    def half_matters(self, left: int) -> bool:
        """Whether there may be clients that have half of the places; `left` requests were left and
        keep theirs."""
        return left >= self._half or bool(self._given_up)

    def keeps_half_from(
        self, client: object, users: Iterable[object], left: Collection[object], now: float
    ) -> bool:
        """Whether the other half is not for `client`. `users` are those who use connections, `left`
        the clients of requests that were left and keep theirs."""
        self._forget(now)
        given_up = self._given_up
        if (client not in given_up and client not in left) or self._alone(client, now):
            return False
        return sum(user in given_up or user in left for user in users) >= self._half

    def _forget(self, now: float) -> None:
        """What was given up long ago has come to its end."""
        for client, running in list(self._given_up.items()):
            running[:] = [until for until in running if until > now]
            if not running:
                del self._given_up[client]
