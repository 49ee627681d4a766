"""Listing jobs: the mirror answers if the app fails, is silent, or has no working Redis."""

from __future__ import annotations

from functools import partial
from urllib.parse import parse_qs

from proxy.core.errors import ProxyError
from proxy.forward.exchange import Exchange
from proxy.forward.fallbacks import reserve
from proxy.forward.routing.plan import Reply, Trouble
from proxy.jobs.answers import NoAnswer
from proxy.jobs.mirror import Mirror
from proxy.routes.jobs.common import ApiKeyCheck, reply_with, upstream_is_away


class ListsJobs:
    """Answers from the mirror where the app cannot."""

    needs_body = False

    def __init__(self, mirror: Mirror, door: ApiKeyCheck) -> None:
        self._mirror = mirror
        self._door = door

    def wants(self, exchange: Exchange, trouble: Trouble) -> bool:
        if exchange.method not in ("GET", "HEAD"):
            return False
        if isinstance(trouble, ProxyError):
            return upstream_is_away(trouble)
        return trouble.status >= 500 or (trouble.status == 200 and not self._mirror.redis_whole)

    async def fallback(self, exchange: Exchange, trouble: Trouble) -> Reply | None:
        found = await self.look(exchange, trouble)
        return None if isinstance(found, NoAnswer) else found

    async def look(self, exchange: Exchange, trouble: Trouble) -> Reply | NoAnswer | None:
        """Like `ReadsJob.look`."""
        if not self._door.admits(exchange, trouble):
            return None
        query = parse_qs(exchange.path.partition("?")[2])
        limit = query.get("limit", [""])[0]
        answer = await self._mirror.reads.listing(
            query.get("status", [None])[0],
            int(limit[:9]) if limit.isdecimal() else None,
            partial(reserve, exchange),
        )
        if answer is None and exchange.holding is not None:
            exchange.holding.clear()
        return NoAnswer() if answer is None else reply_with(answer)
