"""Restores jobs from the store into Redis where they are missing: all of them, or one."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict

from proxy.jobs.context import MirrorContext
from proxy.jobs.document import KeyPattern
from proxy.jobs.redis.connection import CommandRefused, RedisConnection
from proxy.jobs.redis.replies import Command, CommandError
from proxy.jobs.redis.restore_rules import RestoreCounts, index_entries, put_back
from proxy.jobs.store.records import Pace, Row
from proxy.jobs.store.store import JobStore

log = logging.getLogger(__name__)

PAGE = 250  # jobs restored at once
FLUSH_PATIENCE = 1.0  # seconds that a restore or a comparison waits for pending writes


class Restorer:
    """Restores the jobs of one mirror. `under_way`: a full restore is running; `last`: the result
    of the last one."""

    def __init__(
        self,
        context: MirrorContext,
        pattern: KeyPattern,
        store: JobStore,
    ) -> None:
        self.under_way = False
        self.last: RestoreCounts | None = None
        self._name = context.name
        self._pattern = pattern
        self._index = context.settings.index
        self._store = store
        self._clock = context.clock
        self._metrics = context.metrics
        self._emit = context.emit

    async def put_all_back(self, link: RedisConnection, cause: str) -> RestoreCounts:
        """Restore every live job that is missing. Raises `StoreSilent`, `RedisLost`,
        `CommandRefused`."""
        began = time.monotonic()
        restored = kept = 0
        self.under_way = True
        try:
            await self._store.flushed(FLUSH_PATIENCE)
            # Captured but not committed yet, as while SQLite cannot write.
            for row in self._store.unwritten_rows():
                restored += await self._put_back(link, [row])
            after = ""
            pace = Pace(PAGE)
            while page := await self._store.live_page(after, self._clock.time(), pace.size):
                after = page[-1].job_id
                pace.moved(sum(len(row.raw) for row in page))
                done = await self._put_back(link, page)
                restored += done
                kept += len(page) - done
        finally:
            self.under_way = False
        counts = RestoreCounts(cause, restored, kept, time.monotonic() - began)
        self.last = counts
        self._metrics.restored(cause, restored)
        log.info("jobs restored", extra={"mirror": self._name, **asdict(counts)})
        self._emit("restored", asdict(counts))
        return counts

    async def _put_back(self, link: RedisConnection, rows: list[Row]) -> int:
        """Restore these jobs; returns how many were missing. Raises `RedisLost`,
        `CommandRefused`."""
        now = self._clock.time()
        commands: list[Command] = []
        sent: list[Row] = []
        for row in rows:
            command = put_back(row, self._pattern.key(row.job_id), now)
            if command is not None:
                commands.append(command)
                sent.append(row)
        if not commands:
            return 0
        if self._index is not None:
            commands.append(index_entries(sent, self._index))
        replies = await link.call(*commands)
        for reply in replies:
            if isinstance(reply, CommandError):
                # OOM, READONLY, MISCONF, NOPERM: affects every job, and we cannot fix it.
                raise CommandRefused(f"takes no jobs back: {reply.text[:200]}")
        return sum(reply == b"OK" for reply in replies[: len(sent)])

    async def put_one_back(self, link: RedisConnection, row: Row) -> bool:
        """Restore one job if it is missing; returns whether it is in Redis now. Raises
        `RedisLost`."""
        command = put_back(row, self._pattern.key(row.job_id), self._clock.time())
        if command is None:
            return False
        commands = [command]
        if self._index is not None:
            commands.append(index_entries([row], self._index))
        reply, *_ = await link.call(*commands)
        if reply == b"OK":
            self._metrics.restored("read", 1)
            log.info("job restored", extra={"mirror": self._name, "job_id": row.job_id})
        return not isinstance(reply, CommandError)
