"""The whole story of one ID: events joined, put in order, explained, as JSON. Pure.

1. A recorded exchange tells of more than itself: its upload's verdict and the attempts that failed
   become events of their own here (`unfold`). Nobody knows when the verdict came: it stands behind
   its exchange.
2. What happened to breakers, mirrors and the proxy is part of a story if it happened meanwhile. A
   circuit that was already open belongs to it as well: the rules look an hour back.
3. A story has at most `MOST` events: then those that are no trouble go first, from the middle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from proxy.core.clock import iso_utc
from proxy.trace.context import LOOK_BACK, Cause, DiagnosisContext, index_of
from proxy.trace.diagnosis import suspect
from proxy.trace.events import Severity, TraceEvent, document
from proxy.trace.job_history import JobHistory
from proxy.trace.summaries import summary

MOST = 1000  # events of one story
MARGIN = 1.0  # seconds behind a story within which news still belong to it


def unfold(event: TraceEvent) -> list[TraceEvent]:
    """An exchange, and what its facts tell: the verdict on its upload, attempts that failed."""
    if event.source != "exchange":
        return [event]
    facts = dict(event.facts)
    found = []
    failed = facts.pop("failed_attempts", None)
    several = facts.get("attempts", 0) > 1 or event.severity is not Severity.ERROR
    if isinstance(failed, list):
        for one in failed:
            if not isinstance(one, dict) or (len(failed) == 1 and not several):
                continue
            found.append(_attempt(event, one))
    verdict = facts.get("upload_verdict")
    if isinstance(verdict, str):
        upload = {name: value for name, value in facts.items() if name.startswith("upload_")}
        for name in upload:
            del facts[name]
        if verdict != "accepted" and facts.get("detail"):
            upload["detail"] = facts["detail"]
        severity = Severity.OK if verdict == "accepted" else Severity.WARNING
        found.append(_child(event, event.at, "upload", verdict, severity, upload))
    if not found:
        return [event]
    whole = TraceEvent(
        event.at, "exchange", event.kind, event.severity, event.correlation_id, event.job_id,
        event.service, event.duration, facts, event.id,
    )  # fmt: skip
    return [whole, *found]


def _attempt(event: TraceEvent, told: Mapping[str, Any]) -> TraceEvent:
    kind = str(told.get("kind"))
    facts = {"target": told.get("target"), "count": told.get("count", 1)}
    at, until = float(told.get("at", event.at)), float(told.get("until", event.at))
    made = _child(
        event, at, "attempt", f"status_{kind}" if kind.isdigit() else kind, Severity.WARNING, facts
    )
    if until > at:
        made.duration = until - at
    return made


def _child(
    event: TraceEvent, at: float, source: Any, kind: str, severity: Severity, facts: dict[str, Any]
) -> TraceEvent:
    return TraceEvent(
        at, source, kind, severity, event.correlation_id, event.job_id, event.service, None, facts
    )


def window(
    events: Sequence[TraceEvent], lives: Sequence[JobHistory], now: float
) -> tuple[float, float]:
    """From when to when a story goes, Unix seconds; until now while a job is not finished."""
    times = [event.at for event in events]
    times += [event.until for event in events if event.source != "job"]
    for life in lives:
        times += [t for t in (life.first_seen, life.last_change, life.deleted_at) if t is not None]
        if not life.finished and life.first_seen is not None:
            times.append(now)
    return (min(times), max(times)) if times else (now, now)


def tell(
    wanted: str,
    own: Iterable[TraceEvent],
    lives: Sequence[JobHistory],
    news: Sequence[TraceEvent],
    *,
    now: float,
    stuck_after: float,
    called_in: Mapping[str, Sequence[str]],
    slow: float,
    note: str | None = None,
) -> dict[str, Any]:
    """The answer of `GET /api/trace/{id}`. `own` are recorded events that name the ID or one joined
    to it, attributed calls included; `news` those of breakers, mirrors and the proxy around it."""
    events = [part for event in own for part in unfold(event)]
    events += [event for life in lives for event in life.events]
    start, end = window(events, lives, now)
    for one in news:
        if start <= one.at <= end + MARGIN and one.job_id in (None, *_ids(lives)):
            events.append(one)
    before = [one for one in news if start - LOOK_BACK <= one.at < start]
    events.sort(key=lambda event: event.at)
    events, dropped = _bounded(events)
    kind = _kind(wanted, events, lives)
    case = DiagnosisContext(events, lives, now, stuck_after, called_in, slow, kind == "job", before)
    cause = suspect(case) if events else None
    told: dict[str, Any] = {
        "id": wanted,
        "kind": kind,
        "job_ids": _distinct([life.job_id for life in lives], [e.job_id for e in events]),
        "correlation_ids": _distinct([e.correlation_id for e in events]),
        "suspected_cause": None if cause is None else _cause(cause, events),
        "events": [document(event, summary(event)) for event in events],
    }
    notes = [note] if note else []
    if dropped:
        notes.append(f"{dropped} further events are not shown")
    if notes:
        told["note"] = "; ".join(notes)
    return told


def _cause(cause: Cause, events: Sequence[TraceEvent]) -> dict[str, Any]:
    return {
        "summary": cause.summary,
        "kind": cause.kind,
        "at": iso_utc(cause.event.at),
        "event": index_of(events, cause.event),
    }


def _kind(wanted: str, events: Sequence[TraceEvent], lives: Sequence[JobHistory]) -> str:
    if wanted in _ids(lives) or any(event.job_id == wanted for event in events):
        return "job"
    if any(event.correlation_id == wanted for event in events):
        return "correlation"
    return "unknown"


def _ids(lives: Sequence[JobHistory]) -> tuple[str, ...]:
    return tuple(life.job_id for life in lives)


def _distinct(*lists: Sequence[str | None]) -> list[str]:
    return list(dict.fromkeys(one for several in lists for one in several if one is not None))


def _bounded(events: list[TraceEvent]) -> tuple[list[TraceEvent], int]:
    """At most `MOST`; how many were left out. Troubles stay, then what is first and last."""
    spare = len(events) - MOST
    if spare <= 0:
        return events, 0
    calm = [i for i, event in enumerate(events) if event.severity is Severity.OK]
    middle = max(0, (len(calm) - spare) // 2)
    out = set(calm[middle : middle + spare])
    kept = [event for i, event in enumerate(events) if i not in out]
    if len(kept) > MOST:
        kept = [*kept[: MOST // 2], *kept[-(MOST // 2) :]]
    return kept, len(events) - len(kept)
