"""The trace on disk: events wait in a bounded queue, and one task writes them in groups.

1. `put` takes microseconds, never waits and never raises. While SQLite accepts nothing (disk full,
   read-only, locked), the queue keeps the newest `QUEUE` events; dropped ones are counted.
2. Queued events can be read at once (`reading`), so the newest are never missing, and even a full
   disk can be diagnosed.
3. The file is bounded by age and size: after each commit the oldest events are deleted until it
   fits, those of the largest lane first (a route's events of one kind), but only until that lane is
   as small as the next. So no lane displaces the events of others, neither here nor in the queue.
4. A damaged or foreign file is renamed and replaced by a new one, a deleted one is rewritten
   (`core/sqlite/recovery.py`). SQLite exceptions never leave this file.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import Counter, deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from proxy.core.clock import Clock
from proxy.core.sqlite.file import REFUSED
from proxy.core.sqlite.recovery import CHECK_EVERY, FileEvents, FileRecovery
from proxy.core.tasks import Supervised, Tasks
from proxy.core.waiting import happened
from proxy.trace import sql
from proxy.trace.events import TraceEvent, encode_facts
from proxy.trace.metrics import TraceMetrics
from proxy.trace.queries import Row, TraceQueries

log = logging.getLogger(__name__)

QUEUE = 10_000  # events that wait while SQLite accepts none
QUEUE_BYTES = 16 * 1024 * 1024
GROUP = 500  # events in one transaction
GROUP_BYTES = 1024 * 1024
GATHER = 0.2  # seconds for which events accumulate before they are written
RETRY = 1.0  # seconds between two attempts while degraded
TIDY_EVERY = 60.0  # seconds between two deletions of old events
TRIM_TO = 0.9  # of the largest size, when it is exceeded
TRIM_STEP = 2000  # events deleted at one time
_OVERHEAD = 400  # bytes of one event in memory beside its facts


class TraceStore:
    """`await start()`, `put` and read, `await stop()`. `keep_for` is in seconds, `max_size` in
    bytes."""

    def __init__(
        self,
        path: Path,
        clock: Clock,
        metrics: TraceMetrics,
        tasks: Tasks,
        *,
        keep_for: float,
        max_size: int,
        on_degraded: Callable[[str | None], None] = lambda reason: None,
    ) -> None:
        self._recovery = FileRecovery(
            "trace",
            path,
            sql.SCHEMA,
            clock,
            FileEvents(lambda: self._wake.set(), self._tell_degraded),
        )
        self._file = self._recovery.file
        self._clock = clock
        self._metrics = metrics
        self._keep_for = keep_for
        self._max_size = max_size
        self._on_degraded = on_degraded
        self._queue: deque[Row] = deque()
        self._group: list[Row] = []  # being written at this moment
        self._bytes = 0
        self._last_id = 0
        self._tidied = float("-inf")
        self._was_degraded = False
        self._stopping = False
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self._writer = Supervised("trace-writer", self._run, tasks, ends=True)

    # --- lifecycle ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the file, creating it if missing, and start the writer. Never raises for the state
        of the file."""
        self._stopping = False
        self._stop.clear()
        await self._recovery.open()
        self._writer.start()

    async def stop(self, patience: float = 2.0) -> None:
        """Write what is queued within `patience` seconds and close."""
        self._stopping = True
        self._stop.set()
        self._wake.set()
        await self._writer.stop(patience)
        await self._file.close()
        if self.unwritten:
            log.warning("trace stopped with unwritten events", extra={"events": self.unwritten})

    # --- recording ------------------------------------------------------------------------------

    def put(self, event: TraceEvent) -> None:
        """Record `event`; its id is set."""
        self._last_id = event.id = max(self._last_id + 1, int(self._clock.time() * 1e6))
        facts = encode_facts(event.facts)
        self._queue.append(
            (
                event.id,
                event.at,
                event.source,
                event.kind,
                int(event.severity),
                event.correlation_id,
                event.job_id,
                event.service,
                event.duration,
                facts,
                event.lane,
            )
        )
        self._bytes += len(facts) + _OVERHEAD
        while len(self._queue) > QUEUE or self._bytes > QUEUE_BYTES:
            self._bytes -= _size(self._take_from_largest_lane())
            self._metrics.dropped("queue")
        self._wake.set()

    def _take_from_largest_lane(self) -> Row:
        """Drop its oldest event from the queue: takes a millisecond, only while SQLite fails."""
        ((largest, _),) = Counter(row[-1] for row in self._queue).most_common(1)
        place = next(n for n, row in enumerate(self._queue) if row[-1] == largest)
        row = self._queue[place]
        del self._queue[place]
        return row

    @property
    def unwritten(self) -> int:
        """Events not committed yet."""
        return len(self._queue) + len(self._group)

    # --- the writer -----------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await happened(self._wake, CHECK_EVERY)
            if not self._stopping:
                await happened(self._stop, GATHER)
            self._wake.clear()
            try:
                done = await self._write_all()
            except Exception as unexpected:
                # A bug must not stop the trace for good: report it and continue.
                log.exception("trace writer failed")
                self._recovery.set_degraded(f"internal error: {unexpected!r}")
                done = False
            if not done and not self._stopping:
                await happened(self._stop, RETRY)
                self._wake.set()
            if self._stopping:
                return

    async def _write_all(self) -> bool:
        """Write what is queued; False if SQLite accepts nothing now."""
        await self._recovery.check_replaced()
        self._metrics.log.set(self._recovery.log_size)
        if not await self._recovery.ready():
            return False
        try:
            while self._queue:
                await self._write_group()
                await self._fit()
            await self._forget_old()
        except sqlite3.Error as error:
            await self._recovery.failed(error)
            return False
        self._recovery.set_degraded(None)
        return True

    async def _write_group(self) -> None:
        """Commit the oldest of the queue, or leave them there. Raises `sqlite3.Error`."""
        size = 0
        for row in islice(self._queue, GROUP):
            size += _size(row)
            if self._group and size > GROUP_BYTES:
                break
            self._group.append(row)
        for _ in self._group:
            self._queue.popleft()
        try:
            await self._add(self._group)
        except BaseException:
            self._queue.extendleft(reversed(self._group))
            self._group = []
            raise
        self._bytes -= sum(map(_size, self._group))
        self._metrics.written(len(self._group))
        self._group = []

    async def _add(self, rows: list[Row]) -> None:
        params = [dict(zip((*sql.NAMES, "lane"), row, strict=True)) for row in rows]
        try:
            await self._file.transaction([(sql.ADD, params)])
        except REFUSED:
            for one in params:  # the one that SQLite refuses goes, its neighbours stay
                try:
                    await self._file.transaction([(sql.ADD, [one])])
                except REFUSED as error:
                    self._metrics.dropped("refused")
                    log.warning("trace refused an event", extra={"reason": str(error)[:200]})

    async def _fit(self) -> None:
        """Delete the oldest events while the file is too large. Raises `sqlite3.Error`."""
        used = await self._used()
        if used > self._max_size:
            target = self._max_size * TRIM_TO
            while used > target and (lanes := await self._lanes()):
                # As many as hold the bytes that are too many, if all are of one size.
                number = min(TRIM_STEP, int(lanes.total() * (used - target) / used) + 1)
                (lane, most), *others = lanes.most_common(2)
                level = others[0][1] if others else 0
                # Where lanes are level they take turns, in steps that are worth a commit.
                number = min(number, max(most - level, most // 10, 20))
                await self._file.transaction([(sql.OLDEST, [{"lane": lane, "number": number}])])
                used = await self._used()
            await self._give_back()
        self._metrics.size.set(used)

    async def _forget_old(self) -> None:
        now = self._clock.monotonic()
        if now - self._tidied < TIDY_EVERY:
            return
        before = int((self._clock.time() - self._keep_for) * 1e6)
        while (await self._one(sql.OLDEST_ID) or before) < before:
            await self._file.transaction([(sql.OUTLIVED, [{"before": before}])])
        self._metrics.size.set(await self._used())
        self._tidied = now

    async def _give_back(self) -> None:
        """Return excess free pages to the disk. Raises `sqlite3.Error`."""
        writer = self._file.writer
        while writer is not None and await self._one(sql.LENGTH) > self._max_size:
            before = await self._one(sql.LENGTH)
            await writer.execute_fetchall(sql.GIVE_BACK)
            if await self._one(sql.LENGTH) == before:
                return

    async def _used(self) -> int:
        """Bytes of the file that are in use."""
        return int(await self._one(sql.USED) or 0)

    async def _lanes(self) -> Counter[str]:
        """The number of events in each lane."""
        if self._file.writer is None:
            raise sqlite3.OperationalError("not open")
        rows = await self._file.writer.execute_fetchall(sql.LANES)
        return Counter({str(lane): int(count) for lane, count in rows})

    async def _one(self, statement: str) -> Any:
        if self._file.writer is None:
            raise sqlite3.OperationalError("not open")
        rows = list(await self._file.writer.execute_fetchall(statement))
        return rows[0][0] if rows else None

    # --- trouble with the file ------------------------------------------------------------------

    @property
    def degraded(self) -> str | None:
        """Why nothing can be written now; None if writes work."""
        return self._recovery.degraded

    def _tell_degraded(self, reason: str | None) -> None:
        self._metrics.degraded.set(reason is not None)
        if reason is not None or self._was_degraded:
            self._on_degraded(reason)
        self._was_degraded = reason is not None

    # --- reading --------------------------------------------------------------------------------

    def reading(self) -> TraceQueries:
        """The queries for one response, on the file and on the events still queued."""
        return TraceQueries(self._file, lambda: (*self._group, *self._queue))


def _size(row: Row) -> int:
    return len(row[9]) + _OVERHEAD
