"""The suspected cause: each rule on its events, and none where nothing is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from proxy.trace.diagnosis.context import Cause, DiagnosisContext
from proxy.trace.diagnosis.rules import diagnose
from proxy.trace.events import TraceEvent
from proxy.trace.job_history import JobHistory
from tests.trace_kit import (
    CALLED_IN,
    T0,
    breaker,
    call,
    exchange,
    failed_history,
    job_history,
    stages,
    trace_event,
)


def case(
    *events: TraceEvent,
    histories: Sequence[JobHistory] = (),
    now: float = 100.0,
    before: Sequence[TraceEvent] = (),
    about_job: bool = False,
) -> DiagnosisContext:
    """The timeline of these events and histories, built `now` seconds after `T0`."""
    every = sorted([*events, *(e for one in histories for e in one.events)], key=lambda e: e.at)
    return DiagnosisContext(every, histories, T0 + now, 30.0, CALLED_IN, 2.0, about_job, before)


def found(*events: TraceEvent, **more: Any) -> Cause:
    """The cause, which must point into the timeline."""
    asked = case(*events, **more)
    cause = diagnose(asked)
    assert cause is not None
    assert any(event is cause.event for event in asked.events)
    return cause


def done() -> JobHistory:
    """A job that went well."""
    return job_history(
        (0, {"status": "queued"}), (1, {"status": "processing"}), (20, {"status": "completed"})
    )


def test_nothing_wrong_no_cause() -> None:
    """A job that went well, with ordinary calls, polls and a reload meanwhile, has no cause."""
    events = [exchange(kind="creation", job_stored="confirmed"), call(5), exchange(8)]
    assert diagnose(case(*events, trace_event(3, "proxy", "reloaded"), histories=[done()])) is None
    assert diagnose(case(*events)) is None


def test_upload_refused() -> None:
    """A bad upload: what was wrong with it, in the words that the client got."""
    refused = exchange(0, 400, code="upload_too_long", detail="over 10min")
    upload = TraceEvent(
        T0, "upload", "upload_too_long", refused.severity, facts={"detail": "over 10min"}
    )
    cause = found(refused, upload)
    assert (cause.kind, cause.summary) == ("upload_refused", "The upload was rejected: over 10min")
    assert cause.event is upload


@pytest.mark.parametrize(
    ("reason", "words"),
    [("redis_down", "Redis could not be reached"), ("key_missing", "its key never appeared")],
)
def test_creation_not_stored(reason: str, words: str) -> None:
    """The service said yes and there is no job: why, by the reason."""
    cause = found(exchange(0, 503, code="job_not_stored", reason=reason))
    assert cause.kind == "job_not_stored"
    assert words in cause.summary


def test_a_refusal_is_not_of_a_job_that_there_is() -> None:
    """A client that was refused once and tried again with the same correlation ID: the refusal is
    part of its story, and not the cause of anything about the job that it then got."""
    refused = exchange(0, 503, code="job_not_stored", reason="redis_down")
    upload = TraceEvent(T0, "upload", "upload_too_long", refused.severity)
    one = failed_history()
    assert found(refused, upload, histories=[one], about_job=True).kind == "stage_failed"
    assert found(refused, upload, histories=[one]).kind == "upload_refused"
    lost = exchange(0, 503, code="job_not_stored", job_id="mv_1", reason="key_missing")
    assert found(lost, about_job=True).kind == "job_not_stored"


def test_deleted_before_it_was_done() -> None:
    """A deleted job is not looked into any further; one deleted when it was done is no trouble."""
    gone = {"deleted": "2026-11-23T16:20:00+00:00", "origin": "client"}
    cause = found(histories=[job_history((0, {"status": "processing"}), **gone)])
    assert cause.kind == "deleted"
    assert "by a client" in cause.summary
    assert diagnose(case(histories=[job_history((0, {"status": "completed"}), **gone)])) is None


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (502, "upstream_unreachable", "service_down", "audio-transcriber could not be reached"),
        (504, "upstream_timeout", "service_slow", "audio-transcriber did not answer in time"),
        (502, "upstream_reset", "service_breaks_off", "audio-transcriber broke off"),
        (503, None, "service_errors", "audio-transcriber answered 503"),
        (503, "circuit_open", "circuit_open", "its circuit was open"),
        (503, "overloaded", "overloaded", "the proxy had no connection or place"),
    ],
)
def test_a_service_made_a_job_fail(status: int, code: str | None, kind: str, words: str) -> None:
    """Failed calls in the stage that failed: the service is named, what it did, how often."""
    calls = [call(t, status, code=code, job_id="mv_1") for t in (3, 4, 5)]
    cause = found(*calls, histories=[failed_history()])
    assert cause.kind == kind
    assert words in cause.summary
    refused = {
        "circuit_open": "3 calls met the open circuit",
        "overloaded": "3 calls found no connection or place",
    }
    counted = refused.get(code or "", "3 failed calls")
    assert counted in cause.summary
    assert "failed in generate_subtitles" in cause.summary
    assert cause.event is calls[0]


def test_an_open_circuit_made_a_job_fail() -> None:
    """It may have opened before the job began, for reasons of its own: since when, and which."""
    opened = breaker(-300, "open", failures=[{"kind": "connect"}] * 5)
    refused = call(3, 503, code="circuit_open", job_id="mv_1")
    cause = found(refused, histories=[failed_history()], before=[opened])
    assert cause.kind == "service_down"
    assert "its circuit opened at 2026-11-23T16:14:17.000Z: 5 x" in cause.summary
    assert cause.event is refused


def test_refusals_of_the_circuit_are_no_failures_of_the_service() -> None:
    """They are counted apart, and the reason of the opening is not said twice."""
    calls = [call(t, 503, job_id="mv_1") for t in (3, 4)]
    refused = [call(t, 503, code="circuit_open", job_id="mv_1") for t in (6, 7, 8)]
    cause = found(*calls, breaker(5, "open"), *refused, histories=[failed_history()])
    assert cause.kind == "service_errors"
    assert cause.summary.startswith("audio-transcriber answered 503 (2 failed calls from")
    assert "; 3 calls met the open circuit. So job mv_1" in cause.summary
    assert "5 x" not in cause.summary


def test_a_service_made_a_job_fail_whose_stages_nobody_saw() -> None:
    """Its calls name the service, though the circuit of one that it never called is open."""
    brief = job_history((0, {"status": "queued"}), (2, {"status": "failed", "error": "503"}))
    mine = call(1, 503, "youtube-search", job_id="mv_1")
    cause = found(mine, histories=[brief], before=[breaker(-300, "open")])
    assert cause.kind == "service_errors"
    assert cause.summary.startswith("youtube-search answered 503 (1 failed call from")


def test_a_circuit_that_closed_again_is_not_blamed() -> None:
    """Nor is the circuit of a service that the failed stage does not call."""
    closed = [breaker(-300, "open"), breaker(-200, "closed")]
    assert found(histories=[failed_history()], before=closed).kind == "stage_failed"
    other = breaker(2, "open", "youtube-search")
    assert found(other, histories=[failed_history()]).kind == "stage_failed"


def test_a_job_failed_by_itself() -> None:
    """The stage and its own words."""
    cause = found(histories=[failed_history("[NO_SHORTS_FOUND] none")])
    assert cause.kind == "stage_failed"
    assert "mv_1 failed in generate_subtitles: [NO_SHORTS_FOUND] none" in cause.summary
    assert cause.event.kind == "stage_failed"
    assert "just before" not in cause.summary
    choked = found(call(5), call(19.8), histories=[failed_history("Expecting value: line 1")])
    assert "; just before, audio-transcriber answered 200 to GET /x" in choked.summary


def test_sqlite_cannot_write() -> None:
    """A full disk: since when, and SQLite's error, even if it began before the timeline."""
    full = trace_event(-60, "mirror", "sqlite_degraded", reason="database or disk is full")
    created = exchange(0, 202, kind="creation", job_stored="degraded")
    cause = found(created, before=[full], histories=[done()])
    assert cause.kind == "store_cannot_write"
    assert "database or disk is full" in cause.summary
    assert cause.event is created
    over = trace_event(-30, "mirror", "sqlite_back")
    assert diagnose(case(exchange(), before=[full, over])) is None


