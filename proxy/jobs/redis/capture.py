"""From "this key changed" to a row in the store.

1. One task fetches, so that what it writes for one job is in the order in which Redis held it. All
   others only name jobs: urgent ones (changes, awaited creations) go before bulk ones (a scan).
2. A named job is fetched once however often it was named: bursts coalesce by themselves. While
   the store is behind, only awaited jobs are fetched; the others wait as names, not as values.
3. What is missing is explained before it is believed (`restore.explain_absence`): a tombstone needs
   proof for that very key. A server that lost its data ends the batch, and all is restored.
4. After a gap (`DataEpoch.old_data`) Redis may hold versions older than ours; then, and only then,
   two versions are compared, and the older one in Redis is replaced.
5. What comes from Redis is hostile. A value that we cannot handle costs one counted oddity, never
   the session.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from proxy.core.clock import Clock
from proxy.jobs.document import (
    LATEST,
    JobDocument,
    KeyPattern,
    Shape,
    digest_of,
    is_newer,
    parse,
)
from proxy.jobs.metrics import MirrorMetrics
from proxy.jobs.redis.change_queue import ChangeQueue
from proxy.jobs.redis.connection import CommandError, RedisConnection, RedisLost, ServerInfo
from proxy.jobs.redis.evictions import Evictions
from proxy.jobs.redis.restore_rules import (
    Absence,
    Continuity,
    DataEpoch,
    Mark,
    continuity,
    explain_absence,
    replace,
)
from proxy.jobs.store.records import NO_HEAD, Head, Row, Tombstone
from proxy.jobs.store.schema import StoreSilent
from proxy.jobs.store.store import JobStore
from proxy.jobs.video_metrics.counting import EventCounting

log = logging.getLogger(__name__)

BIG = 32 * 1024  # bytes of values after which others get a turn
DEADLINE_JITTER = 1.0  # seconds: a deadline that moved less is the same one
BACKLOG_LIMIT = 2048  # store operations waiting before fetching is held back
BEHIND_PAUSE = 0.05  # seconds between two looks for awaited jobs meanwhile


@dataclass(slots=True)
class _Fetched:
    job_id: str
    value: bytes
    pttl: int
    deadline: float | None
    head: Head


@dataclass(slots=True)
class Counts:
    """What has been captured since the start, for `/api/jobs`."""

    captured: int = 0
    unchanged: int = 0
    deleted: int = 0
    oddities: dict[str, int] = field(default_factory=dict)


class Capture:
    """See the rules at the top of the file. `run` lasts as long as a link does."""

    def __init__(
        self,
        mirror: str,
        pattern: KeyPattern,
        index: str | None,
        store: JobStore,
        clock: Clock,
        metrics: MirrorMetrics,
        *,
        max_value: int,
        hold_deletes: bool,
        on_lost: Callable[[DataEpoch], None],
        on_other_key: Callable[[bytes], None],
    ) -> None:
        self.counts = Counts()
        self.shape: Shape = "current"
        self.hold_deletes = hold_deletes
        self.counting: EventCounting | None = None
        self.on_version: Callable[[JobDocument], None] = lambda snapshot: None
        self.on_deleted: Callable[[str], None] = lambda job_id: None
        self.named = ChangeQueue()
        self.evictions = Evictions(mirror, metrics)
        self._pattern = pattern
        self._index = index
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._max_value = max_value
        self._on_lost = on_lost
        self._on_other_key = on_other_key
        #: Unix: up to when every job was known; None: up to now. See `_first_seen`.
        self.known_all_until: float | None = 0.0
        self._cannot_remove = False

    def changed(self, keys: list[bytes]) -> None:
        """Redis says that these keys changed."""
        job_ids = []
        for key in keys:
            job_id = self._pattern.job_id(key)
            if job_id is not None:
                job_ids.append(job_id)
            elif not key.startswith(self._pattern.prefix.encode()):
                self._on_other_key(key)
            else:
                self.odd_key(key)
        self.named.changed(job_ids)

    def happened(self, key: bytes, event: str) -> None:
        """Redis says what happened to a key."""
        job_id = self._pattern.job_id(key)
        if job_id is None:
            self.changed([key])
        else:
            self.named.changed([job_id], event)

    def odd_key(self, key: bytes) -> None:
        """A key of the family whose id is none that a client could name: it is not mirrored."""
        self._odd(key[:128].decode("utf-8", "backslashreplace"), "bad_id")

    # --- fetching --------------------------------------------------------------------------------

    async def run(self, link: RedisConnection, life: DataEpoch) -> None:
        """Fetch what is named until the link is lost (`RedisLost`)."""
        while True:
            await self.named.something()
            behind = self._store.backlog > BACKLOG_LIMIT and self._store.degraded is None
            noticed = self.named.take(awaited_only=behind)
            if not noticed:
                await self._store.flushed(BEHIND_PAUSE)
                continue
            try:
                await self._fetch(link, life, noticed)
            except BaseException:
                # Cut short by the loss of the link: the next one has to look again.
                self.named.again(noticed)
                raise
            self.named.fetched()
            await asyncio.sleep(0)

    async def _fetch(
        self, link: RedisConnection, life: DataEpoch, noticed: dict[str, float]
    ) -> None:
        job_ids = list(noticed)
        commands: list[tuple[Any, ...]] = []
        for job_id in job_ids:
            key = self._pattern.key(job_id)
            # GETRANGE is a GET with a limit: a value of 512 MB must not come over the wire.
            commands.append(("GETRANGE", key, 0, self._max_value))
            commands.append(("PTTL", key))
        lost, losses = life.lost, life.losses
        asked_at = time.monotonic()
        replies = await link.call(*commands)
        now = self._clock.time()
        # Asked first: what is committed while the heads are read is in neither answer afterwards.
        unwritten = {one: row for one in job_ids if (row := self._store.unwritten(one)) is not None}
        try:
            heads = await self._store.heads(job_ids)
        except StoreSilent:
            heads = {}
        self.named.pace.moved(sum(len(one) for one in replies if isinstance(one, bytes)))
        gone: list[str] = []
        absorbed = 0
        for position, job_id in enumerate(job_ids):
            value, pttl = replies[2 * position], replies[2 * position + 1]
            head = heads.get(job_id, NO_HEAD)
            if pttl == -2:
                gone.append(job_id)
                self.named.missing(job_id, asked_at)
            elif not isinstance(value, bytes) or type(pttl) is not int:
                self._odd(job_id, "other_type")
            elif len(value) > self._max_value:
                self._odd(job_id, "too_large")
            else:
                fetched = _Fetched(job_id, value, pttl, self._deadline(job_id, pttl, now), head)
                await self._absorb_safely(link, life, fetched, noticed[job_id], now)
                absorbed += len(value)
                if absorbed > BIG:
                    absorbed = 0
                    await asyncio.sleep(0)  # a megabyte of JSON takes ten milliseconds
        # What was missing while a restore was under way proves nothing, although that may be over
        # by now: the store was asked meanwhile. The comparison that follows names it again.
        if gone and not lost and life.losses == losses:
            deadlines = self._deadlines(gone, heads, unwritten)
            await self._explain(link, life, deadlines, noticed, now)

    def _deadline(self, job_id: str, pttl: int, now: float) -> float | None:
        """When Redis drops the key, Unix seconds; None: never. Bounded before anything is computed
        with it: Redis takes a time to live of 290 million years."""
        if pttl < 0:
            return None
        if pttl <= (LATEST - now) * 1000:
            return now + pttl / 1000
        self._odd(job_id, "bad_ttl")
        return LATEST

    async def _absorb_safely(
        self, link: RedisConnection, life: DataEpoch, fetched: _Fetched, noticed: float, now: float
    ) -> None:
        try:
            await self._absorb(link, life, fetched, noticed, now)
        except RedisLost:
            raise
        except Exception:
            if "unmanageable" not in self.counts.oddities:
                log.exception("job value not handled", extra={"job_id": fetched.job_id})
            self._odd(fetched.job_id, "unmanageable")

    async def _absorb(
        self, link: RedisConnection, life: DataEpoch, fetched: _Fetched, noticed: float, now: float
    ) -> None:
        job_id, head = fetched.job_id, fetched.head
        digest = digest_of(fetched.value)
        if head.buried:
            if head.pass_on:
                return  # the app has not been told yet and needs the key for its own clean-up
            old = life.old_data and await self._is_before_deletion(fetched, digest)
            if old or (head.held and self.hold_deletes):
                await self._remove(link, job_id)
                return
        self.named.seen(job_id)
        self.evictions.present(job_id)
        waiting = self._store.unwritten(job_id)
        if head.digest == digest and waiting is None and _same(head.deadline, fetched.deadline):
            self.counts.unchanged += 1
            self.named.kept(job_id, True)
            return
        if (
            life.old_data
            and head.digest is not None
            and head.digest != digest
            and await self._put_newer(link, fetched, digest, now)
        ):
            return
        snapshot = parse(job_id, fetched.value)
        self._note(snapshot)
        counting = self.counting
        news = counting.news(snapshot, now) if counting is not None else None

        def done(ok: bool) -> None:
            if ok:
                self._metrics.lag.observe(time.monotonic() - noticed)
                if counting is not None and news is not None:
                    counting.kept(news)
            self.named.kept(job_id, ok)

        events = "[]" if news is None else news.text
        first_seen = self._first_seen(head, snapshot, now)
        self._store.put(snapshot, now, fetched.deadline, done, events, first_seen)

    def _first_seen(self, head: Head, snapshot: JobDocument, now: float) -> float:
        """When the job came, by our clock. One that is found after a gap came within the gap; only
        its document can say when, and the clock of its writer may be wrong."""
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
        """After a gap: whether a deleted job is there in a version from before its deletion, be it
        one that the mirror never saw."""
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
                    "deleted job came back and cannot be removed",
                    extra={"job_id": job_id, "reason": removed.text[:200]},
                )
            self._cannot_remove = True
            return
        self._cannot_remove = False
        self._metrics.held.inc()
        log.info("deleted job came back and was removed", extra={"job_id": job_id})

    async def _put_newer(
        self, link: RedisConnection, fetched: _Fetched, digest: bytes, now: float
    ) -> bool:
        """After a gap: the store's version over an older one. False when Redis is the newer."""
        job_id = fetched.job_id
        try:
            row = self._store.unwritten(job_id) or await self._store.get(job_id)
        except StoreSilent:
            return False
        if not isinstance(row, Row):
            return False
        ours, theirs = parse(job_id, row.raw), parse(job_id, fetched.value)
        # A value that the job once had, before the one it had last, is older beyond doubt.
        if not await self._was_version(job_id, digest) and not is_newer(ours, theirs):
            return False
        command = replace(row, self._pattern.key(job_id), fetched.value, fetched.pttl, now)
        (reply,) = await link.call(command)
        if reply == 1:
            self._metrics.restored("outdated", 1)
            log.info("outdated job replaced", extra={"job_id": job_id, "version": row.version})
            self.named.kept(job_id, True)
        elif isinstance(reply, CommandError):
            log.warning("outdated job stays", extra={"job_id": job_id, "reason": reply.text[:200]})
        else:
            self.named.look_at(job_id)  # it changed meanwhile
        return True

    async def _explain(
        self,
        link: RedisConnection,
        life: DataEpoch,
        deadlines: dict[str, float | None],
        noticed: dict[str, float],
        now: float,
    ) -> None:
        """Find out why known jobs, each with its deadline, are not in Redis, and record it."""
        if not deadlines or life.lost:
            return
        news = self.named.news
        facts = await link.facts()
        if facts.replica:
            raise RedisLost("it became a replica")
        overall, lately = _between(link, life, facts)
        mark = life.mark
        await renew_mark(link, life, facts)
        if life.lost:
            return
        for job_id, deadline in deadlines.items():
            recent = job_id in news and mark is not None and noticed[job_id] > mark.at
            between = lately if recent else overall
            absence = explain_absence(deadline, now, between, news.get(job_id))
            if absence is Absence.DELETED:
                self.counts.deleted += 1
                self.evictions.present(job_id)
                self._store.bury(job_id, "redis", held=False)
                self.on_deleted(job_id)
            elif absence is Absence.EVICTED:
                self.evictions.note(job_id, time.monotonic())
            elif absence is Absence.LOST:
                self._on_lost(life)
                return

    def _deadlines(
        self, gone: list[str], heads: dict[str, Head], unwritten: dict[str, Row]
    ) -> dict[str, float | None]:
        """Those of the jobs that the store knows, each with when Redis was to drop it."""
        found: dict[str, float | None] = {}
        for job_id in gone:
            row, head = self._store.unwritten(job_id), heads.get(job_id, NO_HEAD)
            if row is None and head.digest is None:
                row = unwritten.get(job_id)
            if row is not None or head.digest is not None:
                found[job_id] = head.deadline if row is None else row.deadline
        return found


async def renew_mark(link: RedisConnection, life: DataEpoch, facts: ServerInfo) -> None:
    """Have a mark at `facts`, if keys were evicted since the last one."""
    if facts.evicted is None or (life.mark and life.mark.facts.evicted == facts.evicted):
        return
    # A reply to a later question: what happened before `facts` has been pushed by then.
    await link.call(("PING",))
    life.mark = Mark(facts, time.monotonic())


def _between(
    link: RedisConnection, life: DataEpoch, now: ServerInfo
) -> tuple[Continuity, Continuity]:
    """What became of the data since nothing was missing, and since the mark."""
    if now.run_id is None and link.mode == "tracking":
        # A server that hides INFO: this very connection lives on, and a flush would have been told;
        # but whether a single key was deleted or evicted, nothing tells.
        return Continuity.EVICTING, Continuity.EVICTING
    since = life.facts if life.mark is None else life.mark.facts
    return continuity(life.facts, now), continuity(since, now)


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= DEADLINE_JITTER
