"""Health in one sentence: what counts as trouble, and what comes first."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.admin.status.health_summary import RECENT_FAILURE, judge

NOW = 1_795_450_757.0


def breaker(state: str, reason: str = "") -> dict[str, Any]:
    """As `GET /api/breakers` has it, so far as it matters."""
    return {"state": state, "reason": reason}


def upstream(name: str = "search", **changes: Any) -> dict[str, Any]:
    """One that is well."""
    target = {"target": "http://127.0.0.1:1", "healthy": True, "ejected": False}
    calls = {"requests": 10, "abandoned": 0, "silence": None}
    calls |= {"unfinished": 0, "unfinished_after": None, "waits": 0, "waited": None}
    return {"name": name, "breaker": breaker("closed"), "targets": [target], **calls, **changes}


#: A route with nothing to say about.
QUICK = {
    "direction": "ingress", "upstream": "app", "requests": 50, "refused": 0, "refused_share": 0.0,
    "p50": 0.01, "usual_p50": None, "served": 0.9, "last_failure": None,
    "limited": 0, "unexpected": 0, "unexpected_type": None,
}  # fmt: skip


def route(errors: int = 0, share: float = 0.0, name: str = "r") -> dict[str, Any]:
    """With so many errors."""
    return {"listener": "in", "route": name, "errors": errors, "error_share": share, **QUICK}


def mirror(**changes: Any) -> dict[str, Any]:
    """One that is well."""
    well = {"redis": "live", "reason": None, "sqlite": "ok", "sqlite_reason": None}
    rights = {"writes": "ok", "missing_rights": [], "obstacle": None}
    return {"mirror": "make_video", "queue": queue(9), **well, **rights, **changes}


def queue(waiting: int, slots: int | None = 1) -> dict[str, Any]:
    """Of jobs that wait."""
    return {"waiting": waiting, "slots": slots, "oldest_seconds": 1234.5}


def job(status: str = "completed", age: float = 1.0, **changes: Any) -> dict[str, Any]:
    """One that changed `age` seconds ago."""
    about = {"mirror": "make_video", "job_id": "mv_1", "error": None, "stranded": False}
    return {**about, "status": status, "changed_at": NOW - age, **changes}


def process(**changes: Any) -> dict[str, Any]:
    """One that is well."""
    well = {"loop_lag_p99": 0.002, "log_lines_dropped": 0, "tasks_dying": []}
    use = {"reload_problem": None, "descriptors": 40, "descriptors_most": 1024}
    use |= {"buffers": memory()}
    return {**well, **use, **changes}


def memory(level: str = "normal", shed: int = 0) -> dict[str, Any]:
    """The budget of all buffers."""
    return {"level": level, "used": 14 * 2**20, "limit": 16 * 2**20, "shed": shed}


def certificate(days: float) -> dict[str, Any]:
    """Of one listener."""
    return {"listener": "front", "expires": "2026-12-24T00:00:00Z", "days": days}


def disk(name: str, percent: int) -> dict[str, Any]:
    """A disk of 1,000 MiB with so much free."""
    return {"directory": name, "free": percent * 10 * 2**20, "size": 1000 * 2**20}


def snapshot(**changes: Any) -> dict[str, Any]:
    """Of a proxy that is well; `jobs` are a list."""
    jobs = changes.pop("job_list", [job()])
    return {
        "state": "serving",
        "upstreams": [upstream()],
        "routes": [route()],
        "mirrors": [mirror()],
        "redis": {"breakers": True},
        "jobs": {"problem": None, "list": jobs},
        "process": process(),
        "certificates": [certificate(80.0)],
        "disks": [disk("spool", 50)],
        "checks": [],
        "clocks": [{"source": "redis", "ahead": -0.4}],
        **changes,
    }


def test_all_is_well() -> None:
    """Nothing found, nothing to say."""
    health = judge(snapshot(), NOW)
    assert (health.level, health.sentence, health.findings) == ("ok", "All good.", ())
    assert judge(snapshot(redis={"breakers": None}, mirrors=[], upstreams=[]), NOW).level == "ok"


@pytest.mark.parametrize(
    ("changes", "level", "kind", "about"),
    [
        ({"disks": [disk("spool", 9)]}, "warning", "disk_low", "process"),
        ({"disks": [disk("spool", 1)]}, "error", "disk_low", "process"),
        ({"certificates": [certificate(-1.0)]}, "error", "certificate_expired", "process"),
        ({"certificates": [certificate(13.5)]}, "warning", "certificate_expires", "process"),
        ({"clocks": [{"source": "redis", "ahead": -900.0}]}, "warning", "clock_skew", "redis"),
        ({"clocks": [{"source": "search", "ahead": 7.0}]}, "warning", "clock_skew",
         "upstream:search"),
        ({"process": process(reload_problem="c.yaml:3: x: expected y")}, "warning",
         "reload_refused", "process"),
        ({"process": process(descriptors=900)}, "warning", "descriptors_low", "process"),
        ({"checks": [{"check": "trace", "detail": "disk full"}]}, "warning", "check_failed",
         "process"),
        ({"state": "draining"}, "error", "not_serving", "process"),
        ({"mirrors": [mirror(redis="down")]}, "error", "redis_away", "mirror:make_video"),
        ({"mirrors": [mirror(sqlite="degraded", sqlite_reason="disk full")]},
         "error", "sqlite_degraded", "mirror:make_video"),
        ({"mirrors": [mirror(obstacle="read only")]}, "error", "restore_blocked",
         "mirror:make_video"),
        ({"mirrors": [mirror(writes="OOM command not allowed")]}, "error", "redis_refuses_writes",
         "mirror:make_video"),
        ({"mirrors": [mirror(missing_rights=["info (no proof)"])]}, "warning", "rights_missing",
         "mirror:make_video"),
        ({"process": process(tasks_dying=[{"task": "a", "deaths": 3, "error": "ValueError: x"}])},
         "error", "task_dying", "process"),
        ({"redis": {"breakers": False}}, "warning", "breakers_not_shared", "redis"),
        ({"upstreams": [upstream(breaker=breaker("open", "5 failures in a row"))]},
         "error", "circuit_open", "upstream:search"),
        ({"upstreams": [upstream(breaker=breaker("half_open"))]},
         "warning", "circuit_half_open", "upstream:search"),
        ({"upstreams": [upstream(breaker=breaker("forced_open"))]},
         "warning", "circuit_forced_open", "upstream:search"),
        ({"upstreams": [upstream(breaker=breaker("forced_closed"))]},
         "warning", "circuit_forced_closed", "upstream:search"),
        ({"upstreams": [upstream(targets=[
            {"target": "a", "healthy": False, "ejected": False}])]},
         "error", "targets_down", "upstream:search"),
        ({"upstreams": [upstream(targets=[
            {"target": "a", "healthy": True, "ejected": True},
            {"target": "b", "healthy": True, "ejected": False}])]},
         "warning", "targets_down", "upstream:search"),
        ({"routes": [route(3, 0.05)]}, "warning", "route_errors", "route:in/r"),
        ({"routes": [route(3, 0.6)]}, "error", "route_errors", "route:in/r"),
        ({"job_list": [job(stranded=True, status="queued")]},
         "warning", "jobs_stranded", "job:make_video/mv_1"),
        ({"job_list": [job("failed")]}, "warning", "jobs_failed", "job:make_video/mv_1"),
        ({"jobs": {"problem": "silent", "list": []}}, "warning", "jobs_unknown", "jobs"),
        ({"process": process(loop_lag_p99=0.3, log_lines_dropped=0)},
         "warning", "loop_lag", "process"),
        ({"mirrors": [mirror(queue=queue(20, 2))]}, "warning", "queue_long", "jobs"),
        ({"mirrors": [mirror(queue=queue(10, None))]}, "warning", "queue_long", "jobs"),
        ({"process": process(buffers=memory("slow"))}, "warning", "memory_short", "process"),
        ({"process": process(buffers=memory(shed=3))}, "warning", "memory_short", "process"),
        ({"process": process(loop_lag_p99=None, log_lines_dropped=7)},
         "warning", "log_lines_dropped", "process"),
    ],
)  # fmt: skip
def test_each_trouble_is_found(changes: dict[str, Any], level: str, kind: str, about: str) -> None:
    """Alone, with its level, and where to look."""
    health = judge(snapshot(**changes), NOW)
    (found,) = health.findings
    assert (found.level, found.kind, found.about) == (level, kind, about)
    assert health.level == level
    assert health.sentence == found.summary + "."


@pytest.mark.parametrize(
    "changes",
    [
        {"routes": [route(2, 1.0)]},  # two errors in a quiet night
        {"routes": [route(100, 0.01)]},
        {"job_list": [job("failed", age=RECENT_FAILURE + 1)]},
        {"process": process(loop_lag_p99=0.05, log_lines_dropped=0)},
        {"mirrors": [mirror(queue=queue(19, 2))]},
        {"mirrors": [mirror(queue=None)]},
    ],
)
def test_what_is_no_trouble(changes: dict[str, Any]) -> None:
    """Few errors, a small share, old failures, an ordinary delay."""
    assert judge(snapshot(**changes), NOW).level == "ok"


def test_the_most_important_comes_first() -> None:
    """Redis before a circuit before jobs, and the sentence counts what else there is."""
    health = judge(
        snapshot(
            job_list=[job("failed"), job("failed", job_id="mv_2")],
            upstreams=[upstream(breaker=breaker("open", "5 failures in a row"))],
            mirrors=[mirror(redis="down", reason="connection refused")],
        ),
        NOW,
    )
    assert [f.kind for f in health.findings] == ["redis_away", "circuit_open", "jobs_failed"]
    assert health.sentence == (
        "Redis is down for the jobs of make_video: connection refused. "
        "And 2 more things to look at."
    )


def test_an_error_comes_before_a_warning() -> None:
    """A circuit that is open is worse than breakers that are not shared."""
    changes = {
        "redis": {"breakers": False},
        "upstreams": [upstream(breaker=breaker("open"))],
    }
    assert [f.level for f in judge(snapshot(**changes), NOW).findings] == ["error", "warning"]


def test_the_text_of_a_job_is_bounded() -> None:
    """A job's error may be as long as it likes; the sentence is not."""
    health = judge(snapshot(job_list=[job("failed", error="x" * 10_000)]), NOW)
    assert len(health.sentence) < 300
    json.dumps(health.document())


