"""Reading a job: the app's answer where it can be believed, else the mirror's.

A 200 passes, unless the job was deleted through us. A 404 proves nothing: what the mirror holds is
put back into Redis and the app asked once more. Where that fails, where the app fails, or where it
is silent for `fallback_after`, the mirror answers. Where the mirror cannot look either, a 404
becomes 503 `store_away` as long as it may be untrue. An answer about an unfinished job also has its
place in the queue and when it will be done.
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
    """Answers for the app where its own answer cannot be believed, or does not come."""

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
            if not exchange.asked_again:  # its answer has fields of ours already
                exchange.added = self._mirror.reads.forecast(job_id)
            return False
        return trouble.status == 404 or trouble.status >= 500

    async def fallback(self, exchange: Exchange, trouble: Trouble) -> Reply | AskAgain | None:
        found = await self.look(exchange, trouble)
        return None if isinstance(found, NoAnswer) else found

    async def look(
        self, exchange: Exchange, trouble: Trouble
    ) -> Reply | AskAgain | NoAnswer | None:
        """As `fallback`, and `NoAnswer` where another look may find what this one could not."""
        job_id = exchange.parameters[self._parameter]
        exchange.added = b""  # the answer to a second question was no better: nothing was repaired
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
                said_404 = not isinstance(trouble, ProxyError) and trouble.status == 404
                again = (
                    said_404
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
