"""One readable line for each event, by source and kind. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proxy.trace.events import TraceEvent, text


def summary(event: TraceEvent) -> str:
    """The event in one line of about 300 characters at most."""
    describe = _BY_KIND.get((event.source, event.kind)) or _BY_SOURCE[event.source]
    return text(describe(event), 300)


def duration(seconds: float | None) -> str:
    """`340 ms`, `2.1 s`, `3 min 5 s`, `2 h 10 min`; empty for None."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def _exchange(event: TraceEvent) -> str:
    facts = event.facts
    line = f"{facts.get('method')} {facts.get('path')}"
    if facts.get("direction") == "egress":
        line = f"call of {event.service or facts.get('listener')}: {line}"
    line += f": {_status(facts)}"
    notes = []
    if facts.get("detail"):
        notes.append(str(facts["detail"]))
    if facts.get("attempts", 0) > 1:
        notes.append(f"{facts['attempts']} attempts")
    if "rescued_from" in facts:
        notes.append(f"answered here instead of {facts['rescued_from']}")
    stored = facts.get("job_stored")
    if stored in ("not_stored", "degraded"):
        words = {"not_stored": "the job is not stored", "degraded": "not confirmed in SQLite"}
        notes.append(words[stored])
    return line + (f" ({'; '.join(notes)})" if notes else "")


def _status(facts: dict[str, Any]) -> str:
    status = str(facts.get("status"))
    if facts.get("status") == 499:
        return _left(facts)
    return f"{status} {facts['code']}" if facts.get("code") else status


def _left(facts: dict[str, Any]) -> str:
    silent = facts.get("silent_ms")
    if not isinstance(silent, int | float):
        return "the client left"
    return f"the client left; the service had been silent for {duration(silent / 1000)}"


def _creation(event: TraceEvent) -> str:
    facts = event.facts
    words = {"confirmed": "and stored", "degraded": "stored in Redis, not confirmed in SQLite"}
    stored = words.get(str(facts.get("job_stored")), "whether it is stored is unknown")
    job = event.job_id or "a job"
    return f"{facts.get('method')} {facts.get('path')}: {_status(facts)}, {job} accepted, {stored}"


_ATTEMPTS = {
    "connect": "could not be reached",
    "reset": "broke off",
    "timeout": "did not answer in time",
}


def _attempt(event: TraceEvent) -> str:
    facts = event.facts
    kind = event.kind
    line = _ATTEMPTS.get(kind) or f"answered {kind.removeprefix('status_')}"
    count = facts.get("count", 1)
    times = f", {count} times within {duration(event.duration) or '0 s'}" if count > 1 else ""
    target = f" at {facts['target']}" if facts.get("target") else ""
    return f"{event.service or 'the upstream'}{target} {line}{times}"


def _breaker(event: TraceEvent) -> str:
    words = {
        "open": "opens: calls are refused",
        "half_open": "lets probes through",
        "closed": "closes: calls flow again",
        "forced_open": "is opened by hand",
        "forced_closed": "is closed by hand",
    }
    line = f"the circuit of {event.service} {words.get(event.kind, event.kind)}"
    reason = event.facts.get("reason")
    return f"{line} ({reason})" if reason else line


def _upload(event: TraceEvent) -> str:
    facts = event.facts
    what = facts.get("upload_type") or facts.get("upload_label") or "unknown type"
    size = facts.get("upload_size")
    measured = [str(what)]
    if isinstance(size, int):
        measured.append(f"{size:,} bytes")
    if isinstance(facts.get("upload_duration"), int | float):
        measured.append(f"plays {facts['upload_duration']:.1f} s")
    verdict = event.kind
    if verdict == "accepted":
        return f"upload accepted: {', '.join(measured)}"
    if verdict == "unfinished":
        return "the upload ended before its check was complete"
    return f"upload rejected: {facts.get('detail') or verdict}"


def _stage(what: str) -> Callable[[TraceEvent], str]:
    def describe(event: TraceEvent) -> str:
        error = event.facts.get("error")
        line = f"stage {event.facts.get('stage')} {what}"
        return f"{line}: {error}" if error else line

    return describe


def _job(event: TraceEvent) -> str:
    facts = event.facts
    if event.kind.startswith("stage_"):
        return _stage(event.kind.removeprefix("stage_"))(event)
    return f"job {event.kind}" + (f": {facts['status']}" if facts.get("status") else "")


