"""Keeps the view of a queue of jobs fresh: what was known before a start, then once a second."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from proxy.core.clock import Clock
from proxy.jobs.document import parse
from proxy.jobs.queue.forecast import SAMPLES
from proxy.jobs.queue.queue import JobQueue
from proxy.jobs.store import sql
from proxy.jobs.store.schema import StoreSilent
from proxy.jobs.store.store import JobStore

EVERY = 1.0  # seconds between two reviews
SHARE = 0.02  # of the process' time that they may take at most
RECALLED = 5_000  # unfinished jobs; a start should not take much longer for them
_PAGE = 250
_TURN = 16 * 1024  # bytes of documents that are parsed before others get a turn


async def recall_queue(queue: JobQueue, store: JobStore, clock: Clock) -> None:
    """Load the last completed jobs and the unfinished ones, before anything is captured."""
    with suppress(StoreSilent):
        await _recall(queue, await store.table(sql.QUEUE_HISTORY, (SAMPLES,)))
        for offset in range(0, RECALLED, _PAGE):
            asked = (clock.time(), _PAGE, offset)
            rows = await store.table(sql.QUEUE_UNFINISHED, asked)
            await _recall(queue, rows)
            if len(rows) < _PAGE:
                break


async def follow_queue(queue: JobQueue) -> None:
    """Review the queue periodically; the work of a supervised task."""
    while True:
        took, began = 0.0, time.perf_counter()
        for _ in queue.reviewing():
            took += time.perf_counter() - began
            await asyncio.sleep(0)
            began = time.perf_counter()
        took += time.perf_counter() - began
        await asyncio.sleep(max(EVERY, took / SHARE))


async def _recall(queue: JobQueue, rows: list[tuple[str, str | bytes, float]]) -> None:
    read = 0
    for job_id, data, seen in rows:
        raw = data.encode() if isinstance(data, str) else bytes(data)
        queue.recall(parse(job_id, raw), seen)
        read += len(raw)
        if read > _TURN:
            read = 0
            await asyncio.sleep(0)