def test_sqlite_was_merely_slow() -> None:
    """Not confirmed in time, and nothing else is known."""
    assert found(exchange(0, 202, job_stored="degraded")).kind == "store_slow"


def test_nobody_takes_a_job() -> None:
    """Queued for longer than it should be; after a loss of Redis, that is said too."""
    waits = job_history((0, {"status": "queued"}))
    assert diagnose(case(histories=[waits], now=10)) is None
    cause = found(histories=[waits], now=60)
    assert cause.kind == "stranded"
    assert "queued for 1 min 0 s" in cause.summary
    assert "are the workers busy with others" in cause.summary
    lost = trace_event(-5, "restore", "restored", restored=3)
    assert "Redis lost its data" in found(histories=[waits], now=60, before=[lost]).summary


def test_a_job_that_the_mirror_reports_stranded() -> None:
    """The mirror's word counts at once."""
    waits = job_history((0, {"status": "queued"}))
    reported = trace_event(5, "mirror", "stranded", job_id="mv_1", status="queued")
    assert found(reported, histories=[waits], now=6).event is reported


def test_a_job_that_nobody_works_on() -> None:
    """By the evidence, at once; over when it was given a message again, or went on."""
    runs = job_history((0, {"status": "processing"}))
    stranded = {"job_id": "mv_1", "evidence": "worker a answers and does not work on it"}
    gone = trace_event(5, "mirror", "unattended", **stranded)
    cause = found(gone, histories=[runs], now=6)
    assert cause.kind == "unattended"
    assert "does not work on it" in cause.summary
    assert cause.event is gone
    again = trace_event(7, "restore", "requeued", **stranded)
    assert diagnose(case(gone, again, histories=[runs], now=8)) is None
    went_on = job_history((0, {"status": "queued"}), (6, {"status": "processing"}))
    assert diagnose(case(gone, histories=[went_on], now=8)) is None
    assert diagnose(case(gone, histories=[done()], now=30)) is None
    other = trace_event(5, "mirror", "unattended", job_id="mv_2", evidence="x")
    assert diagnose(case(other, histories=[runs], now=6)) is None


