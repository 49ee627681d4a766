"""Change capture: from "this key changed" to a row in the store.

1. A single task fetches, so each job's versions are stored in the order in which Redis held them.
   Everyone else only queues job IDs: urgent ones (changes, awaited creations) are fetched before
   bulk ones (a scan).
2. A queued job is fetched once, however often it was queued, so bursts coalesce. While the store is
   behind, only awaited jobs are fetched; the others wait as IDs, not as values.
3. A missing key needs an explanation (`restore_rules.explain_absence`): a tombstone requires proof
   for that key. If the server lost its data, the batch ends and everything is restored.
4. After a gap (`DataEpoch.old_data`) Redis may hold versions older than ours. Only then are two
   versions compared, and the older one in Redis is replaced.
5. Data from Redis is untrusted. A value that we cannot handle is counted as an oddity and never
   ends the session.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from proxy.jobs.context import MirrorContext
from proxy.jobs.document import (
    LATEST,
    JobDocument,
    KeyPattern,
    Shape,
    digest_of,
    is_newer,
    parse,
)
from proxy.jobs.redis.absences import Absences
from proxy.jobs.redis.change_queue import ChangeQueue
from proxy.jobs.redis.connection import RedisConnection, RedisLost
from proxy.jobs.redis.replies import CommandError
from proxy.jobs.redis.restore_rules import (
    DataEpoch,
    replace,
)
from proxy.jobs.store.records import NO_HEAD, Head, Row, Tombstone
from proxy.jobs.store.schema import StoreSilent
from proxy.jobs.store.store import JobStore
from proxy.jobs.video_metrics.counting import EventCounting

log = logging.getLogger(__name__)

MAX_VALUE = 1024 * 1024  # bytes; a longer value is left to Redis alone, and counted
BIG = 32 * 1024  # bytes of values after which we yield to other tasks
DEADLINE_JITTER = 1.0  # seconds: a deadline that moved by less counts as unchanged
BACKLOG_LIMIT = 2048  # queued store operations above which only awaited jobs are fetched
BEHIND_PAUSE = 0.05  # seconds between two checks for awaited jobs meanwhile


@dataclass(slots=True)
class _Fetched:
    job_id: str
    value: bytes
    pttl: int
    deadline: float | None
    head: Head


@dataclass(slots=True)
class Counts:
    """Counts since the start, for `/api/jobs`."""

    captured: int = 0
    unchanged: int = 0
    deleted: int = 0
    oddities: dict[str, int] = field(default_factory=dict)


class Capture:
    """See the rules at the top of the file. `run` lasts as long as one connection."""

    def __init__(
        self,
        context: MirrorContext,
        pattern: KeyPattern,
        store: JobStore,
        *,
        on_lost: Callable[[DataEpoch], None],
        on_other_key: Callable[[bytes], None],
    ) -> None:
        self.counts = Counts()
        self.shape: Shape = "current"
        self.hold_deletes = context.settings.hold_deletes
        self.counting: EventCounting | None = None
        self.on_version: Callable[[JobDocument], None] = lambda snapshot: None
        self.on_deleted: Callable[[str], None] = lambda job_id: None
        self.changes = ChangeQueue()
        self.absences = Absences(context, store, self.changes, self._deleted, on_lost)
        self._pattern = pattern
        self._index = context.settings.index
        self._store = store
        self._clock = context.clock
        self._metrics = context.metrics
        self._on_other_key = on_other_key
        #: Unix time up to which we knew every job; None: up to now. See `_first_seen`.
        self.known_all_until: float | None = 0.0
        self._cannot_remove = False

    def changed(self, keys: list[bytes]) -> None:
        """Redis reported that these keys changed."""
        job_ids = []
        for key in keys:
            job_id = self._pattern.job_id(key)
            if job_id is not None:
                job_ids.append(job_id)
            elif not key.startswith(self._pattern.prefix.encode()):
                self._on_other_key(key)
            else:
                self.odd_key(key)
        self.changes.changed(job_ids)

    def happened(self, key: bytes, event: str) -> None:
        """Redis reported a keyspace event for a key."""
        job_id = self._pattern.job_id(key)
        if job_id is None:
            self.changed([key])
        else:
            self.changes.changed([job_id], event)

    def _deleted(self, job_id: str) -> None:
        self.counts.deleted += 1
        self.on_deleted(job_id)

    def odd_key(self, key: bytes) -> None:
        """Count a key of the family without a valid job ID: such keys are not mirrored."""
        self._odd(key[:128].decode("utf-8", "backslashreplace"), "bad_id")

    # --- fetching --------------------------------------------------------------------------------

    async def run(self, link: RedisConnection, epoch: DataEpoch) -> None:
        """Fetch queued jobs until the link is lost (`RedisLost`)."""
        while True:
            await self.changes.available()
            behind = self._store.backlog > BACKLOG_LIMIT and self._store.degraded is None
            noticed = self.changes.take(awaited_only=behind)
            if not noticed:
                await self._store.flushed(BEHIND_PAUSE)
                continue
            try:
                await self._fetch(link, epoch, noticed)
            except BaseException:
                # Interrupted by the loss of the link: the next session fetches these again.
                self.changes.put_back(noticed)
                raise
            self.changes.fetched()
            await asyncio.sleep(0)

    async def _fetch(
        self, link: RedisConnection, epoch: DataEpoch, noticed: dict[str, float]
    ) -> None:
        job_ids = list(noticed)
        commands: list[tuple[Any, ...]] = []
        for job_id in job_ids:
            key = self._pattern.key(job_id)
            # GETRANGE is a GET with a limit: we must not transfer a value of 512 MB.
            commands.append(("GETRANGE", key, 0, MAX_VALUE))
            commands.append(("PTTL", key))
        lost, losses = epoch.lost, epoch.losses
        asked_at = time.monotonic()
        replies = await link.call(*commands)
        now = self._clock.time()
        # Read before the heads: a version committed while they are read would be in neither.
        unwritten = {one: row for one in job_ids if (row := self._store.unwritten(one)) is not None}
        try:
            heads = await self._store.heads(job_ids)
        except StoreSilent:
            heads = {}
        self.changes.pace.moved(sum(len(one) for one in replies if isinstance(one, bytes)))
        gone: list[str] = []
        absorbed = 0
        for position, job_id in enumerate(job_ids):
            value, pttl = replies[2 * position], replies[2 * position + 1]
            head = heads.get(job_id, NO_HEAD)
            if pttl == -2:
                gone.append(job_id)
                self.changes.missing(job_id, asked_at)
            elif not isinstance(value, bytes) or type(pttl) is not int:
                self._odd(job_id, "other_type")
            elif len(value) > MAX_VALUE:
                self._odd(job_id, "too_large")
            else:
                fetched = _Fetched(job_id, value, pttl, self._deadline(job_id, pttl, now), head)
                await self._absorb_safely(link, epoch, fetched, noticed[job_id], now)
                absorbed += len(value)
                if absorbed > BIG:
                    absorbed = 0
                    await asyncio.sleep(0)  # parsing a megabyte of JSON takes ten milliseconds
        # A key missing during a restore proves nothing, even if the restore has ended since. The
        # comparison that follows will queue the job again.
        if gone and not lost and epoch.losses == losses:
            deadlines = self.absences.deadlines(gone, heads, unwritten)
            await self.absences.explain(link, epoch, deadlines, noticed, now)

    def _deadline(self, job_id: str, pttl: int, now: float) -> float | None:
        """When the key expires, in Unix seconds; None: never. Bounded before any arithmetic: Redis
        accepts a TTL of 290 million years."""
        if pttl < 0:
            return None
        if pttl <= (LATEST - now) * 1000:
            return now + pttl / 1000
        self._odd(job_id, "bad_ttl")
        return LATEST

    async def _absorb_safely(
        self, link: RedisConnection, epoch: DataEpoch, fetched: _Fetched, noticed: float, now: float
    ) -> None:
        try:
            await self._absorb(link, epoch, fetched, noticed, now)
        except RedisLost:
            raise
        except Exception:
            if "unmanageable" not in self.counts.oddities:
                log.exception("job value not handled", extra={"job_id": fetched.job_id})
            self._odd(fetched.job_id, "unmanageable")

    async def _absorb(
        self, link: RedisConnection, epoch: DataEpoch, fetched: _Fetched, noticed: float, now: float
    ) -> None:
        job_id, head = fetched.job_id, fetched.head
        digest = digest_of(fetched.value)
        if head.deleted:
            if head.pass_on:
                return  # the app does not know yet and needs the key for its own clean-up
            old = epoch.old_data and await self._is_before_deletion(fetched, digest)
            if old or (head.held and self.hold_deletes):
                await self._remove(link, job_id)
                return
        self.changes.seen(job_id)
        self.absences.evictions.present(job_id)
        waiting = self._store.unwritten(job_id)
        if head.digest == digest and waiting is None and _same(head.deadline, fetched.deadline):
            self.counts.unchanged += 1
            self.changes.kept(job_id, True)
            return
        if (
            epoch.old_data
            and head.digest is not None
            and head.digest != digest
            and await self._put_newer(link, fetched, digest, now)
        ):
            return
        snapshot = parse(job_id, fetched.value)
        self._note(snapshot)
        counting = self.counting
        new_events = counting.new_events(snapshot, now) if counting is not None else None

        def done(ok: bool) -> None:
            if ok:
                self._metrics.lag.observe(time.monotonic() - noticed)
                if counting is not None and new_events is not None:
                    counting.kept(new_events)
            self.changes.kept(job_id, ok)

        events = "[]" if new_events is None else new_events.text
        first_seen = self._first_seen(head, snapshot, now)
        self._store.put(snapshot, now, fetched.deadline, done, events, first_seen)

    def _first_seen(self, head: Head, snapshot: JobDocument, now: float) -> float:
        """When the job appeared, by our clock. A job found after a gap appeared during the gap;
        only its document tells when, and its writer's clock may be wrong."""
        if head.first_seen is not None:
            return head.first_seen
        if self.known_all_until is None or snapshot.created_at is None:
            return now
        return min(now, max(self.known_all_until, snapshot.created_at))

    def _note(self, snapshot: JobDocument) -> None:
        self.counts.captured += 1
        self.on_version(snapshot)
        for kind in snapshot.oddities:
            self._odd(snapshot.job_id, kind)
        if snapshot.shape != "opaque":
            self.shape = snapshot.shape

    def _odd(self, job_id: str, kind: str) -> None:
        if kind not in self.counts.oddities:
            log.warning("odd job value", extra={"job_id": job_id, "kind": kind})
        self.counts.oddities[kind] = self.counts.oddities.get(kind, 0) + 1
        self._metrics.oddity(kind)

    async def _was_version(self, job_id: str, digest: bytes) -> bool:
        try:
            return await self._store.was_version(job_id, digest)
        except StoreSilent:
            return False

    async def _is_before_deletion(self, fetched: _Fetched, digest: bytes) -> bool:
        """After a gap: whether Redis holds a version of a deleted job from before its deletion,
        even one that the mirror never saw."""
        if await self._was_version(fetched.job_id, digest):
            return True
        try:
            tombstone = await self._store.get(fetched.job_id)
        except StoreSilent:
            return False
        if not isinstance(tombstone, Tombstone):
            return False
        activity = parse(fetched.job_id, fetched.value).activity
        return activity is not None and activity <= tombstone.deleted_at

    async def _remove(self, link: RedisConnection, job_id: str) -> None:
        commands: list[tuple[Any, ...]] = [("DEL", self._pattern.key(job_id))]
        if self._index is not None:
            commands.append(("ZREM", self._index, job_id))
        removed, *_ = await link.call(*commands)
        if isinstance(removed, CommandError):
            if not self._cannot_remove:
                log.error(
                    "deleted job reappeared and cannot be removed",
                    extra={"job_id": job_id, "reason": removed.text[:200]},
                )
            self._cannot_remove = True
            return
        self._cannot_remove = False
        self._metrics.held.inc()
        log.info("deleted job reappeared and was removed", extra={"job_id": job_id})

    async def _put_newer(
        self, link: RedisConnection, fetched: _Fetched, digest: bytes, now: float
    ) -> bool:
        """After a gap: overwrite an older version with the store's. False if Redis' is newer."""
        job_id = fetched.job_id
        try:
            row = self._store.unwritten(job_id) or await self._store.get(job_id)
        except StoreSilent:
            return False
        if not isinstance(row, Row):
            return False
        ours, theirs = parse(job_id, row.raw), parse(job_id, fetched.value)
        # A previous value of the job is certainly older than its latest one.
        if not await self._was_version(job_id, digest) and not is_newer(ours, theirs):
            return False
        command = replace(row, self._pattern.key(job_id), fetched.value, fetched.pttl, now)
        (reply,) = await link.call(command)
        if reply == 1:
            self._metrics.restored("outdated", 1)
            log.info("outdated job replaced", extra={"job_id": job_id, "version": row.version})
            self.changes.kept(job_id, True)
        elif isinstance(reply, CommandError):
            log.warning(
                "outdated job not replaced", extra={"job_id": job_id, "reason": reply.text[:200]}
            )
        else:
            self.changes.fetch_next(job_id)  # it changed meanwhile
        return True


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= DEADLINE_JITTER
