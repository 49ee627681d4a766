"""Finds the likely cause: rules tried in order, the first match wins. Pure.

1. A rule states only what the events show. An inference is marked as such in the event that it
   points at; if nothing is known to be wrong, there is no cause.
2. Order: why a request was rejected comes before what happened to its job, a failing service before
   the stage that failed because of it, and failures before slowness.
3. Each rule points at the event that proves it, so that a reader can check it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from proxy.core.clock import iso_utc
from proxy.core.process.shortage import DETAILS
from proxy.trace.attribution import services_of
from proxy.trace.context import Cause, DiagnosisContext
from proxy.trace.events import Severity, TraceEvent, text
from proxy.trace.job_history import FINISHED, WAITING
from proxy.trace.summaries import duration

LAST_CALL = 1.0  # seconds before a job's failure within which a call may be related to it
TRANSITION_LATE = 1.0  # seconds by which a circuit's transition, confirmed by Redis, may come late

Rule = Callable[[DiagnosisContext], Cause | None]


def diagnose(context: DiagnosisContext) -> Cause | None:
    """The cause found by the first matching rule."""
    for rule in RULES:
        cause = rule(context)
        if cause is not None:
            return Cause(cause.kind, text(cause.summary, 600), cause.event)
    return None


# --- why a request was rejected -----------------------------------------------------------------


def upload_refused(context: DiagnosisContext) -> Cause | None:
    """The route rejected the upload."""
    for event in context.of("upload"):
        refused = event.severity is not Severity.OK and event.kind.startswith("upload_")
        if refused and context.concerns(event):
            why = event.facts.get("detail") or event.kind
            return Cause("upload_refused", f"The upload was rejected: {why}", event)
    return None


_NOT_STORED = {
    "redis_down": "Redis could not be reached, so the job was refused instead of lost",
    "app_breaker_open": "Redis was back, but the service did not use it again yet, so the job was"
    " refused instead of lost",
    "redis_refuses_writes": "Redis takes no writes, so the job was refused instead of lost",
    "key_missing": "the service accepted the job, but its key never appeared in Redis: the"
    " service's own Redis breaker is open, or `redis.url` or the mirror's `key` is not the one that"
    " the service uses",
}


def not_stored(context: DiagnosisContext) -> Cause | None:
    """The service accepted a job that does not exist."""
    for event in context.ingress:
        lost = event.kind == "job_not_stored" or event.facts.get("job_stored") == "not_stored"
        if lost and context.concerns(event):
            reason = str(event.facts.get("reason"))
            why = _NOT_STORED.get(reason, "the job is not in Redis")
            if problem := event.facts.get("store_problem"):
                why = f"{why} ({problem})"
            return Cause("job_not_stored", f"No job was created: {why}", event)
    return None


# --- what happened to a job ---------------------------------------------------------------------


def deleted(context: DiagnosisContext) -> Cause | None:
    """The job was deleted before it was finished."""
    for history in context.histories:
        event = context.job_event(history, "deleted")
        if event is not None and history.status not in FINISHED:
            who = "a client" if history.deleted_by == "client" else "somebody, in Redis"
            message = f"The job was deleted by {who} at {iso_utc(event.at)}, while it was"
            return Cause("deleted", f"{message} {history.status}", event)
    return None


_TROUBLE = {
    "connect": ("service_down", "could not be reached"),
    "reset": ("service_breaks_off", "broke off"),
    "timeout": ("service_slow", "did not answer in time"),
    "status": ("service_errors", "answered with errors"),
    "circuit_open": ("circuit_open", "was not called, because its circuit was open"),
    "overloaded": ("overloaded", "was not called, because the proxy had no connection or place"),
}

#: Calls that the proxy itself refused: they prove nothing about the service.
_REFUSED = ("circuit_open", "overloaded")


def trouble_of(event: TraceEvent) -> str | None:
    """What was wrong with a call: a key of `_TROUBLE`, or None."""
    code = event.facts.get("code")
    if code in _REFUSED:
        return str(code)
    if code in ("upstream_unreachable", "upstream_reset", "upstream_timeout"):
        return {"upstream_unreachable": "connect", "upstream_reset": "reset"}.get(code, "timeout")
    if isinstance(event.facts.get("status"), int) and event.facts["status"] >= 500:
        return "status"
    return None


def _service_trouble(
    context: DiagnosisContext, service: str, until: float
) -> tuple[str, str, TraceEvent] | None:
    """Kind, description and first event of trouble with a service; None if there was none.

    Calls that the proxy refused prove nothing about the service and are counted separately.
    """
    troubled = [(e, t) for e in context.calls(service) if (t := trouble_of(e)) is not None]
    failed = [(e, t) for e, t in troubled if t not in _REFUSED]
    refused = Counter(t for _, t in troubled if t in _REFUSED)
    opened = context.opening(service, until)
    first = troubled[0][0] if troubled else opened
    if first is None:
        return None
    name = _worst(failed, opened) or ("overloaded" if refused["overloaded"] else "circuit_open")
    kind, words = _TROUBLE[name]
    if name == "status":
        statuses = sorted({str(e.facts.get("status")) for e, t in failed if t == "status"})
        words = f"answered {', '.join(statuses)}" if statuses else words
    message = f"{service} {words}"
    if failed:
        message += f" ({_count(len(failed), 'failed call')} from {iso_utc(failed[0][0].at)})"
    if opened is not None:
        message += f"; its circuit opened at {iso_utc(opened.at)}"
        if not failed:  # otherwise the failed calls above are the reason
            message += f": {opened.facts.get('reason')}"
    if refused["circuit_open"]:
        message += f"; {_count(refused['circuit_open'], 'call')} met the open circuit"
    if refused["overloaded"]:
        message += f"; {_count(refused['overloaded'], 'call')} found no connection or place"
    return kind, message, first


def _worst(failed: list[tuple[TraceEvent, str]], opened: TraceEvent | None) -> str | None:
    """The most frequent trouble of the calls, or else of the failures that opened the circuit."""
    troubles = Counter(trouble for _, trouble in failed)
    if not troubles and opened is not None:
        for failure in opened.facts.get("failures") or ():
            kind = str(failure.get("kind")) if isinstance(failure, dict) else "?"
            troubles[kind if kind in _TROUBLE else "status" if kind.isdigit() else "timeout"] += 1
    worst = troubles.most_common(1)
    return worst[0][0] if worst else None


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def service_failed_job(context: DiagnosisContext) -> Cause | None:
    """A job failed in a stage that calls a service in trouble."""
    for history in context.histories:
        failed = context.job_event(history, "failed")
        if failed is None or history.status != "failed":
            continue
        for service in services_of(history.failed_in or "", context.called_in):
            found = _service_trouble(context, service, failed.at + TRANSITION_LATE)
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
        losses = [e for e in (*context.before, *context.events) if _is_loss(e)]
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


def _is_loss(event: TraceEvent) -> bool:
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
            found = _service_trouble(context, service, context.now)
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
    lost = [e for e in context.events if _is_loss(e)]
    unwell = [e for e in context.ingress if e.severity is not Severity.OK or _was_rescued(e)]
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


def _was_rescued(event: TraceEvent) -> bool:
    return "rescued_from" in event.facts


# --- what went wrong with an exchange -----------------------------------------------------------

#: Causes of the proxy's own error responses, if no more is known.
_CODES = {
    "upstream_unreachable": "{service} could not be reached",
    "upstream_timeout": "{service} did not answer in time",
    "upstream_reset": "{service} broke off, or sent something other than HTTP",
    "overloaded": "There was no free connection or place for {service}",
    "too_many_requests": "The caller had used up its share (limits.per_client)",
    "draining": "The proxy was shutting down",
    "client_left": "The client left before it had its answer",
    "request_timeout": "The client did not send its request in time",
    "no_route": "No route has this path",
    "method_not_allowed": "A route has this path, but not with this method",
    "job_expired": "The job had expired",
    "store_away": "Neither {service} nor the mirror could look up the job",
    "internal_error": "The proxy itself failed, which is a bug; the log has the traceback",
}
_ROUTING = frozenset({"no_route", "method_not_allowed"})


def exchange_failed(context: DiagnosisContext) -> Cause | None:
    """The proxy itself answered with an error."""
    failed = [e for e in context.of("exchange") if e.facts.get("code") and context.concerns(e)]
    for event in reversed(failed):
        code = str(event.facts["code"])
        service = event.service or "the upstream"
        if code == "circuit_open":
            opened = context.opening(service, event.until)
            since = f" since {iso_utc(opened.at)}: {opened.facts.get('reason')}" if opened else ""
            message = f"The circuit of {service} was open{since}"
            return Cause(
                code, message if opened else f"{message}: {event.facts.get('detail')}", event
            )
        if code in _ROUTING:
            refused = [
                e
                for e in (*context.before, *context.events)
                if e.source == "proxy" and e.at <= event.at
            ]
            if refused and refused[-1].kind == "reload_refused":
                why = (refused[-1].facts.get("problems") or ["?"])[0]
                message = f"{_CODES[code]}; the last config was refused and the old one is in force"
                return Cause(
                    "reload_refused", f"{message}: {why}", context.shown(refused[-1], event)
                )
        words = _CODES.get(code, "The proxy refused the request").format(service=service)
        if event.facts.get("reason") in DETAILS:
            words = f"The proxy or its host ran short, and {service} is not to blame"
        silent = event.facts.get("silent_ms")
        if isinstance(silent, int | float):
            words = f"{words}: {service} had been silent for {duration(silent / 1000)}"
            return Cause(code, words, event)
        unfinished = event.facts.get("unfinished_ms")
        if isinstance(unfinished, int | float):
            words = f"The client left while {service} was still sending its answer"
            words += f": {duration(unfinished / 1000)} after the answer's head"
            return Cause(code, words, event)
        detail = event.facts.get("detail")
        return Cause(code, f"{words}: {detail}" if detail else words, event)
    return None


def upstream_error(context: DiagnosisContext) -> Cause | None:
    """The service itself answered with an error status."""
    for least, kind in ((500, "upstream_error"), (400, "refused_by_service")):
        for event in reversed(context.ingress or context.of("exchange")):
            status = event.facts.get("status")
            if event.facts.get("code") or not context.concerns(event):
                continue
            if not isinstance(status, int) or status < least:
                continue
            target = f" at {event.facts['target']}" if event.facts.get("target") else ""
            message = f"{event.service or 'The upstream'}{target} itself answered {status}"
            path = f"{event.facts.get('method')} {event.facts.get('path')}"
            return Cause(kind, f"{message} to {path}", event)
    return None


def unexpected_answer(context: DiagnosisContext) -> Cause | None:
    """The service answered with success, but not with the content type of the route."""
    for event in reversed(context.of("exchange")):
        found = event.facts.get("unexpected_type")
        if found and context.concerns(event):
            message = f"{event.service} answered {event.facts.get('status')} with {found}"
            message += ": probably an error page, or another service at its address"
            return Cause("unexpected_answer", message, event)
    return None


# --- what was merely slow -----------------------------------------------------------------------


def restarting(context: DiagnosisContext) -> Cause | None:
    """The service refused connections for a while, then answered."""
    for event in context.of("attempt", "connect"):
        waited = event.duration or 0.0
        if waited >= 0.3:
            message = (
                f"{event.service} refused connections for {duration(waited)}, as when it restarts"
            )
            return Cause(
                "service_restarting", f"{message}; the request waited and got through", event
            )
    return None


def service_slow(context: DiagnosisContext) -> Cause | None:
    """Calls to a microservice, or the exchange itself, were slow."""
    slow = [e for e in context.of("exchange") if (e.duration or 0.0) >= context.slow]
    if not slow:
        return None
    services = Counter(e.service for e in slow if e.service)
    if not services:
        return None
    service, count = services.most_common(1)[0]
    longest = max((e for e in slow if e.service == service), key=lambda e: e.duration or 0.0)
    upstream_ms = longest.facts.get("upstream_ms")
    share = f", {upstream_ms / 1000:.1f} s of it until its answer began" if upstream_ms else ""
    message = f"{service} was slow: {count} recorded exchange{'s' * (count > 1)}"
    message += f" took over {context.slow:g} s"
    message += f", the longest {duration(longest.duration)}{share}"
    return Cause("service_slow", message, longest)


def recovered_trouble(context: DiagnosisContext) -> Cause | None:
    """Calls to a microservice failed, but the job went on."""
    services = dict.fromkeys(e.service for e in context.of("exchange") if e.service)
    for service in services:
        failed = [e for e in context.calls(str(service)) if trouble_of(e) is not None]
        found = _service_trouble(context, str(service), failed[-1].until) if failed else None
        if found is not None:
            kind, message, event = found
            return Cause(kind, message, event)
    return None


def answered_from_mirror(context: DiagnosisContext) -> Cause | None:
    """The client was answered from the mirror instead of by the service."""
    for event in reversed(context.ingress):
        if _was_rescued(event):
            message = f"{event.service or 'The service'} gave no good answer"
            message += (
                f" ({event.facts['rescued_from']}), so it was answered from what is known here"
            )
            return Cause("answered_here", message, event)
    return None


#: Tried in this order.
RULES: tuple[Rule, ...] = (
    upload_refused,
    not_stored,
    deleted,
    service_failed_job,
    stage_failed,
    store_cannot_write,
    unattended,
    stranded,
    stuck,
    exchange_failed,
    redis_lost,
    upstream_error,
    unexpected_answer,
    recovered_trouble,
    restarting,
    service_slow,
    answered_from_mirror,
)
