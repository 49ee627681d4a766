"""Rules about a service: what was wrong with the calls to it, and what was merely slow. Pure."""

from __future__ import annotations

from collections import Counter

from proxy.core.clock import iso_utc
from proxy.trace.diagnosis.context import Cause, DiagnosisContext
from proxy.trace.events import TraceEvent
from proxy.trace.summaries import duration

TROUBLE = {
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
    """What was wrong with a call: a key of `TROUBLE`, or None."""
    code = event.facts.get("code")
    if code in _REFUSED:
        return str(code)
    if code in ("upstream_unreachable", "upstream_reset", "upstream_timeout"):
        return {"upstream_unreachable": "connect", "upstream_reset": "reset"}.get(code, "timeout")
    if isinstance(event.facts.get("status"), int) and event.facts["status"] >= 500:
        return "status"
    return None


def service_trouble(
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
    kind, words = TROUBLE[name]
    if name == "status":
        statuses = sorted({str(e.facts.get("status")) for e, t in failed if t == "status"})
        words = f"answered {', '.join(statuses)}" if statuses else words
    message = f"{service} {words}"
    if failed:
        message += f" ({count_of(len(failed), 'failed call')} from {iso_utc(failed[0][0].at)})"
    if opened is not None:
        message += f"; its circuit opened at {iso_utc(opened.at)}"
        if not failed:  # otherwise the failed calls above are the reason
            message += f": {opened.facts.get('reason')}"
    if refused["circuit_open"]:
        message += f"; {count_of(refused['circuit_open'], 'call')} met the open circuit"
    if refused["overloaded"]:
        message += f"; {count_of(refused['overloaded'], 'call')} found no connection or place"
    return kind, message, first


def _worst(failed: list[tuple[TraceEvent, str]], opened: TraceEvent | None) -> str | None:
    """The most frequent trouble of the calls, or else of the failures that opened the circuit."""
    troubles = Counter(trouble for _, trouble in failed)
    if not troubles and opened is not None:
        for failure in opened.facts.get("failures") or ():
            kind = str(failure.get("kind")) if isinstance(failure, dict) else "?"
            troubles[kind if kind in TROUBLE else "status" if kind.isdigit() else "timeout"] += 1
    worst = troubles.most_common(1)
    return worst[0][0] if worst else None


def count_of(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


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
        found = service_trouble(context, str(service), failed[-1].until) if failed else None
        if found is not None:
            kind, message, event = found
            return Cause(kind, message, event)
    return None
