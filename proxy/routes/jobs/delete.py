"""Deleting a job: a tombstone keeps it deleted, and an app that was down is notified later.

A 404 is treated as for reads.
"""

from __future__ import annotations

from proxy.core.errors import ProxyError
from proxy.forward.exchange import Exchange
from proxy.forward.routing.plan import Reply, Trouble
from proxy.jobs.answers import Known, NoAnswer, Tombstoned
from proxy.jobs.mirror import Mirror
from proxy.routes.jobs.common import ApiKeyCheck, doubt, reply_with, upstream_is_away


class DeletesJob:
    """Records a tombstone for each deletion, whether or not the app was reachable."""

    needs_body = False

    def __init__(self, mirror: Mirror, door: ApiKeyCheck, parameter: str) -> None:
        self._mirror = mirror
        self._door = door
        self._parameter = parameter

    def wants(self, exchange: Exchange, trouble: Trouble) -> bool:
        if exchange.method != "DELETE":
            return False
        if isinstance(trouble, ProxyError):
            return upstream_is_away(trouble)
        return trouble.status < 300 or trouble.status == 404 or trouble.status >= 500

    async def fallback(self, exchange: Exchange, trouble: Trouble) -> Reply | None:
        job_id = exchange.parameters[self._parameter]
        exchange.note(job_id=job_id)
        if not isinstance(trouble, ProxyError) and trouble.status < 300:
            await self._mirror.tombstone(job_id, app_notified=True)
            return None
        if not self._door.admits(exchange, trouble):
            return None
        match await self._mirror.reads.lookup(job_id):
            case Tombstoned():
                return reply_with(self._mirror.reads.not_found())
            case Known():
                pass
            case NoAnswer():
                doubt(self._mirror, job_id, trouble)
                return None
            case _:
                return None
        # The app's 404 shows that it has nothing left to delete, provided that it could look.
        notified = not isinstance(trouble, ProxyError) and trouble.status == 404
        notified = notified and self._mirror.redis_whole
        if not await self._mirror.tombstone(job_id, app_notified=notified):
            doubt(self._mirror, job_id, trouble)
            return None
        return reply_with(self._mirror.reads.deleted_answer(job_id))
