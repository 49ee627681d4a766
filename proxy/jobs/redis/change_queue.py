"""The jobs that are to be fetched next, and who waits for one of them.

Naming is synchronous and costs next to nothing; a job that is named again before it was fetched is
there once. Who takes a batch gets awaited jobs first, then those that changed, then bulk.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from proxy.jobs.store.records import Pace

BATCH = 64  # jobs fetched in one piece: a few milliseconds of the loop's time
BULK_LIMIT = 4096  # bulk jobs waiting before a scan is held back


@dataclass(slots=True, eq=False)
class Sighting:
    """Somebody waits for a job: `seen` in Redis, then `kept` in the store (False: it was not).

    `missing` is when the latest question was sent (monotonic) to which Redis said that there is no
    such key. None: it has not answered yet, which means nothing.
    """

    seen: asyncio.Future[None]
    kept: asyncio.Future[bool]
    missing: float | None = None


class ChangeQueue:
    """What waits to be fetched. `pace` is how much fits into a batch; `news` are those jobs of the
    last batch of which Redis itself said that they changed, with their last keyspace event where it
    publishes them."""

    def __init__(self) -> None:
        self._urgent: dict[str, float] = {}
        self._bulk: dict[str, None] = {}
        self._pushed: dict[str, str | None] = {}  # of those that are urgent
        self.news: dict[str, str | None] = {}  # of the present batch
        self._watched: dict[str, list[Sighting]] = {}
        self.pace = Pace(BATCH)
        self._wake = asyncio.Event()
        self._taken = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()

    # --- naming ----------------------------------------------------------------------------------

    def changed(self, job_ids: list[str], event: str | None = None) -> None:
        """Redis says that these jobs changed just now, and by what where it says so."""
        now = time.monotonic()
        for job_id in job_ids:
            # One that was only looked at waits since before its change: that explains nothing.
            self._urgent.setdefault(job_id, now)
            self._pushed[job_id] = event
        self._rouse()

    def again(self, noticed: dict[str, float]) -> None:
        """A batch was cut short: all of it has to be fetched anew, waiting since then."""
        for job_id, since in noticed.items():
            self._urgent.setdefault(job_id, since)

    def look_at(self, job_id: str) -> None:
        """Fetch this job next."""
        self._urgent.setdefault(job_id, time.monotonic())
        self._rouse()

    def look_at_many(self, job_ids: list[str]) -> None:
        """Fetch these jobs when nothing urgent waits."""
        self._bulk.update(dict.fromkeys(job_ids))
        self._rouse()

    def watch(self, job_id: str) -> Sighting:
        """Be told when the job is fetched and committed; end it with `unwatch`."""
        loop = asyncio.get_running_loop()
        sighting = Sighting(loop.create_future(), loop.create_future())
        self._watched.setdefault(job_id, []).append(sighting)
        self.look_at(job_id)
        return sighting

    def unwatch(self, job_id: str, sighting: Sighting) -> None:
        sightings = self._watched.get(job_id, [])
        if sighting in sightings:
            sightings.remove(sighting)
        if not sightings:
            self._watched.pop(job_id, None)

    def _rouse(self) -> None:
        if self._bulk:
            self._drained.clear()
        if self._urgent or self._bulk:
            self._wake.set()

    async def room(self) -> None:
        """Wait until a scan may name more."""
        while len(self._bulk) > BULK_LIMIT:
            self._taken.clear()
            await self._taken.wait()

    async def drained(self) -> None:
        """Wait until every job named in bulk was fetched."""
        await self._drained.wait()

    def seen(self, job_id: str) -> None:
        """A job that may be awaited is in Redis."""
        for sighting in self._watched.get(job_id, ()):
            if not sighting.seen.done():
                sighting.seen.set_result(None)

    def missing(self, job_id: str, asked_at: float) -> None:
        """Redis said that there is no such key, to a question that was sent then (monotonic)."""
        for sighting in self._watched.get(job_id, ()):
            sighting.missing = asked_at

    def kept(self, job_id: str, ok: bool) -> None:
        """It is in the store, or could not be written."""
        for sighting in self._watched.get(job_id, ()):
            if not sighting.kept.done():
                sighting.kept.set_result(ok)

    # --- taking ----------------------------------------------------------------------------------

    async def something(self) -> None:
        """Wait until there is a job to take."""
        if not self._urgent and not self._bulk:
            self._wake.clear()
            await self._wake.wait()

    def take(self, *, awaited_only: bool) -> dict[str, float]:
        """The next jobs to fetch, with the moment since which each waits: awaited, urgent, bulk."""
        taken: dict[str, float] = {}
        self.news.clear()
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
        if job_id in self._pushed:
            self.news[job_id] = self._pushed.pop(job_id)
        return self._urgent.pop(job_id)

    def fetched(self) -> None:
        """The batch is done."""
        if not self._bulk:
            self._drained.set()
