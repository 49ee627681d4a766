"""The health of the proxy and its upstreams in one sentence, the most important problem first.

Rules, in order of importance
1. The proxy itself does not accept requests, or a part of it keeps failing.
2. The jobs' storage: Redis is away, SQLite cannot write, breakers are not shared.
3. Open circuits, targets that are down, services that are silent until callers give up or that
   are hard to reach.
4. Routes with server errors: at least `FEWEST_ERRORS` in the window and a share of `ERROR_SHARE`,
   so that one error in a quiet night does not count. Services that refuse most of our calls, or
   answer them with web pages; clients that have used up their share; routes whose service takes
   many times as long as usual (time spent on slow clients excluded).
5. Listener certificates that have expired or soon will; clocks that differ.
6. Jobs: stranded ones, those that failed within `RECENT_FAILURE`, a long queue.
7. The proxy's own state: nearly full disks, a refused config, failing checks, few descriptors left,
   buffers near their limit, a late event loop, lost log lines.

Findings of 1 to 3, and those with a share of `GRAVE_SHARE`, are errors; others are warnings. A
forced circuit is a warning, because somebody wanted it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from proxy.core.clock_skew import NOTABLE
from proxy.jobs.stages import bounded

ERROR_SHARE = 0.05
GRAVE_SHARE = 0.5
FEWEST_ERRORS = 3
RECENT_FAILURE = 900.0  # seconds
EXPIRES_SOON = 14  # days
FEWEST_REFUSALS = 5
SLOW = 1.0  # seconds, of half of the requests
MUCH_SLOWER = 5.0  # times as long as usual
SERVED = 0.5  # share of the time that must be the service's own
LONG_SILENCE = 1.0  # seconds, on average
MANY_DESCRIPTORS = 0.8  # share of the process' limit
DISK_LOW, DISK_FULL = 0.1, 0.02  # free shares, as in the alerts
LONG_QUEUE = 10  # jobs that wait for each worker
LATE_LOOP = 0.1  # seconds, 99th percentile

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem. `about` names its subject: `upstream:NAME`,
    `route:LISTENER/NAME`, `job:MIRROR/ID`, `jobs`, `mirror:NAME`, `redis` or `process`."""

    level: Literal["warning", "error"]
    kind: str
    summary: str
    about: str


@dataclass(frozen=True, slots=True)
class HealthSummary:
    """`sentence` is for people; `findings` are in order of importance."""

    level: Level
    sentence: str
    findings: tuple[Finding, ...]

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "level": self.level,
            "sentence": self.sentence,
            "findings": [
                {"level": f.level, "kind": f.kind, "summary": f.summary, "about": f.about}
                for f in self.findings
            ],
        }


def judge(snapshot: Mapping[str, Any], now: float) -> HealthSummary:
    """The health summary of a snapshot; `now` is Unix seconds."""
    found = [
        *_serving(snapshot),
        *_stores(snapshot),
        *_upstreams(snapshot["upstreams"]),
        *_routes(snapshot["routes"]),
        *_refusals(snapshot["routes"]),
        *_unexpected(snapshot["routes"]),
        *_limited(snapshot["routes"]),
        *_slow(snapshot["routes"]),
        *_certificates(snapshot["certificates"]),
        *_clocks(snapshot["clocks"]),
        *_jobs(snapshot["jobs"], now),
        *_queues(snapshot["mirrors"]),
        *_disks(snapshot["disks"]),
        *_checks(snapshot["checks"]),
        *_process(snapshot["process"]),
    ]
    found.sort(key=lambda finding: finding.level)  # "error" before "warning"; else as they came
    if not found:
        return HealthSummary("ok", "All good.", ())
    more = len(found) - 1
    sentence = found[0].summary.rstrip(".") + "."
    if more:
        sentence += f" And {more} more thing{'s' * (more > 1)} to look at."
    return HealthSummary(found[0].level, sentence, tuple(found))


def _serving(snapshot: Mapping[str, Any]) -> Iterator[Finding]:
    state = snapshot["state"]
    if state != "serving":
        yield Finding("error", "not_serving", f"The proxy is {state}", "process")


