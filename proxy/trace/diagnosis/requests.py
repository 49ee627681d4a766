"""Rules about a request: why it was rejected, what went wrong with its exchange. Pure."""

from __future__ import annotations

from proxy.core.clock import iso_utc
from proxy.core.process.shortage import DETAILS
from proxy.trace.diagnosis.context import Cause, DiagnosisContext, was_answered_here
from proxy.trace.events import Severity
from proxy.trace.summaries import duration


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


def answered_from_mirror(context: DiagnosisContext) -> Cause | None:
    """The client was answered from the mirror instead of by the service."""
    for event in reversed(context.ingress):
        if was_answered_here(event):
            message = f"{event.service or 'The service'} gave no good answer"
            message += (
                f" ({event.facts['rescued_from']}), so it was answered from what is known here"
            )
            return Cause("answered_here", message, event)
    return None