def test_no_worker_is_connected() -> None:
    """It concerns every unfinished job, until a worker is back."""
    waits = job_history((0, {"status": "queued"}))
    nobody = trace_event(-100, "mirror", "no_workers", since="2026-11-30T16:00:00Z")
    cause = found(histories=[waits], before=[nobody], now=6)
    assert cause.kind == "no_workers"
    assert "since 2026-11-30T16:00:00Z" in cause.summary
    back = trace_event(2, "mirror", "workers_back")
    assert diagnose(case(back, histories=[waits], before=[nobody], now=6)) is None
    assert diagnose(case(histories=[done()], before=[nobody], now=30)) is None


def test_a_stage_that_does_not_end() -> None:
    """How long nothing has changed, in which stage."""
    at_it = job_history((0, {"status": "processing", "stages": stages(trim_video="processing")}))
    cause = found(histories=[at_it], now=400)
    assert cause.kind == "stuck_stage"
    assert "in trim_video without a change for 6 min 40 s" in cause.summary


def test_a_stage_that_waits_for_a_service() -> None:
    """With a service in trouble, the service is to blame; with one that answers, that is said."""
    at_it = job_history(
        (0, {"status": "processing", "stages": stages(generate_subtitles="processing")})
    )
    cause = found(call(30, 504, code="upstream_timeout"), histories=[at_it], now=400)
    assert cause.kind == "service_slow"
    assert "has been in generate_subtitles" in cause.summary
    cause = found(call(30), histories=[at_it], now=400)
    assert cause.kind == "stuck_stage"
    assert "audio-transcriber answers" in cause.summary


def test_redis_was_lost() -> None:
    """While a job runs, or when a caller noticed; what was put back is said."""
    lost = trace_event(5, "mirror", "redis_lost", reason="closed")
    back = trace_event(7, "restore", "restored", restored=4)
    running = job_history((0, {"status": "processing"}))
    cause = found(lost, back, histories=[running], now=10)
    assert cause.kind == "redis_lost"
    assert "4 jobs were put back" in cause.summary
    rescued = exchange(6, 200, rescued_from=404)
    assert found(lost, rescued, histories=[done()]).kind == "redis_lost"
    assert diagnose(case(lost, back, histories=[done()])) is None


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (502, "upstream_unreachable", "make-video could not be reached"),
        (504, "upstream_timeout", "make-video did not answer in time"),
        (503, "overloaded", "no free connection"),
        (429, "too_many_requests", "The caller had used up its share (limits.per_client): why"),
        (499, "client_left", "The client left before it had its answer"),
        (404, "no_route", "No route has this path"),
        (400, "bad_request", "The proxy refused the request: why"),
    ],
)
def test_an_answer_of_the_proxy_s_own(status: int, code: str, words: str) -> None:
    """In words, with the detail that the client got."""
    cause = found(exchange(0, status, code=code, detail="why"))
    assert cause.kind == code
    assert words in cause.summary