def _stores(snapshot: Mapping[str, Any]) -> Iterator[Finding]:
    for mirror in snapshot["mirrors"]:
        name, about = mirror["mirror"], f"mirror:{mirror['mirror']}"
        if mirror["redis"] != "live":
            why = f": {mirror['reason']}" if mirror["reason"] else ""
            summary = f"Redis is {mirror['redis']} for the jobs of {name}{why}"
            yield Finding("error", "redis_away", summary, about)
        if mirror["sqlite"] != "ok":
            summary = f"SQLite cannot keep the jobs of {name}: {mirror['sqlite_reason']}"
            yield Finding("error", "sqlite_degraded", summary, about)
        if mirror["redis"] == "live" and mirror["writes"] != "ok":
            summary = f"Redis takes no jobs of {name}: {mirror['writes']}"
            yield Finding("error", "redis_refuses_writes", summary, about)
        if mirror["missing_rights"]:
            summary = f"Redis withholds rights from {name}: {mirror['missing_rights'][0]}"
            yield Finding("warning", "rights_missing", summary, about)
        if mirror["obstacle"]:
            summary = f"Jobs of {name} cannot be put back: {mirror['obstacle']}"
            yield Finding("error", "restore_blocked", summary, about)
    if snapshot["redis"]["breakers"] is False:
        summary = "Redis does not share circuits: each proxy decides about them alone"
        yield Finding("warning", "breakers_not_shared", summary, "redis")


