"""The jobs on the status page, read from the mirrors independently of the snapshots.

So a store that does not answer delays no snapshot: the page reports it and shows the jobs that were
read last. A job is read again only if it has a new version. Large ones show no stages.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from proxy.core.clock import Clock, iso_utc
from proxy.jobs.document import to_timestamp
from proxy.jobs.mirror import Mirror
from proxy.jobs.service import Mirrors
from proxy.jobs.stages import Stage, StageTimeline, read_timeline
from proxy.jobs.store.inspection import SHORT
from proxy.jobs.store.records import Overview, Row
from proxy.jobs.store.schema import StoreSilent

LIMIT = 25  # jobs of each kind and mirror
EVERY = 1.0  # seconds between two checks for changes
AT_LEAST_EVERY = 10.0  # seconds, because a job becomes stranded without a change

log = logging.getLogger(__name__)


class JobWatch:
    """`await run()` in a task; call `document()` at any time."""

    def __init__(self, mirrors: Mirrors, clock: Clock) -> None:
        self._mirrors = mirrors
        self._clock = clock
        self._rows: list[dict[str, Any]] = []
        self._problem: str | None = None
        self._timelines: dict[tuple[str, str, bytes], StageTimeline] = {}
        self._seen: dict[str, int] = {}
        self._due = 0.0
        self.fresh = asyncio.Event()  #: set once `run` has read the list or failed

    def document(self) -> dict[str, Any]:
        """`list`: failed and stranded jobs among the newest ones, newest first; `problem`: why it
        could not be read again."""
        return {"problem": self._problem, "list": self._rows}

    async def run(self) -> None:
        """Keep the list fresh until cancelled."""
        self.fresh.clear()
        while True:
            await self.refresh()
            self.fresh.set()
            await asyncio.sleep(EVERY)

    async def refresh(self) -> None:
        """Read the lists again if something may have changed."""
        mirrors = list(self._mirrors.by_name.values())
        now = self._clock.monotonic()
        counts = {mirror.name: mirror.commits for mirror in mirrors}
        if counts == self._seen and now < self._due and self._problem is None:
            return
        timelines: dict[tuple[str, str, bytes], StageTimeline] = {}
        rows: list[dict[str, Any]] = []
        try:
            for mirror in mirrors:
                rows += self._read(mirror, await mirror.inspection.overview(LIMIT), timelines)
        except StoreSilent as error:
            self._problem = f"the store does not answer: {error}"
            return
        self._problem = None
        self._seen, self._due = counts, now + AT_LEAST_EVERY
        self._rows = sorted(rows, key=lambda row: row["first_seen"], reverse=True)
        self._timelines = timelines

    def _read(
        self,
        mirror: Mirror,
        found: Overview,
        timelines: dict[tuple[str, str, bytes], StageTimeline],
    ) -> Iterable[dict[str, Any]]:
        stranded = {row.job_id for row in found.stranded}
        by_id = {row.job_id: row for row in (*found.recent, *found.failed, *found.stranded)}
        for row in by_id.values():
            key = (mirror.name, row.job_id, row.digest)
            timeline = self._timelines.get(key)
            if timeline is None:
                short = 0 < len(row.raw) <= SHORT
                timeline = read_timeline(row.raw, row.status) if short else StageTimeline()
            timelines[key] = timeline
            yield _line(mirror.name, row, timeline, stranded=row.job_id in stranded)


def _line(mirror: str, row: Row, timeline: StageTimeline, *, stranded: bool) -> dict[str, Any]:
    created = to_timestamp(row.created_at)
    return {
        "mirror": mirror,
        "job_id": row.job_id,
        "status": row.status,
        "stranded": stranded,
        "progress": row.progress,
        "created": None if created is None else iso_utc(created),
        "first_seen": iso_utc(row.first_seen),
        "changed": iso_utc(row.captured_at),
        "changed_at": row.captured_at,
        "version": row.version,
        "error": timeline.error,
        "stages": [[s.name, s.title, s.state, s.seconds] for s in timeline.stages],
    }


def stage_documents(stages: Iterable[Stage]) -> list[dict[str, Any]]:
    """All facts about the stages, for one job's page."""
    return [
        {
            "name": stage.name,
            "title": stage.title,
            "state": stage.state,
            "started": None if stage.started_at is None else iso_utc(stage.started_at),
            "ended": None if stage.ended_at is None else iso_utc(stage.ended_at),
            "seconds": None if stage.seconds is None else round(stage.seconds, 3),
            "error": stage.error,
        }
        for stage in stages
    ]
