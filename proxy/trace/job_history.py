"""The history of a job, derived from the versions that the mirror stored. Pure.

1. Versions are untrusted: a value that is not a JSON object counts as empty and never raises; at
   most `STAGES` stages of a document are read.
2. The time of an event is when the mirror captured it. The duration of a stage comes from the
   document, if given; only differences of its timestamps are used, as they may lack an offset.
3. A *phase* is what the job was doing: the name of the stage in progress, else its status.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from proxy.core.clock import parse_iso
from proxy.trace.events import NAME, Severity, TraceEvent, bounded, text

STAGES = 64
EVENTS = 500  # of one job

WAITING = frozenset({"queued", "pending"})
FINISHED = frozenset({"completed", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class Phase:
    """What a job was doing between two times (Unix seconds); `end` None: it is ongoing."""

    name: str
    start: float
    end: float | None


@dataclass(slots=True)
class JobHistory:
    """What is known of one job. Times are in Unix seconds. `failed_in` is the stage that failed, or
    the phase in which the job failed."""

    job_id: str
    mirror: str
    status: str = "unknown"
    phases: list[Phase] = field(default_factory=list)
    events: list[TraceEvent] = field(default_factory=list)
    first_seen: float | None = None
    last_change: float | None = None
    ended_at: float | None = None
    error: str | None = None
    error_type: str | None = None
    failed_in: str | None = None
    deleted_at: float | None = None
    deleted_by: str | None = None

    @property
    def finished(self) -> bool:
        """Whether it has a final status or was deleted."""
        return self.status in FINISHED or self.deleted_at is not None

    def working(self, now: float, idle: float | None = None) -> tuple[float, float] | None:
        """When a worker started and stopped working on it, as far as is known; None: never. An
        unended job is worked on until `now`, or until it has not changed for `idle` seconds."""
        started = next((p.start for p in self.phases if p.name not in WAITING | FINISHED), None)
        if started is None:
            return self.unseen_work()
        # Workers finish deleted jobs too.
        if self.status in FINISHED and self.ended_at is not None:
            return started, self.ended_at
        return started, now if idle is None else min(now, (self.last_change or now) + idle)

    def unseen_work(self) -> tuple[float, float] | None:
        """When a worker must have worked on a job that the mirror saw waiting and then ended, with
        nothing in between: versions that follow each other quickly are one to it."""
        if self.status not in ("completed", "failed") or self.ended_at is None or not self.phases:
            return None
        if any(phase.name not in WAITING | FINISHED for phase in self.phases):
            return None
        waited = [phase.start for phase in self.phases if phase.name in WAITING]
        return (waited[-1], self.ended_at) if waited else None


def read_history(mirror: str, shown: Mapping[str, Any]) -> JobHistory:
    """Read a job's history from `GET /api/jobs/{mirror}/{job_id}`: its versions, each with `seen`
    and `data`, and its end."""
    history = JobHistory(job_id=str(shown.get("job_id"))[:NAME], mirror=mirror)
    before: dict[str, Any] = {}
    for version in shown.get("versions") or ():
        seen = moment(version.get("seen"))
        if seen is None:
            continue
        data = version.get("data")
        # Old versions of large documents come without data, only with their status.
        document = _document(data) if data is not None else {"status": version.get("status")}
        _take(history, before, document, seen)
        before = document
    deleted = moment(shown.get("deleted"))
    if deleted is not None:
        history.deleted_at = deleted
        history.deleted_by = text(shown.get("origin", ""), NAME)
        history.events.append(
            TraceEvent(
                deleted,
                "job",
                "deleted",
                Severity.WARNING,
                job_id=history.job_id,
                facts={"origin": history.deleted_by},
            )
        )
    history.events = history.events[:EVENTS]
    return history


def _take(history: JobHistory, before: dict[str, Any], now: dict[str, Any], seen: float) -> None:
    """Add one version."""
    first = history.first_seen is None
    if first:
        history.first_seen = seen
    history.last_change = seen
    was, status = history.status, _word(now.get("status")) or "unknown"
    history.status = status
    stages, stages_before = _stages(now), _stages(before)
    phase = next((n for n, s in stages.items() if _word(s.get("status")) == "processing"), status)
    if status in FINISHED:
        phase = status
    if not history.phases or history.phases[-1].name != phase:
        if history.phases:
            last = history.phases[-1]
            history.phases[-1] = Phase(last.name, last.start, seen)
        history.phases.append(Phase(phase, seen, None))
    if first:
        facts = {"status": status, "query": now.get("query"), "file": now.get("audio_file")}
        _add(history, seen, "created" if status in WAITING else "first_seen", facts=facts)
    changed = status != was and (not first or status in FINISHED)
    if changed and status not in FINISHED:  # a job is taken before its first stage begins ...
        _take_status(history, was, status, now, seen)
    for name, stage in stages.items():
        _take_stage(history, name, stages_before.get(name, {}), stage, seen, first)
    if changed and status in FINISHED:  # ... and ends after its last one
        _take_status(history, was, status, now, seen)


def _take_stage(
    history: JobHistory,
    name: str,
    before: dict[str, Any],
    stage: dict[str, Any],
    seen: float,
    first: bool,
) -> None:
    status = _word(stage.get("status"))
    if status == _word(before.get("status")) or (first and status in ("", "pending")):
        return
    if status in ("", "pending") and not before:
        return
    took = _between(stage.get("started_at"), stage.get("completed_at"))
    facts: dict[str, object] = {"stage": name, "name": stage.get("display_name")}
    severity = Severity.OK
    if status == "failed":
        severity = Severity.ERROR
        history.failed_in = name
        facts["error"] = stage.get("error_message") or stage.get("error")
    elif status == "waiting_retry":
        severity = Severity.WARNING
        facts["error"] = stage.get("error_message") or stage.get("error")
    kind = {"processing": "stage_started"}.get(status, f"stage_{status}")
    _add(history, seen, kind, severity, None if status == "processing" else took, facts)


def _take_status(
    history: JobHistory, was: str, status: str, document: dict[str, Any], seen: float
) -> None:
    since = seen - (history.first_seen or seen)
    if status in FINISHED:
        history.ended_at = seen
        facts: dict[str, object] = {}
        if status == "failed":
            history.error, history.error_type, stage = _error(document)
            previous = [p.name for p in history.phases[:-1]]
            history.failed_in = history.failed_in or stage or (previous[-1] if previous else None)
            facts = {"error": history.error, "type": history.error_type, "stage": history.failed_in}
        severity = Severity.ERROR if status == "failed" else Severity.OK
        _add(history, seen, status, severity, since or None, facts)
    elif was in WAITING and status not in WAITING:
        history.ended_at = None
        _add(
            history, seen, "started", facts={"status": status, "waited_ms": round(since * 1000, 1)}
        )
    else:
        back = was in FINISHED
        history.ended_at = None
        severity = Severity.WARNING if back else Severity.OK
        _add(history, seen, "status", severity, facts={"status": status, "was": was})


def _add(
    history: JobHistory,
    at: float,
    kind: str,
    severity: Severity = Severity.OK,
    duration: float | None = None,
    facts: Mapping[str, object] | None = None,
) -> None:
    if len(history.events) < EVENTS:
        kept = bounded(facts or {})
        kind = text(kind, NAME)
        history.events.append(
            TraceEvent(
                at, "job", kind, severity, job_id=history.job_id, duration=duration, facts=kept
            )
        )


def _error(document: dict[str, Any]) -> tuple[str | None, str | None, str | None]:
    """Message, type and stage of a failed job, in either document format."""
    error = document.get("error")
    if isinstance(error, dict):
        message, kind, stage = error.get("message"), error.get("type"), error.get("stage")
    else:
        message, kind, stage = error or document.get("error_message"), None, None
    kind = kind or document.get("error_type")
    return (
        None if message is None else text(message),
        None if kind is None else text(kind, NAME),
        text(stage, NAME) if isinstance(stage, str) else None,
    )


def _document(data: object) -> dict[str, Any]:
    try:
        document = json.loads(data) if isinstance(data, str) else None
    except (ValueError, RecursionError):
        document = None
    return document if isinstance(document, dict) else {}


def _stages(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    stages = document.get("stages")
    if not isinstance(stages, dict):
        return {}
    return {
        text(name, NAME): stage
        for name, stage in list(stages.items())[:STAGES]
        if isinstance(stage, dict)
    }


def _word(value: object) -> str:
    return text(value, 64) if isinstance(value, str) else ""


def moment(value: object) -> float | None:
    """An ISO time with an offset in Unix seconds; None for anything else."""
    date = parse_iso(value)
    try:
        return date.timestamp() if date is not None and date.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def _between(start: object, end: object) -> float | None:
    """Seconds between two ISO times of the same form; None if that makes no sense."""
    began, ended = parse_iso(start), parse_iso(end)
    if began is None or ended is None:
        return None
    try:
        seconds = (ended - began).total_seconds()
    except (TypeError, OverflowError):  # one has an offset, the other has not
        return None
    return seconds if 0 <= seconds < 30 * 86400 else None


def working_overlaps(
    histories: Iterable[JobHistory], start: float, end: float, now: float, idle: float
) -> list[JobHistory]:
    """The jobs that a worker was working on at some time between `start` and `end`."""
    found = []
    for history in histories:
        span = history.working(now, idle)
        if span is not None and span[0] <= end and span[1] >= start:
            found.append(history)
    return found