def _upstreams(upstreams: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    for upstream in upstreams:
        name, about = upstream["name"], f"upstream:{upstream['name']}"
        breaker = upstream["breaker"]
        if breaker is not None:
            state, reason = breaker["state"], breaker["reason"]
            because = f": {reason}" if reason else ""
            if state == "open":
                yield Finding("error", "circuit_open", f"{name} is cut off{because}", about)
            elif state == "half_open":
                yield Finding("warning", "circuit_half_open", f"{name} is being probed", about)
            elif state == "forced_open":
                summary = f"{name} is cut off by hand{because}"
                yield Finding("warning", "circuit_forced_open", summary, about)
            elif state == "forced_closed":
                summary = f"{name} is held closed by hand{because}"
                yield Finding("warning", "circuit_forced_closed", summary, about)
        targets = upstream["targets"]
        down = [t["target"] for t in targets if not t["healthy"] or t["ejected"]]
        if down:
            all_of_them = len(down) == len(targets)
            which = "No target" if all_of_them else f"{len(down)} of {len(targets)} targets"
            verb = "is well" if all_of_them else "out of use"
            level: Literal["warning", "error"] = "error" if all_of_them else "warning"
            why = next((t["reason"] for t in targets if t.get("reason")), None)
            because = f" ({why})" if why else ""
            yield Finding(level, "targets_down", f"{name}: {which} {verb}{because}", about)
        yield from _silence(upstream)
        yield from _waits(upstream)


def _waits(upstream: Mapping[str, Any]) -> Iterator[Finding]:
    """A service that keeps restarting behind `connect_patience`, or has too few connections: the
    requests succeed in the end, and nobody else sees what they waited for."""
    count = upstream["waits"]
    if count < FEWEST_ERRORS:
        return
    summary = (
        f"{upstream['name']} is hard to reach: {count} requests waited {upstream['waited']:.1f} s"
        " each for a connection in the last minute"
    )
    yield Finding("warning", "service_hard_to_reach", summary, f"upstream:{upstream['name']}")


def _silence(upstream: Mapping[str, Any]) -> Iterator[Finding]:
    """Calls whose callers left before the complete response; nothing else counts them as errors."""
    name = upstream["name"]
    for kind, count, seconds, what, had in (
        ("service_silent", upstream["abandoned"], upstream["silence"],
         "is silent", "it had been silent for"),
        ("service_unfinished", upstream["unfinished"], upstream["unfinished_after"],
         "does not finish its answers", "it had been sending for"),
    ):  # fmt: skip
        share = count / max(count, upstream["requests"], 1)
        if count < FEWEST_ERRORS or seconds < LONG_SILENCE or share < ERROR_SHARE:
            continue
        summary = (
            f"{name} {what}: {count} callers left in the last minute, and {had} {seconds:.1f} s"
        )
        level: Literal["warning", "error"] = "error" if share >= GRAVE_SHARE else "warning"
        yield Finding(level, kind, summary, f"upstream:{name}")


def _routes(routes: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    worst = sorted(routes, key=lambda route: -float(route["error_share"]))
    for route in worst:
        share = route["error_share"]
        if route["errors"] < FEWEST_ERRORS or share < ERROR_SHARE:
            continue
        summary = f"{route['route']}: {share:.0%} of requests failed in the last minute"
        if route["last_failure"]:
            summary += f", the last with: {bounded(route['last_failure'], 240)}"
        level: Literal["warning", "error"] = "error" if share >= GRAVE_SHARE else "warning"
        about = f"route:{route['listener']}/{route['route']}"
        yield Finding(level, "route_errors", summary, about)


def _refusals(routes: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """4xx responses that our service gets from others: a wrong key, a path that is gone. Those of
    our callers are their own errors."""
    for route in routes:
        share = route["refused_share"]
        if route["direction"] != "egress" or route["refused"] < FEWEST_REFUSALS or share < 0.5:
            continue
        summary = (
            f"{route['upstream']} refuses {share:.0%} of the calls on {route['route']} (4xx) in the"
            " last minute"
        )
        about = f"route:{route['listener']}/{route['route']}"
        yield Finding("warning", "service_refuses", summary, about)


def _unexpected(routes: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Responses with 200 that are an error page, or come from another service."""
    for route in routes:
        count, requests = route["unexpected"], route["requests"]
        if count < FEWEST_ERRORS or count < ERROR_SHARE * requests:
            continue
        summary = (
            f"{route['upstream']} answers {route['route']} with {route['unexpected_type']}, which"
            f" is not what is expected there: {count} of {requests} answers in the last minute"
        )
        about = f"route:{route['listener']}/{route['route']}"
        yield Finding("warning", "unexpected_answers", summary, about)


def _limited(routes: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Callers that get 429: a wave of one client, or a limit that is too low. What is refused
    before it has a route counts as well, so it is one finding for all."""
    callers = [route for route in routes if route["direction"] != "egress"]
    limited = sum(route["limited"] for route in callers)
    requests = sum(route["requests"] for route in callers)
    if limited >= FEWEST_REFUSALS and limited >= ERROR_SHARE * requests:
        summary = f"{limited} of {requests} requests were answered 429 in the last minute"
        yield Finding("warning", "clients_limited", f"{summary} (too many requests)", "process")


def is_slow(p50: float | None) -> bool:
    """Whether it is worth asking what is usual."""
    return p50 is not None and p50 >= SLOW


def _slow(routes: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    for route in sorted(routes, key=lambda one: -(one["p50"] or 0.0)):
        p50, usual = route["p50"], route["usual_p50"]
        if usual is None or route["requests"] < FEWEST_ERRORS or route["served"] < SERVED:
            continue
        if p50 is not None and p50 >= max(SLOW, MUCH_SLOWER * usual):
            summary = (
                f"{route['upstream']} is slow on {route['route']}: half of the requests take over"
                f" {p50:.1f} s, usually {usual:.3g} s"
            )
            about = f"route:{route['listener']}/{route['route']}"
            yield Finding("warning", "service_slow", summary, about)


def _certificates(certificates: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    for one in certificates:
        name, days = one["listener"], one["days"]
        date = one["expires"][:10]
        if days <= 0:
            summary = f"The certificate of listener {name} has expired ({date})"
            yield Finding("error", "certificate_expired", summary, "process")
        elif days < EXPIRES_SOON:
            summary = f"The certificate of listener {name} expires in {int(days)} days ({date})"
            yield Finding("warning", "certificate_expires", summary, "process")


def _clocks(clocks: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    for clock in clocks:
        source, ahead = clock["source"], clock["ahead"]
        if abs(ahead) >= NOTABLE:
            way = "ahead of" if ahead > 0 else "behind"
            whose = "Redis" if source == "redis" else source
            summary = f"The clock of {whose} is {abs(ahead):,.0f} s {way} ours"
            about = "redis" if source == "redis" else f"upstream:{source}"
            yield Finding("warning", "clock_skew", summary, about)


def _jobs(jobs: Mapping[str, Any], now: float) -> Iterator[Finding]:
    if jobs["problem"]:
        yield Finding("warning", "jobs_unknown", f"Jobs cannot be read: {jobs['problem']}", "jobs")
    stranded = [job for job in jobs["list"] if job["stranded"]]
    if stranded:
        yield Finding(
            "warning", "jobs_stranded", _counted(stranded, "is stranded", "are stranded"),
            _about(stranded),
        )  # fmt: skip
    failed = [
        job
        for job in jobs["list"]
        if job["status"] == "failed" and now - job["changed_at"] <= RECENT_FAILURE
    ]
    if failed:
        summary = _counted(failed, "failed lately", "failed lately")
        if error := failed[0]["error"]:  # of the newest
            summary += f": {bounded(error, 160)}"
        yield Finding("warning", "jobs_failed", summary, _about(failed))


def _queues(mirrors: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """More jobs arrive than the workers can do, or the workers have become slow."""
    for mirror in mirrors:
        queue = mirror["queue"]
        if queue is None or queue["waiting"] < LONG_QUEUE * max(1, queue["slots"] or 0):
            continue
        summary = (
            f"{queue['waiting']} jobs of {mirror['mirror']} wait, the oldest for"
            f" {queue['oldest_seconds']:,.0f} s"
        )
        if queue["slots"] is not None:
            summary += f"; workers run {queue['slots']} at a time"
        yield Finding("warning", "queue_long", summary, "jobs")


def _counted(jobs: Sequence[Mapping[str, Any]], one: str, many: str) -> str:
    if len(jobs) == 1:
        return f"Job {jobs[0]['job_id']} {one}"
    return f"{len(jobs)} jobs {many}"


def _about(jobs: Sequence[Mapping[str, Any]]) -> str:
    return f"job:{jobs[0]['mirror']}/{jobs[0]['job_id']}" if len(jobs) == 1 else "jobs"


def _disks(disks: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """One finding per disk; directories with equal figures are on the same disk."""
    together: dict[tuple[int, int], list[str]] = {}
    for disk in disks:
        if disk["free"] < DISK_LOW * disk["size"]:
            together.setdefault((disk["free"], disk["size"]), []).append(disk["directory"])
    for (free, size), names in sorted(together.items(), key=lambda one: one[0][0] / one[0][1]):
        state = "full" if free < DISK_FULL * size else "nearly full"
        left = f"{free / size:.1%} free, {free / 2**20:,.0f} MiB"
        level: Literal["warning", "error"] = "error" if state == "full" else "warning"
        summary = f"The disk of {', '.join(names)} is {state}: {left}"
        yield Finding(level, "disk_low", summary, "process")


def _checks(checks: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    for one in checks:
        summary = f"{one['detail'][:1].upper()}{one['detail'][1:]}"
        yield Finding("warning", "check_failed", summary, "process")


def _process(process: Mapping[str, Any]) -> Iterator[Finding]:
    if process["reload_problem"]:
        why = bounded(process["reload_problem"], 160)
        summary = f"The last config was refused and the old one is in force: {why}"
        yield Finding("warning", "reload_refused", summary, "process")
    used, most = process["descriptors"], process["descriptors_most"]
    if used and most and used >= MANY_DESCRIPTORS * most:
        summary = f"The proxy has {used:,} of {most:,} file descriptors in use"
        yield Finding("warning", "descriptors_low", summary, "process")
    buffers = process["buffers"]
    if buffers["level"] != "normal" or buffers["shed"]:
        summary = (
            f"The proxy is short of memory: buffers hold {buffers['used'] / 2**20:,.0f} of"
            f" {buffers['limit'] / 2**20:,.0f} MiB"
        )
        if buffers["shed"]:
            summary += f", and {buffers['shed']} connections were ended in the last minute"
        yield Finding("warning", "memory_short", summary, "process")
    for task in process["tasks_dying"]:
        summary = f"A part of the proxy keeps failing: {task['task']} ({task['error']})"
        yield Finding("error", "task_dying", summary, "process")
    lag = process["loop_lag_p99"]
    if lag is not None and lag >= LATE_LOOP:
        summary = f"The proxy itself is late: its event loop lags by {lag * 1000:.0f} ms"
        yield Finding("warning", "loop_lag", summary, "process")
    lost = process["log_lines_dropped"]
    if lost:
        yield Finding("warning", "log_lines_dropped", f"{lost} log lines were lost", "process")
