"""The jobs to fetch next, and who waits for one of them.

Queueing is synchronous and cheap; a job that is queued again before it was fetched stays queued
once. A batch takes awaited jobs first, then changed ones, then bulk ones.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from proxy.jobs.store.records import Pace

BATCH = 64  # jobs fetched at once: a few milliseconds of the loop's time
BULK_LIMIT = 4096  # queued bulk jobs above which a scan has to wait


@dataclass(slots=True, eq=False)
class Sighting:
    """A caller that waits for a job: `seen` in Redis, then `kept` in the store (False: it failed).

    `missing` is when the latest query was sent (monotonic) to which Redis replied that there is no
    such key; None while it has not replied, which proves nothing.
    """

    seen: asyncio.Future[None]
    kept: asyncio.Future[bool]
    missing: float | None = None


class ChangeQueue:
    """Jobs that wait to be fetched. `pace` limits the size of a batch; `pushed` has the jobs of the
    last batch whose change Redis itself reported, with their last keyspace event, if any."""

    def __init__(self) -> None:
        self._urgent: dict[str, float] = {}
        self._bulk: dict[str, None] = {}
        self._push_events: dict[str, str | None] = {}  # of urgent jobs
        self.pushed: dict[str, str | None] = {}  # of the current batch
        self._watched: dict[str, list[Sighting]] = {}
        self.pace = Pace(BATCH)
        self._wake = asyncio.Event()
        self._taken = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()

    # --- queueing --------------------------------------------------------------------------------

    def changed(self, job_ids: list[str], event: str | None = None) -> None:
        """Redis reported that these jobs changed just now, possibly with the keyspace event."""
        now = time.monotonic()
        for job_id in job_ids:
            # A job queued by `fetch_next` keeps its earlier time: it predates this change.
            self._urgent.setdefault(job_id, now)
            self._push_events[job_id] = event
        self._signal()

    def put_back(self, batch: dict[str, float]) -> None:
        """Queue an interrupted batch again; each job keeps the time since which it waits."""
        for job_id, since in batch.items():
            self._urgent.setdefault(job_id, since)

    def fetch_next(self, job_id: str) -> None:
        """Fetch this job next."""
        self._urgent.setdefault(job_id, time.monotonic())
        self._signal()

    def fetch_later(self, job_ids: list[str]) -> None:
        """Fetch these jobs when nothing urgent waits."""
        self._bulk.update(dict.fromkeys(job_ids))
        self._signal()

    def watch(self, job_id: str) -> Sighting:
        """Wait for the job to be fetched and committed; end it with `unwatch`."""
        loop = asyncio.get_running_loop()
        sighting = Sighting(loop.create_future(), loop.create_future())
        self._watched.setdefault(job_id, []).append(sighting)
        self.fetch_next(job_id)
        return sighting

    def unwatch(self, job_id: str, sighting: Sighting) -> None:
        sightings = self._watched.get(job_id, [])
        if sighting in sightings:
            sightings.remove(sighting)
        if not sightings:
            self._watched.pop(job_id, None)

    def _signal(self) -> None:
        if self._bulk:
            self._drained.clear()
        if self._urgent or self._bulk:
            self._wake.set()

    async def room(self) -> None:
        """Wait until a scan may queue more."""
        while len(self._bulk) > BULK_LIMIT:
            self._taken.clear()
            await self._taken.wait()

    async def drained(self) -> None:
        """Wait until every bulk job was fetched."""
        await self._drained.wait()

    def seen(self, job_id: str) -> None:
        """A job that may be awaited is in Redis."""
        for sighting in self._watched.get(job_id, ()):
            if not sighting.seen.done():
                sighting.seen.set_result(None)

    def missing(self, job_id: str, asked_at: float) -> None:
        """Redis replied that there is no such key, to a query sent at `asked_at` (monotonic)."""
        for sighting in self._watched.get(job_id, ()):
            sighting.missing = asked_at

    def kept(self, job_id: str, ok: bool) -> None:
        """It is in the store, or could not be written."""
        for sighting in self._watched.get(job_id, ()):
            if not sighting.kept.done():
                sighting.kept.set_result(ok)

    # --- taking ----------------------------------------------------------------------------------

    async def available(self) -> None:
        """Wait until there is a job to take."""
        if not self._urgent and not self._bulk:
            self._wake.clear()
            await self._wake.wait()

    def take(self, *, awaited_only: bool) -> dict[str, float]:
        """The next jobs to fetch, each with the time since which it waits (monotonic)."""
        taken: dict[str, float] = {}
        self.pushed.clear()
        for job_id in list(self._watched)[: self.pace.size]:
            if job_id in self._urgent:
                taken[job_id] = self._take(job_id)
        if awaited_only:
            return taken
        while self._urgent and len(taken) < self.pace.size:
            job_id = next(iter(self._urgent))
            taken[job_id] = self._take(job_id)
        now = time.monotonic()
        while self._bulk and len(taken) < self.pace.size:
            job_id = next(iter(self._bulk))
            del self._bulk[job_id]
            taken.setdefault(job_id, now)
        self._taken.set()
        return taken

    def _take(self, job_id: str) -> float:
        if job_id in self._push_events:
            self.pushed[job_id] = self._push_events.pop(job_id)
        return self._urgent.pop(job_id)

    def fetched(self) -> None:
        """The batch is done."""
        if not self._bulk:
            self._drained.set()
