"""One mirror, as the routes and the admin API see it.

Nothing here raises for trouble with Redis or SQLite, and every wait has a limit: what cannot be
known in time is answered as such (`None`, `DEGRADED`), and counted.
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
from proxy.jobs.events import Tell, silence
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

COMMIT_PATIENCE = 0.25  # seconds that a creation may wait for SQLite
LOOK_AGAIN = 0.05  # seconds between two looks for a created job's key
READ_PATIENCE = 0.5  # seconds that a read may wait for the store or for Redis
TOMBSTONE_PATIENCE = 0.5
DOWN_RETRY_AFTER = 5.0


class Creation(StrEnum):
    """What became of a job that the app said it accepted."""

    CONFIRMED = "confirmed"  # in Redis, and committed in SQLite
    NOT_STORED = "not_stored"  # not in Redis, or Redis is gone: lost, whatever the app said
    UNCONFIRMED = "unconfirmed"  # Redis lives, but is too slow to say: the app's word stands
    DEGRADED = "degraded"  # in Redis; SQLite could not confirm it in time


#: Lists for clients that are read at a time: each takes some MB until it is sent.
_LISTS = 4

#: Rows of a list that are looked at in one turn of the event loop.
_ROWS_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Known:
    """A live job as the mirror holds it; `as_of` is when this version was seen, Unix seconds."""

    snapshot: JobDocument
    row: Row
    as_of: float


@dataclass(frozen=True, slots=True)
class Tombstoned:
    """A deleted job; Unix seconds. `origin`: `client`, or `redis` for a DEL that was seen."""

    deleted_at: float
    origin: str


@dataclass(frozen=True, slots=True)
class Expired:
    """A job whose time ended at `expired_at`, Unix seconds."""

    expired_at: float


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """The store did not answer in time: the job may be one that it holds."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer in the app's own form."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Mirror:
    """One family of job keys. `await start()`, work, `await stop()`."""

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
        tell: Tell = silence,
        vitals: Vitals | None = None,
    ) -> None:
        vitals = vitals or Vitals()
        self.name = name
        self._registry = vitals.tasks
        self._tell = tell
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
            tell=tell,
            vitals=vitals,
            counting_key=None
            if settings.job_metrics is None
            else lease_key(settings.key.replace("{job_id}", ""), key_prefix),
        )
        self._maintenance = Maintenance(
            name, settings, self._store, self._session, clock, self._metrics, tell
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
        self.commits = 0  #: groups of changes that are in SQLite, since the start

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
            except Exception:  # a version is stored whatever the queue makes of it
                log.exception("job not followed", extra={"job_id": snapshot.job_id})

    def _job_ended(self, job_id: str) -> None:
        self.active.ended(job_id)
        if self.queue is not None:
            self.queue.ended(job_id)

    def _connected_workers(self) -> int | None:
        requeue = self._session.requeue
        return None if requeue is None or not self.redis_up else requeue.connected_workers

    # --- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the store and begin to follow Redis; returns without waiting for Redis."""
        self._session.first_word.clear()
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
        for duty, work in loops.items():
            self._tasks.append(
                Supervised(f"mirror:{self.name}:{duty}", work, self._registry).start()
            )

    async def _recall_active(self) -> None:
        since = self._clock.time() - self.settings.stranded_after
        with suppress(StoreSilent):
            for job_id, status in await self._store.table(sql.BEING_WORKED_ON, (since,)):
                self.active.changed(job_id, status)

    def _store_degraded(self, reason: str | None) -> None:
        self._metrics.degraded("sqlite", reason is not None)
        if reason is not None:
            self._tell("sqlite_degraded", {"reason": reason})
        elif self._was_degraded:
            self._tell("sqlite_back", {})
        self._was_degraded = reason is not None

    async def first_word(self) -> None:
        """Until it is known whether Redis answers."""
        await self._session.first_word.wait()

    async def stop(self) -> None:
        """End all tasks, write what is queued, close."""
        await asyncio.gather(*(task.stop() for task in self._tasks))
        self._tasks.clear()
        await self._store.stop()

    def _fill_gap(self, reason: str) -> None:
        self._session.fill_gap(reason)
        self._tell("gap", {"reason": reason})
        if self._counting is not None:
            self._counting.store_has_gap()

    @property
    def redis_up(self) -> bool:
        """Whether Redis answers now: while it does not, the app's 404 says nothing about a job."""
        return self._session.state == "live"

    @property
    def redis_whole(self) -> bool:
        """Whether Redis answers and nothing that it lost is still to be put back: while it is not
        whole, a list from it lacks jobs and a 404 says nothing."""
        return self._session.whole

    def pass_deletions_to(self, pass_on: PassOn) -> None:
        """Whom to call with the id of a job that was deleted while the app was away.

        It returns whether the app has been told; its 404 counts as told.
        """
        self._maintenance.pass_on = pass_on

    # --- creating --------------------------------------------------------------------------------

    @property
    def store_problem(self) -> str | None:
        """What Redis last said, while it cannot be used; for operators, not for callers."""
        return (
            self._session.why if self._session.state != "live" else self._session.refusing
        ) or None

    def creation_refusal(self) -> JobNotStored | None:
        """Why no job can be accepted now; None when one can. Costs nothing."""
        session = self._session
        session.activity.stir()
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
                "The job store takes no jobs now "
                f"({session.refusing.partition(' ')[0]}), so the job would be lost; try again",
                retry_after=DOWN_RETRY_AFTER,
                reason="redis_refuses_writes",
            )
        left = self._refuse_until - self._clock.monotonic()
        if left > 0:
            self._metrics.creation("refused")
            return JobNotStored(
                "The job store is back, but the service does not use it again yet; try again",
                retry_after=left,
                reason="app_breaker_open",
            )
        return None

    def app_is_down(self) -> None:
        """The app takes no connections: the process that comes next has its breaker closed."""
        self._refuse_until = float("-inf")

    def not_stored(self) -> JobNotStored:
        """The answer instead of an acceptance that proved untrue, or cannot be relied on."""
        if self._session.state != "live":
            return JobNotStored(
                "The job store went away before the job was seen in it; try again",
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
        """An accepting answer named no job: nothing could be confirmed."""
        self._metrics.creation("unreadable")

    async def confirm_created(self, job_id: str, timeout: float = 0.5) -> Creation:  # noqa: ASYNC109
        """Wait until an accepted job is in Redis and in SQLite (0.25 s).

        A key that Redis says is missing, still so `timeout` seconds from now, is not stored. No
        answer says nothing: it is waited for, `confirm_within` seconds in all.
        """
        result = await self._confirm(job_id, timeout)
        self._metrics.creation(result)
        if result is Creation.NOT_STORED:
            back_at = self._session.back_at
            if back_at is not None:
                # The app's breaker opened before Redis came back, at the latest.
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
        """Whether a successor has the store: then nobody here can look any more."""
        return self._session.state == "stopped"

    async def _confirm(self, job_id: str, within: float) -> Creation:
        if not valid_job_id(job_id):
            return Creation.DEGRADED  # not an id that the mirror could ever hold
        if self._stopped():
            return Creation.UNCONFIRMED
        capture = self._session.capture
        began = time.monotonic()
        sighting = capture.named.watch(job_id)
        try:
            while not await settled(sighting.seen, LOOK_AGAIN):
                if self._stopped():
                    return Creation.UNCONFIRMED
                missing = sighting.missing
                if missing is not None and missing >= began + within:
                    if await self._session.leads_to_master():
                        return Creation.NOT_STORED
                    sighting.missing = None  # the word of a server that is the master no more
                if time.monotonic() >= began + max(within, self.settings.confirm_within):
                    silent = self._session.state == "live" and sighting.missing is None
                    return Creation.UNCONFIRMED if silent else Creation.NOT_STORED
                capture.named.look_at(job_id)
            if not await settled(sighting.kept, COMMIT_PATIENCE):
                return Creation.DEGRADED
            return Creation.CONFIRMED if sighting.kept.result() else Creation.DEGRADED
        finally:
            capture.named.unwatch(job_id, sighting)

    def input_measured(self, job_id: str, seconds: float) -> None:
        """The upload that became this job plays so long: the app's documents may not tell."""
        if self._counting is not None and valid_job_id(job_id):
            self._counting.measured(job_id, seconds)

    # --- reading ---------------------------------------------------------------------------------

    def is_gone(self, job_id: str) -> bool:
        """Whether the job was deleted through us and must look so. Costs nothing."""
        return job_id in self._maintenance.gone

    async def lookup(self, job_id: str) -> Known | Tombstoned | Expired | NoAnswer | None:
        """What the mirror knows; None: nothing."""
        self._session.activity.stir()
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

    def cannot_tell(self, job_id: str) -> StoreAway | None:
        """What to say instead of the app's 404 while the store is silent; None where the 404 may
        be believed: the app could look into a Redis that has everything."""
        back_at = self._session.back_at
        # The app's breaker makes it blind for a while after Redis is back.
        until = 0.0 if back_at is None else back_at + self.settings.app_breaker
        left = until - self._clock.monotonic()
        if self._session.whole and left <= 0:
            return None
        return StoreAway(
            f"Whether there is a job {job_id} cannot be told now; try again",
            retry_after=DOWN_RETRY_AFTER,
            reason="store_silent",
        )

    async def revive(self, job_id: str) -> bool:
        """Whether a live job is in Redis now: put back if it was missing, else left as it is."""
        known = await self.lookup(job_id)
        if not isinstance(known, Known):
            return False
        try:
            async with asyncio.timeout(READ_PATIENCE):
                return await self._session.put_one_back(known.row)
        except (RedisLost, TimeoutError):
            return False

    def forecast(self, job_id: str) -> bytes:
        """Field lines about the job's place in the queue, a CRLF before each. A look-up."""
        return b"" if self.queue is None else self.queue.fields(job_id)

    def app_answer(self, known: Known) -> Answer | None:
        """`GET /jobs/{id}` as the app of that version answers it; None for an unreadable value."""
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
        """The fields of an answer that we made, or (`redis`) that came after a repair of ours."""
        return (
            ("Content-Type", "application/json"),
            ("X-Job-Source", source),
            ("X-Job-As-Of", iso_utc(as_of)),
        )

    def not_found(self) -> Answer:
        """The app's own 404."""
        fields = (("Content-Type", "application/json"),)
        return Answer(404, fields, not_found_body(self._session.capture.shape))

    async def listing(
        self,
        status: str | None,
        limit: int | None,
        reserve: Callable[[int], None] | None = None,
    ) -> Answer | None:
        """`GET /jobs` as the app answers it, the newest first; None when the store is silent. One
        that is shorter than was asked for, because it would be too large, says so in a field.
        `reserve` is called with the bytes that it will take, before it takes them; what it raises
        is raised."""
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
                continue  # no JSON: it would spoil the whole list
            values.append(as_json(row.raw))
        as_of = self._session.known_until
        if self._session.state == "live":
            as_of = self._clock.time()
        elif as_of is None:  # this process has not seen Redis yet
            as_of = max((row.captured_at for row in rows), default=0.0)
        fields = self.headers("sqlite", as_of)
        if cut:
            fields = (*fields, ("X-Job-List-Capped", "true"))
        return Answer(200, fields, list_body(shape, values))

    # --- deleting --------------------------------------------------------------------------------

    async def tombstone(self, job_id: str, *, told: bool) -> bool:
        """A client deleted a job. `told`: the app has done it; else it is passed on later.

        Whether the tombstone is committed. It counts for this process at once.
        """
        if not valid_job_id(job_id):
            return False
        hold = self.settings.hold_deletes
        if hold or not told:
            self._maintenance.gone.add(job_id)
        committed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def done(ok: bool) -> None:
            if not committed.done():
                committed.set_result(ok)
            # A write of a worker may have come between the deletion and the tombstone.
            self._session.capture.named.look_at(job_id)
            if not told:
                self._maintenance.untold.set()

        self._job_ended(job_id)
        self._store.bury(job_id, "client", held=hold, pass_on=not told, done=done)
        return await settled(committed, TOMBSTONE_PATIENCE) and committed.result()

    def deleted_answer(self, job_id: str) -> Answer:
        """The app's own answer to a `DELETE` that worked, for one that is passed on later."""
        fields = (("Content-Type", "application/json"), ("X-Job-Source", "sqlite"))
        return Answer(200, fields, deleted_body(self._session.capture.shape, job_id))

    # --- admin -----------------------------------------------------------------------------------

    async def clean_up(self) -> int:
        """Forget what ended `keep_for` ago, now. How many; raises `StoreSilent`."""
        return await self._maintenance.clean_up()

    async def sync(self) -> dict[str, Any]:
        """Compare in full, now. Raises `RedisLost`, `CommandRefused`, `StoreSilent`."""
        compared = await self._session.sync()
        last = self._session.last_sync
        return {
            "mirror": self.name,
            "last_sync": iso_utc(last) if last else None,
            **asdict(compared),
        }

    async def restore(self) -> RestoreCounts:
        """Put back every live job that is missing in Redis. Raises as `sync`."""
        return await self._session.restore()

    async def requeue(self, job_id: str, *, reason: str, force: bool) -> Requeued:
        """Start a job again by hand. Raises `CannotRequeue` and as `sync`."""
        requeuer, link = self._session.requeue, self._session.link
        if requeuer is None:
            raise CannotRequeue("the mirror has no `requeue`, so nothing is known of its messages")
        if link is None:
            raise RedisLost(self._session.why)
        try:
            return await requeuer.requeue(link, job_id, reason=reason, force=force)
        except BrokerRefused as refused:
            raise CommandRefused(f"refuses to read or write the broker: {refused}") from refused

    def judgement(self, job_id: str) -> Judgement | None:
        """Who works on an unfinished job, as far as can be seen; None without `requeue`."""
        return None if self._session.requeue is None else self._session.requeue.judgement(job_id)

    def state(self) -> dict[str, Any]:
        """How the mirror is, for `/api/jobs` and `/readyz`."""
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