@pytest.mark.parametrize("reason", ["no_descriptors", "no_local_ports"])
def test_a_shortage_of_the_proxy_is_not_the_service_s(reason: str) -> None:
    """Who looks for the cause is not sent to a service that is well."""
    cause = found(exchange(0, 503, code="overloaded", reason=reason, detail="why"))
    assert cause.kind == "overloaded"
    assert cause.summary == "The proxy or its host ran short, and make-video is not to blame: why"


def test_an_open_circuit_refused_a_request() -> None:
    """When and why it opened."""
    opened = breaker(-9, "open", "make-video")
    cause = found(exchange(0, 503, code="circuit_open"), before=[opened])
    assert cause.kind == "circuit_open"
    assert cause.summary.endswith("was open since 2026-11-23T16:19:08.000Z: 5 x")


def test_a_route_that_a_refused_reload_should_have_brought() -> None:
    """No route, and the last reload was refused: the operator's typing mistake is the cause."""
    refused = trace_event(-9, "proxy", "reload_refused", problems=["c.yaml:7: paht: unknown"])
    cause = found(exchange(0, 404, code="no_route"), before=[refused])
    assert cause.kind == "reload_refused"
    assert "c.yaml:7: paht: unknown" in cause.summary
    later = trace_event(-5, "proxy", "reloaded")
    assert found(exchange(0, 404, code="no_route"), before=[refused, later]).kind == "no_route"


def test_the_service_itself_answered_with_an_error() -> None:
    """5xx before 4xx."""
    assert found(exchange(0, 500), exchange(1, 422)).kind == "upstream_error"
    cause = found(exchange(1, 422))
    assert cause.kind == "refused_by_service"
    assert "make-video itself answered 422 to GET /x" in cause.summary
    named = found(exchange(1, 500, target="http://10.0.0.2:8005"))
    assert "make-video at http://10.0.0.2:8005 itself answered 500" in named.summary


def test_a_good_answer_that_is_not_what_the_route_is_for() -> None:
    """An error page with status 200."""
    cause = found(exchange(0, unexpected_type="text/html"))
    assert cause.kind == "unexpected_answer"
    assert "make-video answered 200 with text/html" in cause.summary


def test_a_client_that_left_in_the_middle_of_its_answer() -> None:
    """It was the service that did not come to the end of it."""
    cause = found(exchange(0, 200, code="client_left", unfinished_ms=15_000.0))
    assert cause.kind == "client_left"
    assert "make-video was still sending its answer: 15.0 s" in cause.summary


def test_why_the_store_cannot_be_used() -> None:
    """What Redis said stands behind what it means."""
    refused = exchange(
        0, 503, code="job_not_stored", reason="redis_refuses_writes", store_problem="OOM command"
    )
    assert found(refused).summary.endswith("refused instead of lost (OOM command)")


def test_calls_failed_though_the_job_went_on() -> None:
    """A video that was skipped: the service is named although the job is completed."""
    cause = found(call(5, 503, service="video-downloader"), exchange(), histories=[done()])
    assert cause.kind == "service_errors"


def test_the_service_was_restarting() -> None:
    """Connections were refused for a while, then it answered."""
    waited = TraceEvent(T0, "attempt", "connect", service="make-video", duration=2.1)
    cause = found(exchange(0, duration=2.2), waited)
    assert cause.kind == "service_restarting"
    assert "refused connections for 2.1 s" in cause.summary


def test_slow_calls() -> None:
    """How many, the longest, and the service's share of it."""
    slow = [call(3, duration=2.5), call(6, duration=14.2, upstream_ms=14_100.0)]
    cause = found(*slow, histories=[done()])
    assert cause.kind == "service_slow"
    assert "2 recorded exchanges took over 2 s, the longest 14.2 s, 14.1 s of it" in cause.summary
    assert cause.event is slow[1]


def test_answered_from_the_mirror() -> None:
    """The client got what is known here."""
    assert found(exchange(0, 200, rescued_from="silence")).kind == "answered_here"
