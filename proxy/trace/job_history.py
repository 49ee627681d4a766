"""The life of a job, read from the versions that the mirror kept of it. Pure.

1. A version is hostile until read: what is no JSON object is told as such, never raised; of a
   document no more than `STAGES` stages are looked at.
2. When something happened is when the mirror saw it. How long a stage took is what the document
   says, where it says so; only differences of its own times are used, as they may lack an offset.
3. A *phase* is what the job was doing: the name of the stage in progress, else its status.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from proxy.trace.events import NAME, Severity, TraceEvent, bounded, text

STAGES = 64
EVENTS = 500  # of one job

WAITING = frozenset({"queued", "pending"})
FINISHED = frozenset({"completed", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class Phase:
    """What a job was doing between two moments, Unix seconds; `end` None: it still is."""

    name: str
    start: float
    end: float | None


@dataclass(slots=True)
class JobHistory:
    """What is known of one job. Times are Unix seconds. `failed_in` is the stage that failed, or
    the phase in which the job was when it did."""

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
        """Whether nothing more is to come of it."""
        return self.status in FINISHED or self.deleted_at is not None

    def working(self, now: float, idle: float | None = None) -> tuple[float, float] | None:
        """From when to when a worker was at it, as far as is known; None: never. One that has not
        ended is worked on until `now`, or until it has not changed for `idle` seconds."""
        started = next((p.start for p in self.phases if p.name not in WAITING | FINISHED), None)
        if started is None:
            return None
        # A deleted job is worked on to its end all the same.
        if self.status in FINISHED and self.ended_at is not None:
            return started, self.ended_at
        return started, now if idle is None else min(now, (self.last_change or now) + idle)


def read_life(mirror: str, shown: Mapping[str, Any]) -> JobHistory:
    """The life of a job as `GET /api/jobs/{mirror}/{job_id}` shows it: its versions, with `seen`
    and `data` each, and what became of it."""
    life = JobHistory(job_id=str(shown.get("job_id"))[:NAME], mirror=mirror)
    before: dict[str, Any] = {}
    for version in shown.get("versions") or ():
        seen = moment(version.get("seen"))
        if seen is None:
            continue
        data = version.get("data")
        # Of an old version among large ones only the status is known.
        document = _document(data) if data is not None else {"status": version.get("status")}
        _take(life, before, document, seen)
        before = document
    deleted = moment(shown.get("deleted"))
    if deleted is not None:
        life.deleted_at = deleted
        life.deleted_by = text(shown.get("origin", ""), NAME)
        life.events.append(
            TraceEvent(
                deleted,
                "job",
                "deleted",
                Severity.WARNING,
                job_id=life.job_id,
                facts={"origin": life.deleted_by},
            )
        )
    life.events = life.events[:EVENTS]
    return life


def _take(life: JobHistory, before: dict[str, Any], now: dict[str, Any], seen: float) -> None:
    """One more version."""
    first = life.first_seen is None
    if first:
        life.first_seen = seen
    life.last_change = seen
    was, status = life.status, _word(now.get("status")) or "unknown"
    life.status = status
    stages, stages_before = _stages(now), _stages(before)
    phase = next((n for n, s in stages.items() if _word(s.get("status")) == "processing"), status)
    if status in FINISHED:
        phase = status
    if not life.phases or life.phases[-1].name != phase:
        if life.phases:
            last = life.phases[-1]
            life.phases[-1] = Phase(last.name, last.start, seen)
        life.phases.append(Phase(phase, seen, None))
    if first:
        facts = {"status": status, "query": now.get("query"), "file": now.get("audio_file")}
        _add(life, seen, "created" if status in WAITING else "first_seen", facts=facts)
    changed = status != was and (not first or status in FINISHED)
    if changed and status not in FINISHED:  # a job is taken before its first stage begins ...
        _take_status(life, was, status, now, seen)
    for name, stage in stages.items():
        _take_stage(life, name, stages_before.get(name, {}), stage, seen, first)
    if changed and status in FINISHED:  # ... and ends after its last one
        _take_status(life, was, status, now, seen)


def _take_stage(
    life: JobHistory,
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
        life.failed_in = name
        facts["error"] = stage.get("error_message") or stage.get("error")
    elif status == "waiting_retry":
        severity = Severity.WARNING
        facts["error"] = stage.get("error_message") or stage.get("error")
    kind = {"processing": "stage_started"}.get(status, f"stage_{status}")
    _add(life, seen, kind, severity, None if status == "processing" else took, facts)


def _take_status(
    life: JobHistory, was: str, status: str, document: dict[str, Any], seen: float
) -> None:
    since = seen - (life.first_seen or seen)
    if status in FINISHED:
        life.ended_at = seen
        facts: dict[str, object] = {}
        if status == "failed":
            life.error, life.error_type, stage = _error(document)
            previous = [p.name for p in life.phases[:-1]]
            life.failed_in = life.failed_in or stage or (previous[-1] if previous else None)
            facts = {"error": life.error, "type": life.error_type, "stage": life.failed_in}
        severity = Severity.ERROR if status == "failed" else Severity.OK
        _add(life, seen, status, severity, since or None, facts)
    elif was in WAITING and status not in WAITING:
        life.ended_at = None
        _add(life, seen, "started", facts={"status": status, "waited_ms": round(since * 1000, 1)})
    else:
        back = was in FINISHED
        life.ended_at = None
        severity = Severity.WARNING if back else Severity.OK
        _add(life, seen, "status", severity, facts={"status": status, "was": was})


def _add(
    life: JobHistory,
    at: float,
    kind: str,
    severity: Severity = Severity.OK,
    duration: float | None = None,
    facts: Mapping[str, object] | None = None,
) -> None:
    if len(life.events) < EVENTS:
        kept = bounded(facts or {})
        kind = text(kind, NAME)
        life.events.append(
            TraceEvent(at, "job", kind, severity, job_id=life.job_id, duration=duration, facts=kept)
        )


def _error(document: dict[str, Any]) -> tuple[str | None, str | None, str | None]:
    """Message, type and stage of a failed job, in either shape."""
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
    """Unix seconds of an ISO time with an offset; None for anything else."""
    if not isinstance(value, str) or len(value) > 40:
        return None
    try:
        date = datetime.fromisoformat(value)
        return date.timestamp() if date.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def _between(start: object, end: object) -> float | None:
    """Seconds between two ISO times of one form; None where that makes no sense."""
    if not (isinstance(start, str) and isinstance(end, str) and max(len(start), len(end)) <= 40):
        return None
    try:
        seconds = (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return seconds if 0 <= seconds < 30 * 86400 else None


def working_overlaps(
    lives: Iterable[JobHistory], start: float, end: float, now: float, idle: float
) -> list[JobHistory]:
    """Those at which a worker was at some time between the two moments."""
    found = []
    for life in lives:
        span = life.working(now, idle)
        if span is not None and span[0] <= end and span[1] >= start:
            found.append(life)
    return found