@pytest.mark.parametrize(
    ("abandoned", "silence", "requests", "level"),
    [
        (40, 5.0, 40, "error"),
        (3, 5.0, 40, "warning"),
        (2, 5.0, 2, None),  # somebody closed a tab, twice
        (40, 0.2, 40, None),  # clients that look away quickly
        (3, 5.0, 4000, None),
    ],
)
def test_a_service_that_is_silent_until_its_callers_give_up(
    abandoned: int, silence: float, requests: int, level: str | None
) -> None:
    """Nothing failed and nothing was answered: that is trouble, if it is more than a few."""
    calls = {"abandoned": abandoned, "silence": silence, "requests": requests}
    health = judge(snapshot(upstreams=[upstream(**calls)]), NOW)
    if level is None:
        assert health.level == "ok"
        return
    (finding,) = health.findings
    assert (finding.level, finding.kind, finding.about) == (
        level,
        "service_silent",
        "upstream:search",
    )
    assert f"{abandoned} callers left" in finding.summary
    assert "had been silent for 5.0 s" in finding.summary


def test_a_service_that_never_finishes_its_answers() -> None:
    """It sends a byte a second: callers leave in the middle, and nothing has failed."""
    calls = {"unfinished": 5, "unfinished_after": 15.0, "requests": 5}
    (finding,) = judge(snapshot(upstreams=[upstream(**calls)]), NOW).findings
    assert (finding.level, finding.kind) == ("error", "service_unfinished")
    assert finding.summary == (
        "search does not finish its answers: 5 callers left in the last minute, and it had been"
        " sending for 15.0 s"
    )
    brief = upstream(**{**calls, "unfinished_after": 0.4})
    assert judge(snapshot(upstreams=[brief]), NOW).level == "ok"  # somebody looks away quickly


