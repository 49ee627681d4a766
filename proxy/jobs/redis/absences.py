"""Jobs that are missing in Redis: why, and what follows from it.

A deletion needs proof for the key (`restore_rules.explain_absence`). Evicted jobs are counted one
by one and logged once per burst.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from proxy.jobs.context import MirrorContext
from proxy.jobs.metrics import MirrorMetrics
from proxy.jobs.redis.change_queue import ChangeQueue
from proxy.jobs.redis.connection import RedisConnection, RedisLost
from proxy.jobs.redis.replies import ServerInfo
from proxy.jobs.redis.restore_rules import (
    Absence,
    Continuity,
    DataEpoch,
    Mark,
    continuity,
    explain_absence,
)
from proxy.jobs.store.records import NO_HEAD, Head, Row
from proxy.jobs.store.store import JobStore

log = logging.getLogger(__name__)

QUIET = 5.0  # seconds without an eviction after which a burst is over
LONGEST = 60.0  # seconds after which an ongoing burst is logged
REMEMBERED = 100_000


class Evictions:
    """Jobs that are missing in Redis without proof of a deletion. No I/O."""

    def __init__(self, mirror: str, metrics: MirrorMetrics) -> None:
        self.total = 0  #: since the start
        self._mirror = mirror
        self._metrics = metrics
        self._missing: set[str] = set()  # already counted
        self._burst: list[str] = []  # the first job of the burst
        self._in_burst = 0
        self._began = self._latest = -math.inf

    def note(self, job_id: str, now: float) -> None:
        """A job was found missing at `now` (monotonic) without proof that it was deleted."""
        if job_id in self._missing:
            return
        if len(self._missing) >= REMEMBERED:
            self._missing.clear()
        self._missing.add(job_id)
        self.total += 1
        self._metrics.evicted.inc()
        if not self._in_burst:
            self._burst = [job_id]
            self._began = now
        self._in_burst += 1
        self._latest = now

    def present(self, job_id: str) -> None:
        """A job is in Redis, or no longer expected there."""
        self._missing.discard(job_id)

    def report(self, now: float) -> None:
        """Log a burst that is over or lasts too long. Call this periodically."""
        if not self._in_burst or (now - self._latest < QUIET and now - self._began < LONGEST):
            return
        log.warning(
            "jobs evicted from Redis",
            extra={
                "mirror": self._mirror,
                "jobs": self._in_burst,
                "first": self._burst[0],
                "seconds": round(self._latest - self._began, 3),
            },
        )
        self._in_burst = 0


class Absences:
    """Those of one mirror. `on_deleted(job_id)` is called for a deletion, `on_lost(epoch)` when the
    server has lost its data."""

    def __init__(
        self,
        context: MirrorContext,
        store: JobStore,
        changes: ChangeQueue,
        on_deleted: Callable[[str], None],
        on_lost: Callable[[DataEpoch], None],
    ) -> None:
        self.evictions = Evictions(context.name, context.metrics)
        self._store = store
        self._changes = changes
        self._on_deleted = on_deleted
        self._on_lost = on_lost

    def deadlines(
        self, gone: list[str], heads: dict[str, Head], unwritten: dict[str, Row]
    ) -> dict[str, float | None]:
        """The missing jobs that the store knows, each with the expiry of its key."""
        found: dict[str, float | None] = {}
        for job_id in gone:
            row, head = self._store.unwritten(job_id), heads.get(job_id, NO_HEAD)
            if row is None and head.digest is None:
                row = unwritten.get(job_id)
            if row is not None or head.digest is not None:
                found[job_id] = head.deadline if row is None else row.deadline
        return found

    async def explain(
        self,
        link: RedisConnection,
        epoch: DataEpoch,
        deadlines: dict[str, float | None],
        noticed: dict[str, float],
        now: float,
    ) -> None:
        """Determine why known jobs (ID: deadline) are missing in Redis, and record it."""
        if not deadlines or epoch.lost:
            return
        pushed = self._changes.pushed
        info = await link.info()
        if info.replica:
            raise RedisLost("it became a replica")
        overall, lately = _between(link, epoch, info)
        mark = epoch.mark
        await renew_mark(link, epoch, info)
        if epoch.lost:
            return
        for job_id, deadline in deadlines.items():
            recent = job_id in pushed and mark is not None and noticed[job_id] > mark.at
            between = lately if recent else overall
            absence = explain_absence(deadline, now, between, pushed.get(job_id))
            if absence is Absence.DELETED:
                self.evictions.present(job_id)
                self._store.mark_deleted(job_id, "redis", held=False)
                self._on_deleted(job_id)
            elif absence is Absence.EVICTED:
                self.evictions.note(job_id, time.monotonic())
            elif absence is Absence.LOST:
                self._on_lost(epoch)
                return


async def renew_mark(link: RedisConnection, epoch: DataEpoch, info: ServerInfo) -> None:
    """Set a new mark at `info` if keys were evicted since the last one."""
    if info.evicted is None or (epoch.mark and epoch.mark.info.evicted == info.evicted):
        return
    # Replies and pushes arrive in order: after this reply every change before `info` has arrived.
    await link.call(("PING",))
    epoch.mark = Mark(info, time.monotonic())


def _between(
    link: RedisConnection, epoch: DataEpoch, now: ServerInfo
) -> tuple[Continuity, Continuity]:
    """Continuity of the data since nothing was missing, and since the mark."""
    if now.run_id is None and link.mode == "tracking":
        # The server hides INFO. The connection has not broken and a flush would have been pushed,
        # but a deleted key cannot be distinguished from an evicted one.
        return Continuity.EVICTING, Continuity.EVICTING
    since = epoch.info if epoch.mark is None else epoch.mark.info
    return continuity(epoch.info, now), continuity(since, now)
