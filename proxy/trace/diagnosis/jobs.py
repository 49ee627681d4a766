"""Rules about a job: why it failed, waits, or makes no progress. Pure."""

from __future__ import annotations

from proxy.core.clock import iso_utc
from proxy.trace.attribution import services_of
from proxy.trace.diagnosis.context import Cause, DiagnosisContext, was_answered_here
from proxy.trace.diagnosis.services import service_trouble
from proxy.trace.events import Severity, TraceEvent
from proxy.trace.job_history import FINISHED, WAITING
from proxy.trace.summaries import duration

LAST_CALL = 1.0  # seconds before a job's failure within which a call may be related to it
TRANSITION_LATE = 1.0  # seconds by which a circuit's transition, confirmed by Redis, may come late


def deleted(context: DiagnosisContext) -> Cause | None:
    """The job was deleted before it was finished."""
    for history in context.histories:
        event = context.job_event(history, "deleted")
        if event is not None and history.status not in FINISHED:
            who = "a client" if history.deleted_by == "client" else "somebody, in Redis"
            message = f"The job was deleted by {who} at {iso_utc(event.at)}, while it was"
            return Cause("deleted", f"{message} {history.status}", event)
    return None


def service_failed_job(context: DiagnosisContext) -> Cause | None:
    """A job failed in a stage that calls a service in trouble."""
    for history in context.histories:
        failed = context.job_event(history, "failed")
        if failed is None or history.status != "failed":
            continue
        called = services_of(history.failed_in or "", context.called_in)
        if history.unseen_work() is not None:
            # Of what it did, only its calls are known.
            called = [service for service in context.called_in if context.calls(service)]
        for service in called:
            found = service_trouble(context, service, failed.at + TRANSITION_LATE)
            if found is not None:
                kind, message, event = found
                where = f"job {history.job_id} failed in {history.failed_in}: {history.error}"
                return Cause(kind, f"{message}. So {where}", context.shown(event, failed))
    return None


def stage_failed(context: DiagnosisContext) -> Cause | None:
    """A job failed and its document has the reason."""
    for history in context.histories:
        failed = context.job_event(history, "failed")
        if failed is not None and history.status == "failed":
            event = context.job_event(history, "stage_failed") or failed
            why = history.error or history.error_type or "it does not say why"
            message = (
                f"Job {history.job_id} failed in {history.failed_in or 'an unknown stage'}: {why}"
            )
            return Cause("stage_failed", message + _last_call(context, failed), event)
    return None


def _last_call(context: DiagnosisContext, failed: TraceEvent) -> str:
    """The call that ended just before a job failed: the job may not have understood the answer."""
    calls = [
        e
        for e in context.of("exchange")
        if e.facts.get("direction") == "egress" and 0 <= failed.at - e.until <= LAST_CALL
    ]
    if not calls:
        return ""
    last = max(calls, key=lambda e: e.until)
    asked = f"{last.facts.get('method')} {last.facts.get('path')}"
    return f"; just before, {last.service} answered {last.facts.get('status')} to {asked}"


def store_cannot_write(context: DiagnosisContext) -> Cause | None:
    """SQLite cannot be written: creations are not confirmed, and new jobs could not be restored."""
    degraded = context.lasting("sqlite_degraded", "sqlite_back")
    unconfirmed = [e for e in context.ingress if e.facts.get("job_stored") == "degraded"]
    if degraded is not None:
        why = degraded.facts.get("reason")
        message = (
            f"The proxy cannot write jobs to its SQLite file since {iso_utc(degraded.at)}: {why}"
        )
        last = (
            unconfirmed[-1] if unconfirmed else context.events[-1] if context.events else degraded
        )
        return Cause("store_cannot_write", message, context.shown(degraded, last))
    if unconfirmed:
        message = "The job is in Redis, but SQLite did not confirm it in time"
        return Cause("store_slow", message, unconfirmed[-1])
    return None


