"""A mirror's maintenance: forward deletions, clean up, measure, find stranded jobs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from proxy.core.clock import iso_utc
from proxy.core.tasks import Work
from proxy.jobs.context import MirrorContext
from proxy.jobs.document import WAITING
from proxy.jobs.redis.session import RedisSession
from proxy.jobs.schedule import Daily
from proxy.jobs.store import sql
from proxy.jobs.store.records import Row
from proxy.jobs.store.schema import StoreSilent
from proxy.jobs.store.store import JobStore

log = logging.getLogger(__name__)

MEASURE_EVERY = 15.0  # seconds
PASS_ON_EVERY = 5.0  # seconds between two attempts to reach the app
PASS_ON_WAIT = 0.5  # seconds between two checks whether Redis is back
PASS_ON_BATCH = 100
CLEAN_UP_BATCH = 500
CLEAN_UP_PATIENCE = 10.0  # seconds for the commit of one batch
STRANDED_LIMIT = 1000
REPORTED_AT_ONCE = 20  # stranded jobs per turn of the event loop
GONE_REMEMBERED = 100_000

PassOn = Callable[[str], Awaitable[bool]]


class Gone:
    """IDs of jobs deleted through the proxy, in memory because every read checks them.

    Bounded: the oldest are dropped first; the store still knows them.
    """

    def __init__(self) -> None:
        self._job_ids: dict[str, None] = {}

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._job_ids

    def add(self, job_id: str) -> None:
        self._job_ids.pop(job_id, None)
        self._job_ids[job_id] = None
        if len(self._job_ids) > GONE_REMEMBERED:
            del self._job_ids[next(iter(self._job_ids))]

    def discard(self, job_id: str) -> None:
        self._job_ids.pop(job_id, None)


class Maintenance:
    """The maintenance of one mirror; each of `loops` runs as a task until cancelled."""

    def __init__(
        self,
        context: MirrorContext,
        store: JobStore,
        session: RedisSession,
    ) -> None:
        self.gone = Gone()
        self._emit = context.emit
        self.pass_on: PassOn | None = None
        self.unnotified = asyncio.Event()
        self._name = context.name
        self._settings = context.settings
        self._store = store
        self._session = session
        self._clock = context.clock
        self._metrics = context.metrics
        self._reported: set[str] = set()
        self._recalled = False

    async def recall(self) -> float | None:
        """Read back the deleted jobs and the time of the last clean-up; None if unknown."""
        try:
            meta = dict(await self._store.table(sql.META))
            held = await self._store.column(sql.HELD, (GONE_REMEMBERED,))
            unnotified = await self._store.column(sql.UNNOTIFIED, (GONE_REMEMBERED,))
        except StoreSilent:
            return None
        self._recalled = True
        for job_id in (*reversed(held), *unnotified):
            self.gone.add(job_id)
        if unnotified:
            self.unnotified.set()
        with suppress(KeyError, ValueError):
            return float(meta["cleaned_up"])
        return None

    def loops(self, last_clean_up: float | None) -> dict[str, Work]:
        """The background loops, by name."""
        daily = Daily(
            "clean-up",
            self._settings.cleanup_at,
            self._clean_up_if_possible,
            self._clock,
            last=last_clean_up,
        )
        return {
            "clean-up": daily.run,
            "measure": self._measure,
            "pass-on": self._pass_deletions_on,
        }

    # --- forwarding deletions --------------------------------------------------------------------

    async def _pass_deletions_on(self) -> None:
        while True:
            await self.unnotified.wait()
            if not self._session.whole:  # without Redis the app could only answer 404
                await asyncio.sleep(PASS_ON_WAIT)
                continue
            self.unnotified.clear()
            with suppress(StoreSilent):
                for job_id in await self._store.column(sql.UNNOTIFIED, (PASS_ON_BATCH,)):
                    if not await self._pass_one_on(job_id):
                        self.unnotified.set()
                        break
            await asyncio.sleep(PASS_ON_EVERY)

    async def _pass_one_on(self, job_id: str) -> bool:
        if self.pass_on is None or not await self.pass_on(job_id):
            return False
        self._store.passed_on(job_id)
        if not self._settings.hold_deletes:
            self.gone.discard(job_id)
        await self._store.flushed(1.0)
        self._session.capture.changes.fetch_next(job_id)
        log.info("deletion passed on", extra={"mirror": self._name, "job_id": job_id})
        return True

    # --- clean-up --------------------------------------------------------------------------------

    async def clean_up(self) -> int:
        """Remove jobs and tombstones that ended `keep_for` ago; returns how many. Raises
        `StoreSilent`."""
        before = self._clock.time() - self._settings.keep_for
        forgotten = 0
        while True:
            job_ids = await self._store.column(
                sql.OUTLIVED, {"before": before, "limit": CLEAN_UP_BATCH}
            )
            for job_id in job_ids:
                self._store.execute(sql.FORGET, {"job_id": job_id, "before": before}, key=job_id)
                self.gone.discard(job_id)
            if not await self._store.flushed(CLEAN_UP_PATIENCE):
                raise StoreSilent(self._store.degraded or "slow")
            forgotten += len(job_ids)
            if len(job_ids) < CLEAN_UP_BATCH:
                break
        self._store.set_meta("cleaned_up", repr(self._clock.time()))
        log.info("jobs cleaned up", extra={"mirror": self._name, "forgotten": forgotten})
        return forgotten

    async def _clean_up_if_possible(self) -> bool:
        try:
            await self.clean_up()
        except StoreSilent as silent:
            log.warning("clean-up postponed", extra={"mirror": self._name, "reason": str(silent)})
            return False
        return True

    # --- measuring -------------------------------------------------------------------------------

    async def _measure(self) -> None:
        while True:
            if not self._recalled:
                await self.recall()
            self._metrics.log.set(self._store.log_size)
            with suppress(StoreSilent):
                (rows,) = await self._store.column(sql.COUNT)
                self._metrics.rows.set(rows)
                await self._report(await self.stranded())
            await asyncio.sleep(MEASURE_EVERY)

    async def _report(self, stranded: list[Row]) -> None:
        self._metrics.stranded.set(len(stranded))
        new = [row for row in stranded if row.job_id not in self._reported]
        self._reported = {row.job_id for row in stranded}
        for number, row in enumerate(new, 1):
            facts: dict[str, object] = {
                "job_id": row.job_id,
                "status": row.status,
                "unchanged_since": iso_utc(row.captured_at),
            }
            log.warning("job stranded", extra={"mirror": self._name, **facts})
            self._emit("stranded", facts)
            if number % REPORTED_AT_ONCE == 0:
                await asyncio.sleep(0)

    async def stranded(self, limit: int = STRANDED_LIMIT) -> list[Row]:
        """Unfinished jobs on which nobody works, longest unchanged first.

        With `requeue`, a job is stranded as soon as no worker is seen to work on it, and a job that
        waits in the queue is not. Otherwise every unfinished job is stranded once it has not
        changed for `stranded_after`. Raises `StoreSilent`.
        """
        now = self._clock.time()
        requeue = self._session.requeue
        patience = self._settings.stranded_after
        if requeue is None:
            return await self._store.stranded(now - patience, now, limit)
        unattended = requeue.unattended
        rows = await self._store.stranded(now if unattended else now - patience, now, limit)
        return [
            row
            for row in rows
            if row.job_id in unattended
            or (row.captured_at < now - patience and row.status not in WAITING)
            or (row.captured_at < now - patience and row.job_id not in requeue.served)
        ]