def test_a_service_that_is_hard_to_reach() -> None:
    """It restarts again and again: `connect_patience` hides that from callers, not from us."""
    (finding,) = judge(snapshot(upstreams=[upstream(waits=3, waited=2.25)]), NOW).findings
    assert (finding.level, finding.kind) == ("warning", "service_hard_to_reach")
    assert finding.summary == (
        "search is hard to reach: 3 requests waited 2.2 s each for a connection in the last minute"
    )
    once = upstream(waits=2, waited=2.25)
    assert judge(snapshot(upstreams=[once]), NOW).level == "ok"


def test_a_sentence_ends_with_one_full_stop() -> None:
    """Errors of others bring theirs along."""
    failed = job("failed", error="Run /download first.")
    assert judge(snapshot(job_list=[failed]), NOW).sentence.endswith("first.")
    assert not judge(snapshot(job_list=[failed]), NOW).sentence.endswith("..")


def test_directories_on_one_disk_are_one_finding() -> None:
    """The fullest first; figures that differ are other disks."""
    disks = [disk("spool", 5), disk("trace", 1), disk("jobs:m", 5), disk("log", 60)]
    found = judge(snapshot(disks=disks), NOW).findings
    assert [(one.level, one.summary) for one in found] == [
        ("error", "The disk of trace is full: 1.0% free, 10 MiB"),
        ("warning", "The disk of spool, jobs:m is nearly full: 5.0% free, 50 MiB"),
    ]


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"p50": 6.0, "usual_p50": 0.02}, ["service_slow"]),
        ({"p50": 6.0, "usual_p50": 2.0}, []),  # three times: a busy hour
        ({"p50": 0.4, "usual_p50": 0.002}, []),  # many times nothing is still little
        ({"p50": 6.0, "usual_p50": None}, []),
        ({"p50": 6.0, "usual_p50": 0.02, "requests": 2}, []),
        ({"p50": 6.0, "usual_p50": 0.02, "served": 0.1}, []),  # slow clients
        ({"direction": "egress", "refused": 9, "refused_share": 0.9}, ["service_refuses"]),
        ({"direction": "egress", "refused": 9, "refused_share": 0.2}, []),
        ({"direction": "egress", "refused": 4, "refused_share": 1.0}, []),
        ({"refused": 9, "refused_share": 0.9}, []),  # what callers do wrong
        ({"unexpected": 3, "unexpected_type": "text/html"}, ["unexpected_answers"]),
        ({"unexpected": 2, "unexpected_type": "text/html", "requests": 2}, []),
        ({"unexpected": 3, "unexpected_type": "text/html", "requests": 100}, []),
        ({"limited": 5}, ["clients_limited"]),
        ({"limited": 4}, []),
        ({"limited": 5, "requests": 101}, []),
        ({"limited": 50, "direction": "egress"}, []),  # a service's own, which `refused` has
    ],
)
def test_services_that_are_slow_or_refuse(changes: dict[str, Any], kinds: list[str]) -> None:
    """Compared with what is usual; only what the service itself is to blame for."""
    found = judge(snapshot(routes=[{**route(), **changes}]), NOW).findings
    assert [one.kind for one in found] == kinds


def test_a_route_that_fails_says_with_what() -> None:
    """The last failure's own words, cut to a sentence."""
    failing = {**route(9, 0.9, "create-video"), "last_failure": "No connection became free"}
    (found,) = judge(snapshot(routes=[failing]), NOW).findings
    assert found.summary == (
        "create-video: 90% of requests failed in the last minute, the last with: "
        "No connection became free"
    )


def test_a_target_that_is_down_says_why() -> None:
    """As its health check has it."""
    target = {"target": "http://a", "healthy": False, "ejected": False, "reason": "status 503"}
    found = judge(snapshot(upstreams=[upstream(targets=[target])]), NOW).findings
    assert found[0].summary == "search: No target is well (status 503)"