def _started(event: TraceEvent) -> str:
    waited = event.facts.get("waited_ms")
    after = duration(waited / 1000) if isinstance(waited, int | float) else ""
    return f"a worker has taken the job, {after} after it was first seen"


def _failed(event: TraceEvent) -> str:
    facts = event.facts
    where = f" in {facts['stage']}" if facts.get("stage") else ""
    return f"job failed{where}: {facts.get('error') or facts.get('type') or 'no reason given'}"


def _restored(event: TraceEvent) -> str:
    facts = event.facts
    return (
        f"{facts.get('restored')} jobs put back into Redis ({facts.get('cause')}),"
        f" {facts.get('kept')} were still there"
    )


def _reason(line: str) -> Callable[[TraceEvent], str]:
    def describe(event: TraceEvent) -> str:
        reason = event.facts.get("reason")
        return f"{line}: {reason}" if reason else line

    return describe


def _refused_reload(event: TraceEvent) -> str:
    problems = event.facts.get("problems") or ["?"]
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"reload refused, the old config stays in force: {problems[0]}{more}"


_BY_SOURCE: dict[str, Callable[[TraceEvent], str]] = {
    "exchange": _exchange,
    "attempt": _attempt,
    "breaker": _breaker,
    "upload": _upload,
    "job": _job,
    "restore": _restored,
    "mirror": lambda event: _reason(event.kind.replace("_", " "))(event),
    "proxy": lambda event: f"the proxy {event.kind.replace('_', ' ')}",
}

_BY_KIND: dict[tuple[str, str], Callable[[TraceEvent], str]] = {
    ("exchange", "creation"): _creation,
    ("job", "created"): lambda event: f"job {event.job_id} is {event.facts.get('status')}",
    ("job", "started"): _started,
    ("job", "failed"): _failed,
    ("job", "completed"): lambda event: f"job completed, {duration(event.duration)} in all",
    ("job", "cancelled"): lambda event: "job cancelled",
    ("job", "deleted"): lambda event: (
        "job deleted by a client"
        if event.facts.get("origin") == "client"
        else "job deleted in Redis"
    ),
    ("job", "stage_started"): _stage("begins"),
    ("mirror", "redis_lost"): _reason("Redis no longer answers"),
    ("mirror", "redis_back"): lambda event: "Redis answers again",
    ("mirror", "sqlite_degraded"): _reason("the jobs' SQLite file cannot be written"),
    ("mirror", "sqlite_back"): lambda event: "the jobs' SQLite file can be written again",
    ("mirror", "gap"): _reason("the jobs' SQLite file lost data and is being refilled"),
    ("mirror", "obstacle"): _reason("lost jobs cannot be restored"),
    ("mirror", "obstacle_gone"): lambda event: "lost jobs can be restored again",
    ("mirror", "stranded"): lambda event: (
        f"nobody works on job {event.job_id}, {event.facts.get('status')}"
        f" since {event.facts.get('unchanged_since')}"
    ),
    ("mirror", "no_workers"): lambda event: (
        f"no worker is connected to {event.facts.get('queues')}, and"
        f" {event.facts.get('unfinished')} jobs are unfinished"
    ),
    ("mirror", "workers_back"): lambda event: "a worker is connected again",
    ("mirror", "unattended"): lambda event: (
        f"nobody works on job {event.job_id}: {event.facts.get('evidence')}"
    ),
    ("mirror", "not_requeued"): lambda event: (
        f"job {event.job_id} was not requeued: {event.facts.get('reason')}"
    ),
    ("mirror", "broker_refused"): _reason("the broker cannot be read"),
    ("mirror", "broker_back"): lambda event: "the broker can be read again",
    ("restore", "requeued"): lambda event: (
        f"job {event.job_id} was requeued ({event.facts.get('how')}, attempt"
        f" {event.facts.get('attempt')}): {event.facts.get('evidence')}"
    ),
    ("proxy", "reload_refused"): _refused_reload,
    ("proxy", "reloaded"): lambda event: "the config was reloaded",
    ("proxy", "trace_degraded"): _reason("the trace cannot be written"),
    ("proxy", "trace_back"): lambda event: "the trace can be written again",
}
