"""What the trace tests share: events made by hand, and job histories."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from proxy.config import schema
from proxy.core.clock import Clock, iso_utc
from proxy.trace.events import Severity, TraceEvent
from proxy.trace.job_history import JobHistory, read_history
from proxy.trace.recorder import Trace

T0 = 1_795_450_757.0
CALLED_IN = schema.Trace.model_fields["called_in"].default

OK, WARNING, ERROR = Severity.OK, Severity.WARNING, Severity.ERROR


def exchange(at: float = 0.0, status: int = 200, **changes: Any) -> TraceEvent:
    """An exchange that began `at` seconds after `T0`; what is no field of an event is a fact."""
    fields = {"correlation_id": "c-1", "job_id": None, "service": "make-video", "duration": 0.01}
    given = {name: changes.pop(name, default) for name, default in fields.items()}
    facts = {"direction": "ingress", "method": "GET", "path": "/x", "status": status, "attempts": 1}
    kind = changes.pop("kind", changes.get("code") or "request")
    severity = ERROR if status >= 500 else WARNING if status >= 400 else OK
    return TraceEvent(T0 + at, "exchange", kind, severity, facts={**facts, **changes}, **given)


def call(
    at: float, status: int = 200, service: str = "audio-transcriber", **changes: Any
) -> TraceEvent:
    """A worker's call of a microservice, which names no job."""
    changes.setdefault("correlation_id", f"call-{at}")
    return exchange(at, status, service=service, direction="egress", **changes)


def breaker(at: float, kind: str, service: str = "audio-transcriber", **facts: Any) -> TraceEvent:
    """A circuit's change of state."""
    severity = ERROR if kind == "open" else OK
    return TraceEvent(
        T0 + at, "breaker", kind, severity, service=service, facts={"reason": "5 x", **facts}
    )


def trace_event(at: float, source: Any, kind: str, **facts: Any) -> TraceEvent:
    """Of a mirror or the proxy; `job_id` among the facts is the job's."""
    job_id = facts.pop("job_id", None)
    return TraceEvent(T0 + at, source, kind, ERROR, job_id=job_id, facts=facts)


def stages(**statuses: str) -> dict[str, Any]:
    """The `stages` of a document of the current shape."""
    return {name: {"name": name, "status": status} for name, status in statuses.items()}


def job_history(
    *versions: tuple[float, Mapping[str, Any]], job_id: str = "mv_1", **more: Any
) -> JobHistory:
    """Of a job whose document was each of these, seen so many seconds after `T0`."""
    shown = [{"seen": iso_utc(T0 + at), "data": json.dumps(document)} for at, document in versions]
    return read_history("make_video", {"job_id": job_id, "versions": shown, **more})


def failed_history(error: str = "[X] broken", job_id: str = "mv_1") -> JobHistory:
    """Queued at 0, generating subtitles from 1 to 20, then failed."""
    return job_history(
        (0, {"status": "queued", "stages": stages(generate_subtitles="pending")}),
        (1, {"status": "processing", "stages": stages(generate_subtitles="processing")}),
        (20, {"status": "processing", "stages": stages(generate_subtitles="failed")}),
        (20.01, {"status": "failed", "stages": stages(generate_subtitles="failed"),
                 "error": {"message": error, "type": "SubtitleGenerationException"}}),
        job_id=job_id,
    )  # fmt: skip


def trace(
    path: Path, clock: Clock, registry: CollectorRegistry | None = None, **settings: Any
) -> Trace:
    """A trace that is not started yet."""
    given = schema.Trace(sqlite=path, **settings)
    return Trace(given, clock, registry or CollectorRegistry())


def summaries(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each says."""
    return [str(event["summary"]) for event in events]
