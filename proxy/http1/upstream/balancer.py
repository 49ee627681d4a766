"""Chooses between the targets of an upstream."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from proxy.http1.client import ClientStream
from proxy.http1.upstream.connection import UpstreamStream
from proxy.http1.upstream.pool import TargetPool


class Upstream:
    """Chooses between the targets of one upstream."""

    def __init__(self, name: str, pools: Sequence[TargetPool], random: Random) -> None:
        self.name = name
        self.pools = tuple(pools)
        self._random = random
        self._only = pools[0] if len(pools) == 1 else None
        self._turn: TargetPool | None = None  # chosen, but had no idle connection

    def checkout(
        self, owner: ClientStream, usable: Sequence[str] | None = None
    ) -> UpstreamStream | None:
        """An idle connection to the chosen target. If it has none, it stays chosen for the next
        call; otherwise targets with idle connections would get more than their share."""
        if self._only is not None:
            return self._only.checkout(owner)
        pool = self.choose((), usable)
        stream = pool.checkout(owner)
        if stream is None:
            self._turn = pool
        return stream

    def choose(
        self, tried: Sequence[TargetPool] = (), usable: Sequence[str] | None = None
    ) -> TargetPool:
        """The less busy of two random targets, preferring those not yet `tried` and those whose
        label is in `usable`; if it is full, the least busy of all.

        Two choices avoid the herd effect of always taking the least busy (Mitzenmacher, 2001).
        """
        if self._only is not None:
            return self._only
        turn, self._turn = self._turn, None
        if turn is not None and turn not in tried and (usable is None or turn.label in usable):
            return turn
        left = [pool for pool in self.pools if pool not in tried] or list(self.pools)
        if usable is not None:
            left = [pool for pool in left if pool.label in usable] or left
        if len(left) == 1:
            return left[0]
        one, other = self._random.sample(left, 2)
        chosen = one if one.outstanding <= other.outstanding else other
        return min(left, key=lambda pool: pool.outstanding) if chosen.full else chosen

    def close(self) -> None:
        for pool in self.pools:
            pool.close()

    async def wait_closed(self) -> None:
        for pool in self.pools:
            await pool.wait_closed()
