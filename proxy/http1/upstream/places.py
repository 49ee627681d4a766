"""Whom a target's connections are for when they are scarce. Pure: takes `now`, monotonic seconds.

Rules, for targets of `FEW` connections at most:

1. The last one is not for a client that has all others, while other clients are there or were in
   the last `LATELY` seconds: its slow requests, or those that it has left behind, must not shut the
   target for all. A client that is alone has all of them.
2. At most half of them are held up by clients that take their answers slowly, while somebody waits
   for one: of those that have been held up for `HELD_UP` seconds the slowest is `unwanted` then.
"""

from __future__ import annotations

from collections.abc import Iterable
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

    # --- rule 1 -----------------------------------------------------------------------------------

    def saw(self, client: object, now: float) -> None:
        """Another client than the one `seen` last asks for a connection."""
        if self.seen is not None:
            self._others_until = now + LATELY
        self.seen = client

    def keeps_last_from(self, client: object, users: Iterable[object], now: float) -> bool:
        """Whether the last connection is not for `client`. `users` are those who use the others."""
        if client == self.seen and now >= self._others_until:
            return False
        return all(user == client for user in users)

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
        if len(self.held_up) <= max(1, self._most // 2):
            return None
        held = [one for one in self.held_up.items() if now >= one[1].since + HELD_UP]
        if not held:
            return None
        slowest, _ = min(held, key=lambda one: one[1].rate(now))
        del self.held_up[slowest]
        return slowest
