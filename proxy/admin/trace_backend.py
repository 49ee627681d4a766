"""Combines the trace and the mirrors for `TraceControl`: which data is read, and how much at
most."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from proxy.config import schema
from proxy.core.clock import Clock, iso_utc
from proxy.jobs.answers import Known
from proxy.jobs.service import Mirrors
from proxy.jobs.store.schema import StoreSilent
from proxy.trace.attribution import attribute
from proxy.trace.diagnosis.context import LOOK_BACK
from proxy.trace.events import Severity, TraceEvent, document
from proxy.trace.job_history import JobHistory, read_history, working_overlaps
from proxy.trace.queries import TraceQueries
from proxy.trace.recorder import Trace
from proxy.trace.summaries import summary
from proxy.trace.timeline import MARGIN, MOST, build_timeline, unfold, window

log = logging.getLogger(__name__)

JOINED = 10  # jobs, and correlation IDs, that one ID is expanded to
STATE_CHANGES = 500  # events of breakers, mirrors and the proxy around a timeline
CALLS = 500  # calls of one service that may belong to a job
OTHERS = 20  # other jobs of one mirror that are considered when a call is attributed
FAILED = 20  # failed jobs among the latest events

_DEFAULTS: dict[str, Any] = {
    name: field.default for name, field in schema.Trace.model_fields.items() if name != "sqlite"
}


class TraceBackend:
    """What the proxy has recorded, as JSON. Without a trace, only the mirrors' data is shown."""

    def __init__(self, trace: Trace, mirrors: Mirrors, clock: Clock) -> None:
        self._trace = trace
        self._mirrors = mirrors
        self._clock = clock

    async def timeline(self, wanted: str) -> dict[str, Any] | None:
        """All that is known of a job ID or correlation ID; None if nothing is."""
        store = self._trace.store
        reading = None if store is None else store.reading()
        own = await _events_naming(reading, wanted)
        histories: dict[str, JobHistory] = {}
        job_ids = dict.fromkeys([wanted, *(e.job_id for e in own.values() if e.job_id)])
        notes = []
        for job_id in list(job_ids)[: JOINED + 1]:
            try:
                history = await self._history(job_id)
            except StoreSilent as silent:
                notes.append(f"the jobs' SQLite file does not answer: {silent}")
                break
            if history is not None:
                histories[job_id] = history
            if history is not None or job_id != wanted:
                own |= await _events_naming(reading, job_id)
        if not own and not histories:
            return None
        settings = self._settings
        now = self._clock.time()
        start, end = window(list(own.values()), list(histories.values()), now)
        for history in histories.values():
            if history.first_seen is not None:
                try:
                    own |= {e.id: e for e in await self._calls(reading, history, now)}
                except StoreSilent as silent:
                    notes.append(f"calls could not be attributed: {silent}")
        state_changes: list[TraceEvent] = []
        if store is not None and reading is not None:
            state_changes = await reading.state_changes(
                start - LOOK_BACK, end + MARGIN, STATE_CHANGES
            )
            if trouble := reading.silent or store.degraded:
                notes.append(f"something may be missing, the trace's file has trouble: {trouble}")
        return await asyncio.to_thread(
            build_timeline,
            wanted,
            list(own.values()),
            list(histories.values()),
            state_changes,
            now=now,
            stuck_after=settings["stuck_after"],
            called_in=settings["called_in"],
            slow=settings["slow"],
            note="; ".join(notes) or None,
        )

    @property
    def _settings(self) -> dict[str, Any]:
        given = self._trace.settings
        if given is None:
            return _DEFAULTS
        return {name: getattr(given, name) for name in _DEFAULTS}

    async def _history(self, job_id: str) -> JobHistory | None:
        """Raises `StoreSilent`."""
        for name, mirror in self._mirrors.by_name.items():
            shown = await mirror.inspection.show(job_id)
            if shown is not None:
                # Off the loop: fifty versions of a megabyte each take a second.
                return await asyncio.to_thread(read_history, name, shown)
        return None

    # --- calls of the worker --------------------------------------------------------------------

    async def _calls(
        self, reading: TraceQueries | None, history: JobHistory, now: float
    ) -> list[TraceEvent]:
        """Calls of microservices that were certainly made for this job. Raises `StoreSilent`."""
        span = history.working(now)
        settings = self._trace.settings
        if settings is None or reading is None or span is None:
            return []
        start, end = span[0] - MARGIN, span[1] + MARGIN
        others = await self._others(history, start, end, now)
        if others is None:
            return []
        called_in, idle = settings.called_in, settings.stuck_after
        found: list[TraceEvent] = []
        for service in called_in:
            # Calls are recorded when they end: one that timed out comes a minute later.
            calls = await reading.calls(service, start, end + 60.0, CALLS)
            found += attribute(calls, history, others, called_in, now, idle)
        return found

    async def _others(
        self, history: JobHistory, start: float, end: float, now: float
    ) -> list[JobHistory] | None:
        """Other jobs that a worker had meanwhile; None if there are too many to consider."""
        histories = []
        for name, mirror in self._mirrors.by_name.items():
            job_ids = await mirror.inspection.contemporaries(start, end, LOOK_BACK, OTHERS)
            if job_ids is None:
                return None
            for job_id in job_ids:
                if (name, job_id) == (history.mirror, history.job_id):
                    continue
                shown = await mirror.inspection.show(job_id)
                if shown is not None:
                    histories.append(await asyncio.to_thread(read_history, name, shown))
        return working_overlaps(histories, start, end, now, self._settings["stuck_after"])

    # --- the latest events ----------------------------------------------------------------------

    async def recent(self, severity: str, limit: int) -> list[dict[str, Any]]:
        """The latest events of at least that severity, the newest first."""
        least = Severity[severity.upper()]
        events: list[TraceEvent] = []
        if self._trace.store is not None:
            for event in await self._trace.store.reading().recent(least, limit):
                events += [part for part in unfold(event) if part.severity >= least]
        try:
            events += await self._failed_jobs(min(limit, FAILED))
        except StoreSilent as silent:
            log.warning(
                "failed jobs are missing from the latest events", extra={"reason": str(silent)}
            )
        events.sort(key=lambda event: (event.at, event.id), reverse=True)
        return [document(event, summary(event)) for event in events[:limit]]

    async def _failed_jobs(self, limit: int) -> list[TraceEvent]:
        """Raises `StoreSilent`."""
        found = []
        for name, mirror in self._mirrors.by_name.items():
            for row in await mirror.inspection.jobs("failed", limit):
                known = await mirror.reads.lookup(str(row["job_id"]))
                if not isinstance(known, Known):
                    continue
                seen = iso_utc(known.as_of)
                data = known.snapshot.raw.decode("utf-8", "replace")
                shown = {"job_id": row["job_id"], "versions": [{"seen": seen, "data": data}]}
                history = read_history(name, shown)
                found.append(_failure(history, known.as_of))
        return found

    def hint(self) -> str:
        """Why an ID may be unknown."""
        kept = self._trace.settings
        if kept is None:
            return "The trace is off in the config; only jobs are known, by their IDs."
        return (
            f"Kept for {kept.keep_for / 86400:g} days are jobs, errors, exchanges over"
            f" {kept.slow:g} s, and {kept.sample * 100:g} % of the rest; the log has all:"
            " look there for the correlation ID."
        )


def _failure(history: JobHistory, at: float) -> TraceEvent:
    """The event of a failed job, from its newest version alone."""
    facts = {"error": history.error, "type": history.error_type, "stage": history.failed_in}
    return TraceEvent(
        at,
        "job",
        "failed",
        Severity.ERROR,
        job_id=history.job_id,
        facts={name: value for name, value in facts.items() if value is not None},
    )


async def _events_naming(reading: TraceQueries | None, wanted: str) -> dict[int, TraceEvent]:
    """Recorded events with this ID; for a job, also those with the correlation ID of its creation.
    Other correlation IDs belong to callers that read the job, perhaps among much else."""
    if reading is None:
        return {}
    found = {e.id: e for e in await reading.by_correlation(wanted, MOST)}
    by_job = await reading.by_job(wanted, MOST)
    found |= {e.id: e for e in by_job}
    others = dict.fromkeys(
        e.correlation_id for e in by_job if e.kind == "creation" and e.correlation_id
    )
    for correlation_id in [one for one in others if one != wanted][:JOINED]:
        found |= {
            e.id: e
            for e in await reading.by_correlation(correlation_id, MOST)
            if e.job_id in (None, wanted)
        }
    return found
