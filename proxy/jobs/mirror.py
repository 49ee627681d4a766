"""One mirror: the API that routes and the admin endpoints use.

Redis or SQLite trouble raises nothing here unless a docstring says so, and every wait has a limit.
An answer that is not available in time is reported as such (`None`, `DEGRADED`) and counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from typing import Any, Literal

from proxy.config.mirrors import Mirror as MirrorConfig
from proxy.core.clock import Clock, iso_utc
from proxy.core.errors import JobNotStored, StoreAway
from proxy.core.tasks import Supervised
from proxy.core.vitals import Vitals
from proxy.jobs.document import (
    UNKNOWN_STATUS,
    JobDocument,
    as_json,
    deleted_body,
    job_body,
    list_body,
    not_found_body,
    parse,
    valid_job_id,
)
from proxy.jobs.events import EventSink, discard_event
from proxy.jobs.maintenance import Maintenance, PassOn
from proxy.jobs.metrics import JobMetrics
from proxy.jobs.queue.queue import JobQueue
from proxy.jobs.queue.watch import follow_queue, recall_queue
from proxy.jobs.redis.active_jobs import ActiveJobs
from proxy.jobs.redis.connection import CaptureMode, ClientFactory, CommandRefused, RedisLost
from proxy.jobs.redis.restore_rules import RestoreCounts
from proxy.jobs.redis.session import RedisSession
from proxy.jobs.requeue.broker import BrokerRefused
from proxy.jobs.requeue.evidence import Judgement
from proxy.jobs.requeue.starter import CannotRequeue, Requeued
from proxy.jobs.store import sql
from proxy.jobs.store.idempotency_records import AnswerStore
from proxy.jobs.store.inspection import LIST_SIZE, Inspection, at_most
from proxy.jobs.store.records import Row, Tombstone
from proxy.jobs.store.schema import StoreSilent
from proxy.jobs.store.store import JobStore
from proxy.jobs.video_metrics.counting import EventCounting
from proxy.jobs.video_metrics.lease import lease_key
from proxy.jobs.waiting import settled

log = logging.getLogger(__name__)

COMMIT_PATIENCE = 0.25  # seconds that a creation may wait for the SQLite commit
LOOK_AGAIN = 0.05  # seconds between two checks for a created job's key
READ_PATIENCE = 0.5  # seconds that a read may wait for the store or for Redis
TOMBSTONE_PATIENCE = 0.5
DOWN_RETRY_AFTER = 5.0


class Creation(StrEnum):
    """The outcome of a creation that the app accepted."""

    CONFIRMED = "confirmed"  # in Redis, and committed in SQLite
    NOT_STORED = "not_stored"  # not in Redis, or Redis is down: lost, although the app accepted it
    UNCONFIRMED = "unconfirmed"  # Redis is up but too slow to answer: we trust the app's answer
    DEGRADED = "degraded"  # in Redis; SQLite could not confirm it in time


#: Job lists read concurrently for clients: each takes a few MB until it is sent.
_LISTS = 4

#: Rows of a list processed per turn of the event loop.
_ROWS_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Known:
    """A live job as stored; `as_of` is when this version was captured, in Unix seconds."""

    snapshot: JobDocument
    row: Row
    as_of: float


@dataclass(frozen=True, slots=True)
class Tombstoned:
    """A deleted job. `deleted_at` is in Unix seconds; `origin` is `client`, or `redis` for a DEL
    that the mirror observed."""

    deleted_at: float
    origin: str


@dataclass(frozen=True, slots=True)
class Expired:
    """A job whose TTL ran out at `expired_at`, in Unix seconds."""

    expired_at: float


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """The store did not answer in time, so it may or may not have the job."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response in the app's own format."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Mirror:
    """Mirrors one family of job keys. `await start()`, use, `await stop()`."""

    def __init__(
        self,
        name: str,
        settings: MirrorConfig,
        factory: ClientFactory,
        metrics: JobMetrics,
        clock: Clock,
        *,
        mode: CaptureMode = "tracking",
        key_prefix: str = "",
        emit: EventSink = discard_event,
        vitals: Vitals | None = None,
    ) -> None:
        vitals = vitals or Vitals()
        self.name = name
        self._registry = vitals.tasks
        self._emit = emit
        self.settings = settings
        self._clock = clock
        self._lists = asyncio.Semaphore(_LISTS)
        self._metrics = metrics.for_mirror(name)
        self._store = JobStore(
            settings.sqlite,
            clock,
            vitals.tasks,
            keep_versions=settings.keep_versions,
            on_gap=self._fill_gap,
            on_commit=self._committed,
            on_degraded=self._store_degraded,
        )
        self._session = RedisSession(
            name,
            settings,
            factory,
            self._store,
            clock,
            self._metrics,
            mode=mode,
            key_prefix=key_prefix,
            emit=emit,
            vitals=vitals,
            counting_key=None
            if settings.job_metrics is None
            else lease_key(settings.key.replace("{job_id}", ""), key_prefix),
        )
        self._maintenance = Maintenance(
            name, settings, self._store, self._session, clock, self._metrics, emit
        )
        self.answers = AnswerStore(
            settings.key.replace("{job_id}", ""),
            self._store,
            lambda: self._session.link if self.redis_up else None,
            lambda: self.redis_whole,
            clock,
            key_prefix=key_prefix,
        )
        self.active = ActiveJobs(
            settings.key.replace("{job_id}", ""),
            lambda: self._session.link if self.redis_up else None,
            clock,
            idle=settings.stranded_after,
            key_prefix=key_prefix,
        )
        self.queue: JobQueue | None = None
        if settings.forecast is not None:
            self.queue = JobQueue(
                settings.forecast, clock, self._metrics.queue(), self._connected_workers
            )
        self.on_version: Callable[[JobDocument], None] | None = None
        self._session.capture.on_version = self._version_seen
        self._session.capture.on_deleted = self._job_ended
        self.inspection = Inspection(self._store, self._maintenance, clock)
        self._was_degraded = False
        self._counting: EventCounting | None = None
        if settings.job_metrics is not None:
            self._counting = self._session.capture.counting = EventCounting(
                name,
                settings,
                settings.job_metrics,
                self._store,
                lambda: self._session.link,
                clock,
                metrics.pipeline,
                key_prefix=key_prefix,
                activity=self._session.activity,
            )
        self._tasks: list[Supervised] = []
        self._refuse_until = float("-inf")
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
        self._session.fill_gap(reason)
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

    # --- creating --------------------------------------------------------------------------------

    @property
    def store_problem(self) -> str | None:
        """Why Redis cannot be used now, in its own words; for operators, not for clients."""
        return (
            self._session.why if self._session.state != "live" else self._session.refusing
        ) or None

    def creation_refusal(self) -> JobNotStored | None:
        """Why no job can be accepted now; None when one can. No I/O."""
        session = self._session
        session.activity.touch()
        if session.state != "live":
            self._metrics.creation("refused")
            return JobNotStored(
                "The job store is not reachable, so the job would be lost; try again",
                retry_after=DOWN_RETRY_AFTER,
                reason="redis_down",
            )
        if session.refusing is not None:
            self._metrics.creation("refused")
            return JobNotStored(
                "The job store is not accepting writes "
                f"({session.refusing.partition(' ')[0]}), so the job would be lost; try again",
                retry_after=DOWN_RETRY_AFTER,
                reason="redis_refuses_writes",
            )
        left = self._refuse_until - self._clock.monotonic()
        if left > 0:
            self._metrics.creation("refused")
            return JobNotStored(
                "The job store is back, but the service is not using it again yet; try again",
                retry_after=left,
                reason="app_breaker_open",
            )
        return None

    def app_is_down(self) -> None:
        """The app refuses connections. Its next process will start with a closed breaker."""
        self._refuse_until = float("-inf")

    def not_stored(self) -> JobNotStored:
        """The error that replaces an acceptance which proved wrong or cannot be trusted."""
        if self._session.state != "live":
            return JobNotStored(
                "The job store became unreachable before the job was seen in it; try again",
                retry_after=DOWN_RETRY_AFTER,
                reason="redis_down",
            )
        left = self._refuse_until - self._clock.monotonic()
        return JobNotStored(
            "The service accepted the job but did not store it; try again",
            retry_after=left if left > 0 else DOWN_RETRY_AFTER,
            reason="key_missing",
        )

    def unreadable_creation(self) -> None:
        """Count an acceptance whose body has no readable job ID, so nothing could be confirmed."""
        self._metrics.creation("unreadable")

    async def confirm_created(self, job_id: str, timeout: float = 0.5) -> Creation:  # noqa: ASYNC109
        """Wait until an accepted job is in Redis and committed to SQLite (for up to 0.25 s).

        A key that is still missing `timeout` seconds from now was not stored. If Redis does not
        answer at all, we wait for `confirm_within` seconds in total.
        """
        result = await self._confirm(job_id, timeout)
        self._metrics.creation(result)
        if result is Creation.NOT_STORED:
            back_at = self._session.back_at
            if back_at is not None:
                # The app's breaker opened no later than Redis came back.
                until = back_at + self.settings.app_breaker
                if until > self._clock.monotonic():
                    self._refuse_until = until
        if result is not Creation.CONFIRMED:
            log.error(
                "accepted job not confirmed",
                extra={
                    "mirror": self.name,
                    "job_id": job_id[:128],
                    "result": result,
                    "key": self.settings.key,
                },
            )
        return result

    def _stopped(self) -> bool:
        """Whether the session ended because a successor has taken over the store."""
        return self._session.state == "stopped"

    async def _confirm(self, job_id: str, within: float) -> Creation:
        if not valid_job_id(job_id):
            return Creation.DEGRADED  # the mirror cannot store such an ID
        if self._stopped():
            return Creation.UNCONFIRMED
        capture = self._session.capture
        began = time.monotonic()
        sighting = capture.changes.watch(job_id)
        try:
            while not await settled(sighting.seen, LOOK_AGAIN):
                if self._stopped():
                    return Creation.UNCONFIRMED
                missing = sighting.missing
                if missing is not None and missing >= began + within:
                    if await self._session.leads_to_master():
                        return Creation.NOT_STORED
                    sighting.missing = None  # that server is no longer the master
                if time.monotonic() >= began + max(within, self.settings.confirm_within):
                    silent = self._session.state == "live" and sighting.missing is None
                    return Creation.UNCONFIRMED if silent else Creation.NOT_STORED
                capture.changes.fetch_next(job_id)
            if not await settled(sighting.kept, COMMIT_PATIENCE):
                return Creation.DEGRADED
            return Creation.CONFIRMED if sighting.kept.result() else Creation.DEGRADED
        finally:
            capture.changes.unwatch(job_id, sighting)

    def input_measured(self, job_id: str, seconds: float) -> None:
        """Record the playing time of a job's upload: the app's documents may not contain it."""
        if self._counting is not None and valid_job_id(job_id):
            self._counting.measured(job_id, seconds)

    # --- reading ---------------------------------------------------------------------------------

    def is_gone(self, job_id: str) -> bool:
        """Whether the job was deleted through the proxy and must stay deleted. No I/O."""
        return job_id in self._maintenance.gone

    async def lookup(self, job_id: str) -> Known | Tombstoned | Expired | NoAnswer | None:
        """What the mirror knows about a job; None when it knows nothing."""
        self._session.activity.touch()
        if not valid_job_id(job_id):
            return None
        found: Row | Tombstone | None
        silent = False
        try:
            async with asyncio.timeout(READ_PATIENCE):
                found = await self._store.get(job_id)
        except (StoreSilent, TimeoutError):
            found, silent = None, True
        if isinstance(found, Tombstone):
            return Tombstoned(found.deleted_at, found.origin)
        if job_id in self._maintenance.gone:
            return Tombstoned(self._clock.time(), "client")
        row = self._store.unwritten(job_id) or found
        if row is None:
            return NoAnswer() if silent else None
        if row.deadline is not None and row.deadline <= self._clock.time():
            return Expired(row.deadline)
        return Known(parse(job_id, row.raw), row, row.captured_at)

    def absence_unknown(self, job_id: str) -> StoreAway | None:
        """The error that replaces the app's 404 while our store does not answer; None if the 404
        can be trusted, because Redis is complete and the app can read it."""
        back_at = self._session.back_at
        # The app's breaker keeps it from reading Redis for a while after Redis is back.
        until = 0.0 if back_at is None else back_at + self.settings.app_breaker
        left = until - self._clock.monotonic()
        if self._session.whole and left <= 0:
            return None
        return StoreAway(
            f"Cannot tell whether job {job_id} exists right now; try again",
            retry_after=DOWN_RETRY_AFTER,
            reason="store_silent",
        )

    async def revive(self, job_id: str) -> bool:
        """Restore a live job if it is missing in Redis; returns whether it is there now."""
        known = await self.lookup(job_id)
        if not isinstance(known, Known):
            return False
        try:
            async with asyncio.timeout(READ_PATIENCE):
                return await self._session.put_one_back(known.row)
        except (RedisLost, TimeoutError):
            return False

    def forecast(self, job_id: str) -> bytes:
        """Header lines about the job's place in the queue, each preceded by a CRLF. No I/O."""
        return b"" if self.queue is None else self.queue.fields(job_id)

    def app_answer(self, known: Known) -> Answer | None:
        """The response to `GET /jobs/{id}`, in the format of the app version that wrote the job;
        None for an unreadable value."""
        body = job_body(known.snapshot)
        if body is None:
            return None
        fields = self.headers("sqlite", known.as_of)
        if self.queue is not None:
            fields += self.queue.field_pairs(known.snapshot.job_id)
        return Answer(200, fields, body)

    def headers(
        self, source: Literal["redis", "sqlite"], as_of: float
    ) -> tuple[tuple[str, str], ...]:
        """Headers of a response built here (`sqlite`) or read from Redis after a repair."""
        return (
            ("Content-Type", "application/json"),
            ("X-Job-Source", source),
            ("X-Job-As-Of", iso_utc(as_of)),
        )

    def not_found(self) -> Answer:
        """The app's 404 response."""
        fields = (("Content-Type", "application/json"),)
        return Answer(404, fields, not_found_body(self._session.capture.shape))

    async def listing(
        self,
        status: str | None,
        limit: int | None,
        reserve: Callable[[int], None] | None = None,
    ) -> Answer | None:
        """The response to `GET /jobs` in the app's format, newest job first; None when the store
        does not answer. A header marks a list that was cut because it would be too large. `reserve`
        is called with the size in bytes before the documents are read; what it raises passes."""
        most = at_most(limit)
        try:
            async with self._lists:
                rows, cut = await self._store.listing_within(
                    status, self._clock.time(), most, LIST_SIZE, reserve
                )
                cut = cut or (limit is not None and limit > most == len(rows))
                return await self._list_of(rows, cut)
        except StoreSilent:
            return None

    async def _list_of(self, rows: list[Row], cut: bool) -> Answer:
        shape = self._session.capture.shape
        values = []
        for number, row in enumerate(rows, 1):
            if number % _ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)
            if row.job_id in self._maintenance.gone:
                continue
            if row.status == UNKNOWN_STATUS and parse(row.job_id, row.raw).shape == "opaque":
                continue  # not JSON: it would break the whole list
            values.append(as_json(row.raw))
        as_of = self._session.known_until
        if self._session.state == "live":
            as_of = self._clock.time()
        elif as_of is None:  # this process has never reached Redis
            as_of = max((row.captured_at for row in rows), default=0.0)
        fields = self.headers("sqlite", as_of)
        if cut:
            fields = (*fields, ("X-Job-List-Capped", "true"))
        return Answer(200, fields, list_body(shape, values))

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

    def deleted_answer(self, job_id: str) -> Answer:
        """The app's response to a successful `DELETE`, for one that is forwarded later."""
        fields = (("Content-Type", "application/json"), ("X-Job-Source", "sqlite"))
        return Answer(200, fields, deleted_body(self._session.capture.shape, job_id))

    # --- admin -----------------------------------------------------------------------------------

    async def clean_up(self) -> int:
        """Remove jobs that ended `keep_for` ago; returns how many. Raises `StoreSilent`."""
        return await self._maintenance.clean_up()

    async def sync(self) -> dict[str, Any]:
        """Compare Redis and the store in full. Raises `RedisLost`, `CommandRefused`,
        `StoreSilent`."""
        compared = await self._session.sync()
        last = self._session.last_sync
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
            "obstacle": session.obstacle,
            "sqlite": "degraded" if self._store.degraded else "ok",
            "sqlite_reason": self._store.degraded,
            "backlog": self._store.backlog,
            "last_sync": iso_utc(session.last_sync) if session.last_sync else None,
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
            "evicted": session.capture.evictions.total,
            "oddities": dict(counts.oddities),
        }