def unattended(context: DiagnosisContext) -> Cause | None:
    """The broker and its workers show that no worker works on a job."""
    for history in context.histories:
        if history.finished:
            continue
        event = context.job_event(history)
        found = _newest(context, ("unattended", "requeued", "not_requeued"), history.job_id)
        known = found is not None and found.kind != "requeued"
        if found is not None and known and event is not None and found.at >= (event.at or 0.0):
            why = found.facts.get("evidence") or found.facts.get("reason")
            message = f"Nobody works on job {history.job_id}: {why}"
            return Cause("unattended", message, context.shown(found, event))
        found = _newest(context, ("no_workers", "workers_back"))
        if found is not None and found.kind == "no_workers" and event is not None:
            message = f"No worker is connected since {found.facts.get('since')}"
            message += f", so nobody works on job {history.job_id}"
            return Cause("no_workers", message, context.shown(found, event))
    return None


def _newest(
    context: DiagnosisContext, kinds: tuple[str, ...], job_id: str | None = None
) -> TraceEvent | None:
    """The latest event of these kinds, before the timeline or in it."""
    found = [
        event
        for event in (*context.before, *context.events)
        if event.source in ("mirror", "restore")
        and event.kind in kinds
        and (job_id is None or event.job_id == job_id)
    ]
    return max(found, key=lambda event: event.at, default=None)


def stranded(context: DiagnosisContext) -> Cause | None:
    """A job waits and no worker takes it."""
    for history in context.histories:
        if history.finished or history.status not in WAITING:
            continue
        reported = [e for e in context.of("mirror", "stranded") if e.job_id == history.job_id]
        waits = context.now - (history.last_change or context.now)
        if not reported and waits < context.stuck_after:
            continue
        message = f"Job {history.job_id} has been {history.status} for {duration(waits)}"
        message += " and nobody has taken it"
        losses = [e for e in (*context.before, *context.events) if is_loss(e)]
        if losses:
            message += (
                f"; Redis lost its data or its connection at {iso_utc(losses[-1].at)}, and with it"
                " perhaps the message for the worker"
            )
        else:
            message += ": are the workers busy with others, stopped, or not listening to its queue?"
        event = reported[-1] if reported else context.job_event(history)
        if event is not None:
            return Cause("stranded", message, event)
    return None


def is_loss(event: TraceEvent) -> bool:
    restored = event.source == "restore" and event.facts.get("restored")
    return bool(restored) or (event.source == "mirror" and event.kind == "redis_lost")


def stuck(context: DiagnosisContext) -> Cause | None:
    """A job has been in one phase for longer than it should."""
    for history in context.histories:
        if history.finished or history.status in WAITING or not history.phases:
            continue
        unchanged = context.now - (history.last_change or context.now)
        if unchanged < context.stuck_after:
            continue
        phase = history.phases[-1].name
        message = (
            f"Job {history.job_id} has been in {phase} without a change for {duration(unchanged)}"
        )
        event = context.job_event(history)
        if event is None:
            continue
        for service in services_of(phase, context.called_in):
            found = service_trouble(context, service, context.now)
            if found is not None:
                kind, words, shown = found
                return Cause(
                    kind,
                    f"{words}. So {message[0].lower()}{message[1:]}",
                    context.shown(shown, event),
                )
            calls = context.calls(service)
            if calls:
                last = calls[-1]
                message += (
                    f"; {service} answers (last recorded call {iso_utc(last.at)},"
                    f" {last.facts.get('status')}), but seems not to finish"
                )
        if not services_of(phase, context.called_in):
            message += ": it calls no service in this stage, so its worker is busy or was killed"
        return Cause("stuck_stage", message, event)
    return None


def redis_lost(context: DiagnosisContext) -> Cause | None:
    """Redis was lost or lost its data, and a request or a job was affected."""
    lost = [e for e in context.events if is_loss(e)]
    unwell = [e for e in context.ingress if e.severity is not Severity.OK or was_answered_here(e)]
    if not lost or not (unwell or any(not history.finished for history in context.histories)):
        return None
    first = lost[0]
    restored = [e for e in context.of("restore", "restored") if e.facts.get("restored")]
    message = f"Redis was lost at {iso_utc(first.at)}"
    if first.facts.get("reason"):
        message += f" ({first.facts['reason']})"
    if restored:
        last = restored[-1]
        message += f"; {last.facts['restored']} jobs were put back at {iso_utc(last.at)}"
    return Cause("redis_lost", message, first)
