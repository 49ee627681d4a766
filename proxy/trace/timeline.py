"""The timeline of one ID: events joined, ordered and explained, as JSON. Pure.

1. A recorded exchange contains more than one event: the result of its upload check and its failed
   attempts become events of their own (`unfold`). The time of the upload check is not recorded, so
   it follows its exchange.
2. State changes of breakers, mirrors and the proxy are included if they happened meanwhile. A
   circuit may have opened earlier, so the rules also look back one hour.
3. A timeline has at most `MOST` events; events without trouble are dropped first, from the middle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from proxy.core.clock import iso_utc
from proxy.trace.diagnosis.context import LOOK_BACK, Cause, DiagnosisContext, index_of
from proxy.trace.diagnosis.rules import diagnose
from proxy.trace.events import Severity, TraceEvent, document
from proxy.trace.job_history import JobHistory
from proxy.trace.summaries import summary

MOST = 1000  # events of one timeline
MARGIN = 1.0  # seconds after the end within which a state change is still included


def unfold(event: TraceEvent) -> list[TraceEvent]:
    """Split an exchange into itself, its failed attempts and its upload check."""
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


def _attempt(event: TraceEvent, answer: Mapping[str, Any]) -> TraceEvent:
    kind = str(answer.get("kind"))
    facts = {"target": answer.get("target"), "count": answer.get("count", 1)}
    at, until = float(answer.get("at", event.at)), float(answer.get("until", event.at))
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
    events: Sequence[TraceEvent], histories: Sequence[JobHistory], now: float
) -> tuple[float, float]:
    """Start and end of a timeline in Unix seconds; the end is now while a job is unfinished."""
    times = [event.at for event in events]
    times += [event.until for event in events if event.source != "job"]
    for history in histories:
        times += [
            t
            for t in (history.first_seen, history.last_change, history.deleted_at)
            if t is not None
        ]
        if not history.finished and history.first_seen is not None:
            times.append(now)
    return (min(times), max(times)) if times else (now, now)


def build_timeline(
    wanted: str,
    own: Iterable[TraceEvent],
    histories: Sequence[JobHistory],
    state_changes: Sequence[TraceEvent],
    *,
    now: float,
    stuck_after: float,
    called_in: Mapping[str, Sequence[str]],
    slow: float,
    note: str | None = None,
) -> dict[str, Any]:
    """Build the response to `GET /api/trace/{id}`.

    `own`: recorded events with this ID or one joined to it, including attributed calls.
    `state_changes`: those of breakers, mirrors and the proxy around that time.
    """
    events = [part for event in own for part in unfold(event)]
    events += [event for history in histories for event in history.events]
    start, end = window(events, histories, now)
    for one in state_changes:
        if start <= one.at <= end + MARGIN and one.job_id in (None, *_ids(histories)):
            events.append(one)
    before = [one for one in state_changes if start - LOOK_BACK <= one.at < start]
    events.sort(key=lambda event: event.at)
    events, dropped = _bounded(events)
    kind = _kind(wanted, events, histories)
    context = DiagnosisContext(
        events, histories, now, stuck_after, called_in, slow, kind == "job", before
    )
    cause = diagnose(context) if events else None
    answer: dict[str, Any] = {
        "id": wanted,
        "kind": kind,
        "job_ids": _distinct([history.job_id for history in histories], [e.job_id for e in events]),
        "correlation_ids": _distinct([e.correlation_id for e in events]),
        "suspected_cause": None if cause is None else _cause(cause, events),
        "events": [document(event, summary(event)) for event in events],
    }
    notes = [note] if note else []
    if dropped:
        notes.append(f"{dropped} further events are not shown")
    if notes:
        answer["note"] = "; ".join(notes)
    return answer


def _cause(cause: Cause, events: Sequence[TraceEvent]) -> dict[str, Any]:
    return {
        "summary": cause.summary,
        "kind": cause.kind,
        "at": iso_utc(cause.event.at),
        "event": index_of(events, cause.event),
    }


def _kind(wanted: str, events: Sequence[TraceEvent], histories: Sequence[JobHistory]) -> str:
    if wanted in _ids(histories) or any(event.job_id == wanted for event in events):
        return "job"
    if any(event.correlation_id == wanted for event in events):
        return "correlation"
    return "unknown"


def _ids(histories: Sequence[JobHistory]) -> tuple[str, ...]:
    return tuple(history.job_id for history in histories)


def _distinct(*lists: Sequence[str | None]) -> list[str]:
    return list(dict.fromkeys(one for several in lists for one in several if one is not None))


def _bounded(events: list[TraceEvent]) -> tuple[list[TraceEvent], int]:
    """At most `MOST` events, and how many were dropped. Trouble is kept, then first and last."""
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
