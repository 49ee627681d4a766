"""What is probably to blame: rules, tried in order, the first that has something to say wins. Pure.

1. A rule says only what the events show. What is inferred is said to be so by the event it points
   at; where nothing is known to be wrong, there is no cause.
2. Order: what a request was refused for comes before what became of its job; a failing service
   before the stage that it made fail; what is over before what is merely slow.
3. Each rule points at the event that shows it, so that a reader can check it.
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

LAST_CALL = 1.0  # seconds before a job fails in which a call may have something to do with it
NEWS_LATE = 1.0  # seconds by which the news of a circuit, which Redis confirms, may come late

Rule = Callable[[DiagnosisContext], Cause | None]


def suspect(case: DiagnosisContext) -> Cause | None:
    """The cause that the first rule finds."""
    for rule in RULES:
        cause = rule(case)
        if cause is not None:
            return Cause(cause.kind, text(cause.summary, 600), cause.event)
    return None


# --- what a request was refused for -------------------------------------------------------------


def upload_refused(case: DiagnosisContext) -> Cause | None:
    """The upload was not what the route takes."""
    for event in case.of("upload"):
        refused = event.severity is not Severity.OK and event.kind.startswith("upload_")
        if refused and case.concerns(event):
            why = event.facts.get("detail") or event.kind
            return Cause("upload_refused", f"The upload was refused: {why}", event)
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


def not_stored(case: DiagnosisContext) -> Cause | None:
    """The service said yes, and there is no job."""
    for event in case.ingress:
        lost = event.kind == "job_not_stored" or event.facts.get("job_stored") == "not_stored"
        if lost and case.concerns(event):
            reason = str(event.facts.get("reason"))
            why = _NOT_STORED.get(reason, "the job is not in Redis")
            if problem := event.facts.get("store_problem"):
                why = f"{why} ({problem})"
            return Cause("job_not_stored", f"No job was made: {why}", event)
    return None


# --- what became of a job -----------------------------------------------------------------------


def deleted(case: DiagnosisContext) -> Cause | None:
    """Somebody deleted the job before it was done."""
    for life in case.lives:
        event = case.job_event(life, "deleted")
        if event is not None and life.status not in FINISHED:
            who = "a client" if life.deleted_by == "client" else "somebody, in Redis"
            said = f"The job was deleted by {who} at {iso_utc(event.at)}, while it was"
            return Cause("deleted", f"{said} {life.status}", event)
    return None


_TROUBLE = {
    "connect": ("service_down", "could not be reached"),
    "reset": ("service_breaks_off", "broke off"),
    "timeout": ("service_slow", "did not answer in time"),
    "status": ("service_errors", "answered with errors"),
    "circuit_open": ("circuit_open", "was not called, because its circuit was open"),
    "overloaded": ("overloaded", "was not called, because the proxy had no connection or place"),
}

#: Calls that the proxy refused: they say nothing about the service.
_REFUSED = ("circuit_open", "overloaded")


def trouble_of(event: TraceEvent) -> str | None:
    """What was wrong with a call: a key of `_TROUBLE`; None for nothing."""
    code = event.facts.get("code")
    if code in _REFUSED:
        return str(code)
    if code in ("upstream_unreachable", "upstream_reset", "upstream_timeout"):
        return {"upstream_unreachable": "connect", "upstream_reset": "reset"}.get(code, "timeout")
    if isinstance(event.facts.get("status"), int) and event.facts["status"] >= 500:
        return "status"
    return None


def _service_trouble(
    case: DiagnosisContext, service: str, until: float
) -> tuple[str, str, TraceEvent] | None:
    """Kind, words and the first sign of trouble with a service; None where there was none.

    What the proxy refused says nothing about the service, so it is counted by itself.
    """
    troubled = [(e, t) for e in case.calls(service) if (t := trouble_of(e)) is not None]
    failed = [(e, t) for e, t in troubled if t not in _REFUSED]
    refused = Counter(t for _, t in troubled if t in _REFUSED)
    opened = case.opening(service, until)
    first = troubled[0][0] if troubled else opened
    if first is None:
        return None
    name = _worst(failed, opened) or ("overloaded" if refused["overloaded"] else "circuit_open")
    kind, words = _TROUBLE[name]
    if name == "status":
        statuses = sorted({str(e.facts.get("status")) for e, t in failed if t == "status"})
        words = f"answered {', '.join(statuses)}" if statuses else words
    said = f"{service} {words}"
    if failed:
        said += f" ({_count(len(failed), 'failed call')} from {iso_utc(failed[0][0].at)})"
    if opened is not None:
        said += f"; its circuit opened at {iso_utc(opened.at)}"
        if not failed:  # else the reason is what has just been said
            said += f": {opened.facts.get('reason')}"
    if refused["circuit_open"]:
        said += f"; {_count(refused['circuit_open'], 'call')} met the open circuit"
    if refused["overloaded"]:
        said += f"; {_count(refused['overloaded'], 'call')} found no connection or place"
    return kind, said, first


def _worst(failed: list[tuple[TraceEvent, str]], opened: TraceEvent | None) -> str | None:
    """The most frequent trouble: of the calls, else of those for which the circuit opened."""
    troubles = Counter(trouble for _, trouble in failed)
    if not troubles and opened is not None:
        for failure in opened.facts.get("failures") or ():
            kind = str(failure.get("kind")) if isinstance(failure, dict) else "?"
            troubles[kind if kind in _TROUBLE else "status" if kind.isdigit() else "timeout"] += 1
    worst = troubles.most_common(1)
    return worst[0][0] if worst else None


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def service_failed_job(case: DiagnosisContext) -> Cause | None:
    """A job failed in a stage that calls a service which was in trouble."""
    for life in case.lives:
        failed = case.job_event(life, "failed")
        if failed is None or life.status != "failed":
            continue
        for service in services_of(life.failed_in or "", case.called_in):
            found = _service_trouble(case, service, failed.at + NEWS_LATE)
            if found is not None:
                kind, said, event = found
                where = f"job {life.job_id} failed in {life.failed_in}: {life.error}"
                return Cause(kind, f"{said}. So {where}", case.shown(event, failed))
    return None


def stage_failed(case: DiagnosisContext) -> Cause | None:
    """A job failed, and says why itself."""
    for life in case.lives:
        failed = case.job_event(life, "failed")
        if failed is not None and life.status == "failed":
            event = case.job_event(life, "stage_failed") or failed
            why = life.error or life.error_type or "it does not say why"
            said = f"Job {life.job_id} failed in {life.failed_in or 'an unknown stage'}: {why}"
            return Cause("stage_failed", said + _last_call(case, failed), event)
    return None


def _last_call(case: DiagnosisContext, failed: TraceEvent) -> str:
    """The call that ended just before a job failed: what it could not make sense of, perhaps."""
    calls = [
        e
        for e in case.of("exchange")
        if e.facts.get("direction") == "egress" and 0 <= failed.at - e.until <= LAST_CALL
    ]
    if not calls:
        return ""
    last = max(calls, key=lambda e: e.until)
    asked = f"{last.facts.get('method')} {last.facts.get('path')}"
    return f"; just before, {last.service} answered {last.facts.get('status')} to {asked}"


def store_cannot_write(case: DiagnosisContext) -> Cause | None:
    """SQLite takes nothing: no creation is confirmed, and nothing could be put back."""
    degraded = case.lasting("sqlite_degraded", "sqlite_back")
    unconfirmed = [e for e in case.ingress if e.facts.get("job_stored") == "degraded"]
    if degraded is not None:
        why = degraded.facts.get("reason")
        said = f"The proxy cannot write jobs to its SQLite file since {iso_utc(degraded.at)}: {why}"
        last = unconfirmed[-1] if unconfirmed else case.events[-1] if case.events else degraded
        return Cause("store_cannot_write", said, case.shown(degraded, last))
    if unconfirmed:
        said = "The job is in Redis, but SQLite did not confirm it in time"
        return Cause("store_slow", said, unconfirmed[-1])
    return None


def unattended(case: DiagnosisContext) -> Cause | None:
    """The broker and its workers show that nobody works on a job."""
    for life in case.lives:
        if life.finished:
            continue
        event = case.job_event(life)
        found = _newest(case, ("unattended", "requeued", "not_requeued"), life.job_id)
        known = found is not None and found.kind != "requeued"
        if found is not None and known and event is not None and found.at >= (event.at or 0.0):
            why = found.facts.get("evidence") or found.facts.get("reason")
            said = f"Nobody works on job {life.job_id}: {why}"
            return Cause("unattended", said, case.shown(found, event))
        found = _newest(case, ("no_workers", "workers_back"))
        if found is not None and found.kind == "no_workers" and event is not None:
            said = f"No worker is connected since {found.facts.get('since')}"
            said += f", so nobody works on job {life.job_id}"
            return Cause("no_workers", said, case.shown(found, event))
    return None


def _newest(
    case: DiagnosisContext, kinds: tuple[str, ...], job_id: str | None = None
) -> TraceEvent | None:
    """The latest news of these kinds, before the end of the story or in it."""
    found = [
        event
        for event in (*case.before, *case.events)
        if event.source in ("mirror", "restore")
        and event.kind in kinds
        and (job_id is None or event.job_id == job_id)
    ]
    return max(found, key=lambda event: event.at, default=None)


def stranded(case: DiagnosisContext) -> Cause | None:
    """A job waits, and nobody takes it."""
    for life in case.lives:
        if life.finished or life.status not in WAITING:
            continue
        told = [e for e in case.of("mirror", "stranded") if e.job_id == life.job_id]
        waits = case.now - (life.last_change or case.now)
        if not told and waits < case.stuck_after:
            continue
        said = f"Job {life.job_id} is {life.status} for {duration(waits)} and nobody has taken it"
        losses = [e for e in (*case.before, *case.events) if _is_loss(e)]
        if losses:
            said += (
                f"; Redis lost its data or its connection at {iso_utc(losses[-1].at)}, and with it"
                " perhaps the message for the worker"
            )
        else:
            said += ": are the workers busy with others, stopped, or not listening to its queue?"
        event = told[-1] if told else case.job_event(life)
        if event is not None:
            return Cause("stranded", said, event)
    return None


def _is_loss(event: TraceEvent) -> bool:
    restored = event.source == "restore" and event.facts.get("restored")
    return bool(restored) or (event.source == "mirror" and event.kind == "redis_lost")


def stuck(case: DiagnosisContext) -> Cause | None:
    """A job works on one thing for longer than it should."""
    for life in case.lives:
        if life.finished or life.status in WAITING or not life.phases:
            continue
        unchanged = case.now - (life.last_change or case.now)
        if unchanged < case.stuck_after:
            continue
        phase = life.phases[-1].name
        said = f"Job {life.job_id} has been in {phase} without a change for {duration(unchanged)}"
        event = case.job_event(life)
        if event is None:
            continue
        for service in services_of(phase, case.called_in):
            found = _service_trouble(case, service, case.now)
            if found is not None:
                kind, words, shown = found
                return Cause(
                    kind, f"{words}. So {said[0].lower()}{said[1:]}", case.shown(shown, event)
                )
            calls = case.calls(service)
            if calls:
                last = calls[-1]
                said += (
                    f"; {service} answers (last kept call {iso_utc(last.at)},"
                    f" {last.facts.get('status')}), but seems not to finish"
                )
        if not services_of(phase, case.called_in):
            said += ": the worker is at it alone, or was killed"
        return Cause("stuck_stage", said, event)
    return None


def redis_lost(case: DiagnosisContext) -> Cause | None:
    """Redis went away, or lost its data, and something was not as it should be."""
    lost = [e for e in case.events if _is_loss(e)]
    unwell = [e for e in case.ingress if e.severity is not Severity.OK or _was_rescued(e)]
    if not lost or not (unwell or any(not life.finished for life in case.lives)):
        return None
    first = lost[0]
    restored = [e for e in case.of("restore", "restored") if e.facts.get("restored")]
    said = f"Redis was lost at {iso_utc(first.at)}"
    if first.facts.get("reason"):
        said += f" ({first.facts['reason']})"
    if restored:
        last = restored[-1]
        said += f"; {last.facts['restored']} jobs were put back at {iso_utc(last.at)}"
    return Cause("redis_lost", said, first)


def _was_rescued(event: TraceEvent) -> bool:
    return "rescued_from" in event.facts


# --- what went wrong with an exchange -----------------------------------------------------------

#: What the proxy's own answers say of their cause, where no more is known.
_CODES = {
    "upstream_unreachable": "{service} could not be reached",
    "upstream_timeout": "{service} did not answer in time",
    "upstream_reset": "{service} broke off, or sent what is no HTTP",
    "overloaded": "There was no free connection or place for {service}",
    "too_many_requests": "The caller had used up its share (limits.per_client)",
    "draining": "The proxy was being stopped",
    "client_left": "The client went away before it had its answer",
    "request_timeout": "The client did not send its request in time",
    "no_route": "No route has this path",
    "method_not_allowed": "A route has this path, but not with this method",
    "job_expired": "The job's time was over",
    "store_away": "Neither {service} nor the mirror could look for the job",
    "internal_error": "The proxy itself failed: a defect; the log has the traceback",
}
_ROUTING = frozenset({"no_route", "method_not_allowed"})


def exchange_failed(case: DiagnosisContext) -> Cause | None:
    """The proxy answered with an error of its own."""
    failed = [e for e in case.of("exchange") if e.facts.get("code") and case.concerns(e)]
    for event in reversed(failed):
        code = str(event.facts["code"])
        service = event.service or "the upstream"
        if code == "circuit_open":
            opened = case.opening(service, event.until)
            since = f" since {iso_utc(opened.at)}: {opened.facts.get('reason')}" if opened else ""
            said = f"The circuit of {service} was open{since}"
            return Cause(code, said if opened else f"{said}: {event.facts.get('detail')}", event)
        if code in _ROUTING:
            refused = [
                e for e in (*case.before, *case.events) if e.source == "proxy" and e.at <= event.at
            ]
            if refused and refused[-1].kind == "reload_refused":
                why = (refused[-1].facts.get("problems") or ["?"])[0]
                said = f"{_CODES[code]}; the last config was refused and the old one is in force"
                return Cause("reload_refused", f"{said}: {why}", case.shown(refused[-1], event))
        words = _CODES.get(code, "The proxy refused the request").format(service=service)
        if event.facts.get("reason") in DETAILS:
            words = f"The proxy or its host ran short, and {service} is not to blame"
        silent = event.facts.get("silent_ms")
        if isinstance(silent, int | float):
            words = f"{words}: {service} had been silent for {duration(silent / 1000)}"
            return Cause(code, words, event)
        unfinished = event.facts.get("unfinished_ms")
        if isinstance(unfinished, int | float):
            words = f"The client went away while {service} was still sending its answer"
            words += f": {duration(unfinished / 1000)} after the answer's head"
            return Cause(code, words, event)
        detail = event.facts.get("detail")
        return Cause(code, f"{words}: {detail}" if detail else words, event)
    return None


def upstream_error(case: DiagnosisContext) -> Cause | None:
    """The service itself answered with an error."""
    for least, kind in ((500, "upstream_error"), (400, "refused_by_service")):
        for event in reversed(case.ingress or case.of("exchange")):
            status = event.facts.get("status")
            if event.facts.get("code") or not case.concerns(event):
                continue
            if not isinstance(status, int) or status < least:
                continue
            target = f" at {event.facts['target']}" if event.facts.get("target") else ""
            said = f"{event.service or 'The upstream'}{target} itself answered {status}"
            path = f"{event.facts.get('method')} {event.facts.get('path')}"
            return Cause(kind, f"{said} to {path}", event)
    return None


def unexpected_answer(case: DiagnosisContext) -> Cause | None:
    """The service answered well, but not with what the route is for."""
    for event in reversed(case.of("exchange")):
        found = event.facts.get("unexpected_type")
        if found and case.concerns(event):
            said = f"{event.service} answered {event.facts.get('status')} with {found}"
            said += ": probably an error page, or another service at its address"
            return Cause("unexpected_answer", said, event)
    return None


# --- what was merely slow -----------------------------------------------------------------------


def restarting(case: DiagnosisContext) -> Cause | None:
    """The service refused connections for a while and then answered."""
    for event in case.of("attempt", "connect"):
        waited = event.duration or 0.0
        if waited >= 0.3:
            said = (
                f"{event.service} refused connections for {duration(waited)}, as when it restarts"
            )
            return Cause("service_restarting", f"{said}; the request waited and got through", event)
    return None


def service_slow(case: DiagnosisContext) -> Cause | None:
    """Calls of a microservice, or the exchange itself, took long."""
    slow = [e for e in case.of("exchange") if (e.duration or 0.0) >= case.slow]
    if not slow:
        return None
    services = Counter(e.service for e in slow if e.service)
    if not services:
        return None
    service, count = services.most_common(1)[0]
    longest = max((e for e in slow if e.service == service), key=lambda e: e.duration or 0.0)
    upstream_ms = longest.facts.get("upstream_ms")
    share = f", {upstream_ms / 1000:.1f} s of it until its answer began" if upstream_ms else ""
    said = f"{service} was slow: {count} kept exchange{'s' * (count > 1)} took over {case.slow:g} s"
    said += f", the longest {duration(longest.duration)}{share}"
    return Cause("service_slow", said, longest)


def recovered_trouble(case: DiagnosisContext) -> Cause | None:
    """Calls of a microservice failed, though the job went on."""
    services = dict.fromkeys(e.service for e in case.of("exchange") if e.service)
    for service in services:
        failed = [e for e in case.calls(str(service)) if trouble_of(e) is not None]
        found = _service_trouble(case, str(service), failed[-1].until) if failed else None
        if found is not None:
            kind, said, event = found
            return Cause(kind, said, event)
    return None


def answered_from_mirror(case: DiagnosisContext) -> Cause | None:
    """The client got what the mirror knew, not what the service said."""
    for event in reversed(case.ingress):
        if _was_rescued(event):
            said = f"{event.service or 'The service'} gave no good answer"
            said += f" ({event.facts['rescued_from']}), so it was answered from what is known here"
            return Cause("answered_here", said, event)
    return None


#: In this order.
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
