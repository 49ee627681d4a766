"""From "this key changed" to a row in the ledger.

1. One task fetches, so that what it writes for one job is in the order in which Redis held it. All
   others only name jobs: urgent ones (changes, awaited creations) go before bulk ones (a scan).
2. A named job is fetched once however often it was named: bursts coalesce by themselves. While
   the ledger is behind, only awaited jobs are fetched; the others wait as names, not as values.
3. What is missing is explained before it is believed (`restore.explain_absence`); a doubt ends the
   batch by reporting that all is lost, which restores.
4. After a gap (`Life.old_data`) Redis may hold versions older than ours; then, and only then, two
   versions are compared, and the older one in Redis is replaced.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from proxy.clock import Clock
from proxy.jobs.counting import Counting
from proxy.jobs.ledger import Ledger
from proxy.jobs.ledger_file import LedgerSilent
from proxy.jobs.metrics import MirrorMetrics
from proxy.jobs.model import KeyPattern, Shape, Snapshot, digest_of, is_newer, parse
from proxy.jobs.named import Named
from proxy.jobs.records import NO_HEAD, Head, Row
from proxy.jobs.redis_side import CommandError, Link
from proxy.jobs.restore import Absence, Continuity, Life, continuity, explain_absence, replace

log = logging.getLogger(__name__)

BIG = 32 * 1024  # bytes of values after which others get a turn
DEADLINE_JITTER = 1.0  # seconds: a deadline that moved less is the same one
BACKLOG_LIMIT = 2048  # ledger operations waiting before fetching is held back
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
        pattern: KeyPattern,
        index: str | None,
        ledger: Ledger,
        clock: Clock,
        metrics: MirrorMetrics,
        *,
        max_value: int,
        hold_deletes: bool,
        on_lost: Callable[[Life], None],
        on_other_key: Callable[[bytes], None],
    ) -> None:
        self.counts = Counts()
        self.shape: Shape = "current"
        self.hold_deletes = hold_deletes
        self.counting: Counting | None = None
        self.on_version: Callable[[str, str], None] = lambda job_id, status: None
        self.named = Named()
        self._pattern = pattern
        self._index = index
        self._ledger = ledger
        self._clock = clock
        self._metrics = metrics
        self._max_value = max_value
        self._on_lost = on_lost
        self._on_other_key = on_other_key

    def changed(self, keys: list[bytes]) -> None:
        """Redis says that these keys changed."""
        job_ids = []
        for key in keys:
            job_id = self._pattern.job_id(key)
            if job_id is not None:
                job_ids.append(job_id)
            elif not key.startswith(self._pattern.prefix.encode()):
                self._on_other_key(key)
        self.named.changed(job_ids)

    # --- fetching --------------------------------------------------------------------------------

    async def run(self, link: Link, life: Life) -> None:
        """Fetch what is named until the link is lost (`RedisLost`)."""
        while True:
            await self.named.something()
            behind = self._ledger.backlog > BACKLOG_LIMIT and self._ledger.degraded is None
            noticed = self.named.take(awaited_only=behind)
            if not noticed:
                await self._ledger.flushed(BEHIND_PAUSE)
                continue
            try:
                await self._fetch(link, life, noticed)
            except BaseException:
                # Cut short by the loss of the link: the next one has to look again.
                self.named.again(noticed)
                raise
            self.named.fetched()
            await asyncio.sleep(0)

    async def _fetch(self, link: Link, life: Life, noticed: dict[str, float]) -> None:
        job_ids = list(noticed)
        commands: list[tuple[Any, ...]] = []
        for job_id in job_ids:
            key = self._pattern.key(job_id)
            # GETRANGE is a GET with a limit: a value of 512 MB must not come over the wire.
            commands.append(("GETRANGE", key, 0, self._max_value))
            commands.append(("PTTL", key))
        lost, losses = life.lost, life.losses
        replies = await link.call(*commands)
        now = self._clock.time()
        try:
            heads = await self._ledger.heads(job_ids)
        except LedgerSilent:
            heads = {}
        self.named.pace.moved(sum(len(one) for one in replies if isinstance(one, bytes)))
        gone: list[str] = []
        absorbed = 0
        for position, job_id in enumerate(job_ids):
            value, pttl = replies[2 * position], replies[2 * position + 1]
            head = heads.get(job_id, NO_HEAD)
            if pttl == -2:
                gone.append(job_id)
            elif isinstance(value, CommandError) or not isinstance(pttl, int):
                self._odd(job_id, "other_type")
            elif len(value) > self._max_value:
                self._odd(job_id, "too_large")
            else:
                deadline = None if pttl == -1 else now + pttl / 1000
                fetched = _Fetched(job_id, value, pttl, deadline, head)
                await self._absorb(link, life, fetched, noticed[job_id], now)
                absorbed += len(value)
                if absorbed > BIG:
                    absorbed = 0
                    await asyncio.sleep(0)  # a megabyte of JSON takes ten milliseconds
        # What was missing while a restore was under way proves nothing, although that may be over
        # by now: the ledger was asked meanwhile. The comparison that follows names it again.
        if gone and not lost and life.losses == losses:
            await self._explain(link, life, gone, heads, now)

    async def _absorb(
        self, link: Link, life: Life, fetched: _Fetched, noticed: float, now: float
    ) -> None:
        job_id, head = fetched.job_id, fetched.head
        digest = digest_of(fetched.value)
        if head.buried:
            if head.pass_on:
                return  # the app has not been told yet and needs the key for its own clean-up
            old = life.old_data and await self._was_version(job_id, digest)
            if old or (head.held and self.hold_deletes):
                await self._remove(link, job_id)
                return
        self.named.seen(job_id)
        waiting = self._ledger.unwritten(job_id)
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
        self._ledger.put(snapshot, now, fetched.deadline, done, events)

    def _note(self, snapshot: Snapshot) -> None:
        self.counts.captured += 1
        self.on_version(snapshot.job_id, snapshot.status)
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
            return await self._ledger.was_version(job_id, digest)
        except LedgerSilent:
            return False

    async def _remove(self, link: Link, job_id: str) -> None:
        commands: list[tuple[Any, ...]] = [("DEL", self._pattern.key(job_id))]
        if self._index is not None:
            commands.append(("ZREM", self._index, job_id))
        await link.call(*commands)
        self._metrics.held.inc()
        log.info("deleted job came back and was removed", extra={"job_id": job_id})

    async def _put_newer(self, link: Link, fetched: _Fetched, digest: bytes, now: float) -> bool:
        """After a gap: the ledger's version over an older one. False when Redis is the newer."""
        job_id = fetched.job_id
        try:
            row = self._ledger.unwritten(job_id) or await self._ledger.get(job_id)
        except LedgerSilent:
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
        self, link: Link, life: Life, gone: list[str], heads: dict[str, Head], now: float
    ) -> None:
        known = [job_id for job_id in gone if self._known(job_id, heads)]
        if not known or life.lost:
            return
        facts = await link.facts()
        # A server that hides INFO: this very connection lives on, and a flush would have been told.
        hidden = facts.run_id is None and link.mode == "tracking"
        overall = Continuity.SAME if hidden else continuity(life.facts, facts)
        before = dataclasses.replace(life.facts, evicted=life.evicted)
        lately = Continuity.SAME if hidden else continuity(before, facts)
        life.evicted = facts.evicted
        if life.lost:
            return
        for job_id in known:
            waiting = self._ledger.unwritten(job_id)
            deadline = waiting.deadline if waiting else heads[job_id].deadline
            between = overall if job_id in self.named.found else lately
            absence = explain_absence(deadline, now, between)
            if absence is Absence.DELETED:
                self.counts.deleted += 1
                self._ledger.bury(job_id, "redis", held=False)
            elif absence is Absence.EVICTED:
                log.warning("job evicted from Redis for want of memory", extra={"job_id": job_id})
            elif absence is Absence.LOST:
                self._on_lost(life)
                return

    def _known(self, job_id: str, heads: dict[str, Head]) -> bool:
        if self._ledger.unwritten(job_id) is not None:
            return True
        return heads.get(job_id, NO_HEAD).digest is not None


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= DEADLINE_JITTER
