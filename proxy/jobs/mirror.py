"""One mirror: its parts put together, and the API that routes and the admin endpoints use.

Redis or SQLite trouble raises nothing here unless a docstring says so, and every wait has a limit.
An answer that is not available in time is reported as such (`None`, `DEGRADED`) and counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

from proxy.config.mirrors import Mirror as MirrorConfig
from proxy.core.clock import Clock, iso_utc
from proxy.core.tasks import Supervised
from proxy.core.vitals import Vitals
from proxy.core.waiting import settled
from proxy.jobs.context import EventSink, MirrorContext, discard_event
from proxy.jobs.creations import Creations
from proxy.jobs.document import (
    JobDocument,
    valid_job_id,
)
from proxy.jobs.maintenance import Maintenance, PassOn
from proxy.jobs.metrics import JobMetrics
from proxy.jobs.queue.queue import JobQueue
from proxy.jobs.queue.watch import follow_queue, recall_queue
from proxy.jobs.reads import Reads
from proxy.jobs.redis.active_jobs import ActiveJobs
from proxy.jobs.redis.connection import CommandRefused, RedisAccess, RedisLost
from proxy.jobs.redis.restore_rules import RestoreCounts
from proxy.jobs.redis.session import RedisSession
from proxy.jobs.requeue.broker import BrokerRefused
from proxy.jobs.requeue.evidence import Judgement
from proxy.jobs.requeue.starter import CannotRequeue, Requeued
from proxy.jobs.store import sql
from proxy.jobs.store.idempotency_records import AnswerStore
from proxy.jobs.store.inspection import Inspection
from proxy.jobs.store.schema import StoreSilent
from proxy.jobs.store.store import JobStore
from proxy.jobs.video_metrics.counting import EventCounting
from proxy.jobs.video_metrics.lease import lease_key

log = logging.getLogger(__name__)

TOMBSTONE_PATIENCE = 0.5  # seconds that a deletion may wait for the SQLite commit


class Mirror:
    """Mirrors one family of job keys. `await start()`, use, `await stop()`."""

    def __init__(
        self,
        name: str,
        settings: MirrorConfig,
        access: RedisAccess,
        metrics: JobMetrics,
        clock: Clock,
        *,
        emit: EventSink = discard_event,
        vitals: Vitals | None = None,
    ) -> None:
        vitals = vitals or Vitals()
        context = MirrorContext(
            name, settings, clock, metrics.for_mirror(name), emit, access.key_prefix, vitals
        )
        self.name = name
        self._registry = vitals.tasks
        self._emit = emit
        self.settings = settings
        self._clock = clock
        self._metrics = context.metrics
        self._store = JobStore(
            settings.sqlite,
            clock,
            vitals.tasks,
            on_gap=self._fill_gap,
            on_commit=self._committed,
            on_degraded=self._store_degraded,
        )
        self._session = RedisSession(
            context,
            access,
            self._store,
            counting_key=None
            if settings.job_metrics is None
            else lease_key(context.family, access.key_prefix),
        )
        self._maintenance = Maintenance(context, self._store, self._session)
        self.answers = AnswerStore(
            context.family,
            self._store,
            lambda: self._session.link if self.redis_up else None,
            lambda: self.redis_whole,
            clock,
            key_prefix=access.key_prefix,
        )
        self.active = ActiveJobs(
            context.family,
            lambda: self._session.link if self.redis_up else None,
            clock,
            idle=settings.stranded_after,
            key_prefix=access.key_prefix,
        )
        self.queue: JobQueue | None = None
        if settings.forecast is not None:
            self.queue = JobQueue(
                settings.forecast, clock, self._metrics.queue(), self._connected_workers
            )
        self.creations = Creations(context, self._session)
        self.reads = Reads(
            settings, self._store, self._session, self._maintenance.gone, self.queue, clock
        )
        self.on_version: Callable[[JobDocument], None] | None = None
        self._session.capture.on_version = self._version_seen
        self._session.capture.on_deleted = self._job_ended
        self.inspection = Inspection(self._store, self._maintenance, clock)
        self._was_degraded = False
        self._counting: EventCounting | None = None
        if settings.job_metrics is not None:
            self._counting = self._session.capture.counting = EventCounting(
                context,
                settings.job_metrics,
                self._store,
                lambda: self._session.link,
                metrics.pipeline,
                activity=self._session.activity,
            )
        self._tasks: list[Supervised] = []
        self.commits = 0  #: transactions committed to SQLite since the start

    def _committed(self, _operations: int) -> None:
        self.commits += 1
        self._metrics.commits.inc()

    def _version_seen(self, snapshot: JobDocument) -> None:
        self.active.changed(snapshot.job_id, snapshot.status)
        if self.queue is not None or self.on_version is not None:
            try:
                if self.on_version is not None:
                    self.on_version(snapshot)
                if self.queue is not None:
                    self.queue.changed(snapshot)
            except Exception:  # a defect in a listener must not keep a version from being stored
                log.exception("job version listener failed", extra={"job_id": snapshot.job_id})

    def _job_ended(self, job_id: str) -> None:
        self.active.ended(job_id)
        if self.queue is not None:
            self.queue.ended(job_id)

    def _connected_workers(self) -> int | None:
        requeue = self._session.requeue
        return None if requeue is None or not self.redis_up else requeue.connected_workers

    # --- lifecycle -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the store and start following Redis. Does not wait for Redis."""
        self._session.first_contact.clear()
        await self._store.start()
        loops = self._maintenance.loops(await self._maintenance.recall())
        loops["session"] = self._session.run
        loops["active"] = self.active.run
        await self._recall_active()
        if self.queue is not None:
            await recall_queue(self.queue, self._store, self._clock)
            loops["queue"] = partial(follow_queue, self.queue)
        if self._counting is not None:
            await self._counting.begin()
            loops["counting"] = self._counting.run
        for loop, work in loops.items():
            self._tasks.append(
                Supervised(f"mirror:{self.name}:{loop}", work, self._registry).start()
            )

    async def _recall_active(self) -> None:
        since = self._clock.time() - self.settings.stranded_after
        with suppress(StoreSilent):
            for job_id, status in await self._store.table(sql.BEING_WORKED_ON, (since,)):
                self.active.changed(job_id, status)

    def _store_degraded(self, reason: str | None) -> None:
        self._metrics.degraded("sqlite", reason is not None)
        if reason is not None:
            self._emit("sqlite_degraded", {"reason": reason})
        elif self._was_degraded:
            self._emit("sqlite_back", {})
        self._was_degraded = reason is not None

    async def first_contact(self) -> None:
        """Wait until Redis has answered, or failed to, for the first time."""
        await self._session.first_contact.wait()

    async def stop(self) -> None:
        """Stop all tasks, write what is queued and close the store."""
        await asyncio.gather(*(task.stop() for task in self._tasks))
        self._tasks.clear()
        await self._store.stop()

    def _fill_gap(self, reason: str) -> None:
        self._session.reconciler.fill_gap(reason)
        self._emit("gap", {"reason": reason})
        if self._counting is not None:
            self._counting.store_has_gap()

    @property
    def redis_up(self) -> bool:
        """Whether Redis answers now. While it does not, a 404 from the app proves nothing."""
        return self._session.state == "live"

    @property
    def redis_whole(self) -> bool:
        """Whether Redis answers and holds everything that we know of. Otherwise lists from it are
        incomplete and a 404 proves nothing."""
        return self._session.whole

    def pass_deletions_to(self, pass_on: PassOn) -> None:
        """Set the callback that forwards the deletion of a job to the app once it is back.

        It gets the job ID and returns whether the app knows of the deletion; a 404 counts as yes.
        """
        self._maintenance.pass_on = pass_on

    @property
    def store_problem(self) -> str | None:
        """Why Redis cannot be used now, in its own words; for operators, not for clients."""
        return (
            self._session.why if self._session.state != "live" else self._session.refusing
        ) or None

    def input_measured(self, job_id: str, seconds: float) -> None:
        """Record the playing time of a job's upload: the app's documents may not contain it."""
        if self._counting is not None and valid_job_id(job_id):
            self._counting.measured(job_id, seconds)

    # --- deleting --------------------------------------------------------------------------------

    async def tombstone(self, job_id: str, *, app_notified: bool) -> bool:
        """Record a client's deletion of a job; returns whether the tombstone is committed.

        `app_notified`: the app has processed it. Otherwise it is forwarded later. The deletion
        takes effect in this process at once.
        """
        if not valid_job_id(job_id):
            return False
        hold = self.settings.hold_deletes
        if hold or not app_notified:
            self._maintenance.gone.add(job_id)
        committed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def done(ok: bool) -> None:
            if not committed.done():
                committed.set_result(ok)
            # A worker may have written the job between the deletion and the tombstone.
            self._session.capture.changes.fetch_next(job_id)
            if not app_notified:
                self._maintenance.unnotified.set()

        self._job_ended(job_id)
        self._store.mark_deleted(job_id, "client", held=hold, pass_on=not app_notified, done=done)
        return await settled(committed, TOMBSTONE_PATIENCE) and committed.result()

    # --- admin -----------------------------------------------------------------------------------

    async def clean_up(self) -> int:
        """Remove jobs that ended `keep_for` ago; returns how many. Raises `StoreSilent`."""
        return await self._maintenance.clean_up()

    async def sync(self) -> dict[str, Any]:
        """Compare Redis and the store in full. Raises `RedisLost`, `CommandRefused`,
        `StoreSilent`."""
        compared = await self._session.sync()
        last = self._session.reconciler.last_sync
        return {
            "mirror": self.name,
            "last_sync": iso_utc(last) if last else None,
            **asdict(compared),
        }

    async def restore(self) -> RestoreCounts:
        """Restore every live job that is missing in Redis. Raises the same as `sync`."""
        return await self._session.restore()

    async def requeue(self, job_id: str, *, reason: str, force: bool) -> Requeued:
        """Requeue a job by hand. Raises `CannotRequeue` and the same as `sync`."""
        requeuer, link = self._session.requeue, self._session.link
        if requeuer is None:
            raise CannotRequeue("the mirror has no `requeue` section, so its messages are unknown")
        if link is None:
            raise RedisLost(self._session.why)
        try:
            return await requeuer.requeue(link, job_id, reason=reason, force=force)
        except BrokerRefused as refused:
            raise CommandRefused(f"refuses to read or write the broker: {refused}") from refused

    def judgement(self, job_id: str) -> Judgement | None:
        """Evidence of who works on an unfinished job; None without `requeue`."""
        return None if self._session.requeue is None else self._session.requeue.judgement(job_id)

    def state(self) -> dict[str, Any]:
        """The mirror's state, for `/api/jobs` and `/readyz`."""
        session = self._session
        counts = session.capture.counts
        last = session.restorer.last
        last_sync = session.reconciler.last_sync
        return {
            "mirror": self.name,
            "redis": session.state,
            "whole": session.whole,
            "reason": session.why or None,
            "since": iso_utc(session.since),
            "capture": session.link.mode if session.link else None,
            "writes": session.refusing or "ok",
            "missing_rights": [str(right) for right in session.missing_rights],
            "restoring": session.restorer.under_way,
            "obstacle": session.reconciler.obstacle,
            "sqlite": "degraded" if self._store.degraded else "ok",
            "sqlite_reason": self._store.degraded,
            "backlog": self._store.backlog,
            "last_sync": iso_utc(last_sync) if last_sync else None,
            "last_restore": None
            if last is None
            else {
                "cause": last.cause,
                "restored": last.restored,
                "kept": last.kept,
                "seconds": round(last.seconds, 3),
            },
            "counting": self._counting.counts if self._counting is not None else None,
            "queue": self.queue.state.facts() if self.queue is not None else None,
            "requeue": session.requeue.state() if session.requeue is not None else None,
            "captured": counts.captured,
            "deleted": counts.deleted,
            "evicted": session.capture.absences.evictions.total,
            "oddities": dict(counts.oddities),
        }
