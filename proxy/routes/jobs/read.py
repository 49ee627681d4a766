"""Reading a job: the app's answer if it is reliable, else the mirror's.

A 200 passes unless the job was deleted through the proxy. A 404 proves nothing: the mirror restores
the job to Redis and the app is asked once more. If that fails, if the app fails, or if it is silent
for `fallback_after`, the mirror answers. If the mirror cannot look the job up either, a 404 that
may be wrong becomes 503 `store_away`. An answer about an unfinished job also tells its place in the
queue and when it will be done.
"""

from __future__ import annotations

from proxy.core.clock import iso_utc
from proxy.core.errors import JobExpired, ProxyError
from proxy.forward.exchange import Exchange
from proxy.forward.routing.plan import AskAgain, Reply, Trouble
from proxy.jobs.answers import Expired, Known, NoAnswer, Tombstoned
from proxy.jobs.mirror import Mirror
from proxy.routes.jobs.common import ApiKeyCheck, doubt, field_lines, reply_with, upstream_is_away


class ReadsJob:
    """Answers from the mirror where the app's own answer is unreliable or missing."""

    needs_body = False

    def __init__(self, mirror: Mirror, door: ApiKeyCheck, parameter: str) -> None:
        self._mirror = mirror
        self._door = door
        self._parameter = parameter

    def wants(self, exchange: Exchange, trouble: Trouble) -> bool:
        if exchange.method not in ("GET", "HEAD"):
            return False
        if isinstance(trouble, ProxyError):
            return upstream_is_away(trouble)
        if trouble.status == 200:
            job_id = exchange.parameters[self._parameter]
            if self._mirror.reads.is_gone(job_id):
                return True
            if not exchange.asked_again:  # else the fields have been added already
                exchange.added = self._mirror.reads.forecast(job_id)
            return False
        return trouble.status == 404 or trouble.status >= 500

    async def fallback(self, exchange: Exchange, trouble: Trouble) -> Reply | AskAgain | None:
        found = await self.look(exchange, trouble)
        return None if isinstance(found, NoAnswer) else found

    async def look(
        self, exchange: Exchange, trouble: Trouble
    ) -> Reply | AskAgain | NoAnswer | None:
        """Like `fallback`, but `NoAnswer` if a later lookup may find what this one could not."""
        job_id = exchange.parameters[self._parameter]
        exchange.added = b""  # the second answer was no better, so nothing was restored
        if not self._door.admits(exchange, trouble):
            return None
        match await self._mirror.reads.lookup(job_id):
            case Tombstoned():
                return reply_with(self._mirror.reads.not_found())
            case Expired(expired_at):
                raise JobExpired(
                    f"Job {job_id} expired at {iso_utc(expired_at)}", expired_at=iso_utc(expired_at)
                )
            case Known() as known:
                exchange.note(job_id=job_id)
                is_404 = not isinstance(trouble, ProxyError) and trouble.status == 404
                again = (
                    is_404
                    and not exchange.asked_again
                    and exchange.body.done
                    and not exchange.bytes_in
                )
                if again and await self._mirror.reads.revive(job_id):
                    fields = self._mirror.reads.headers("redis", known.as_of)
                    lines = field_lines(f for f in fields if f[0] != "Content-Type")
                    forecast = self._mirror.reads.forecast(job_id).split(b"\r\n")[1:]
                    return AskAgain((*lines, *forecast))
                answer = self._mirror.reads.app_answer(known)
                return None if answer is None else reply_with(answer)
            case NoAnswer() as silent:
                doubt(self._mirror, job_id, trouble)
                return silent
        return None
