"""The timeline as JSON: joined, in order, bounded; and what may be kept of an event at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.resilience.rate_limit import TokenBucket
from proxy.trace.events import FACTS, FACTS_BYTES, Severity, TraceEvent, bounded, encode_facts, text
from proxy.trace.job_history import JobHistory
from proxy.trace.summaries import duration, summary
from proxy.trace.timeline import MOST, build_timeline, unfold
from tests.trace_kit import CALLED_IN, T0, breaker, exchange, failed_history, summaries, trace_event


def built(
    wanted: str, *own: TraceEvent, histories: tuple[JobHistory, ...] = (), **more: Any
) -> dict[str, Any]:
    """The answer about an ID, asked for 100 s after `T0`."""
    given = {
        "state_changes": [],
        "now": T0 + 100,
        "stuck_after": 30.0,
        "called_in": CALLED_IN,
        "slow": 2.0,
    }
    return build_timeline(wanted, own, histories, **{**given, **more})


def test_the_form_of_the_answer() -> None:
    """Exactly the members that readers rely on, of the answer, the cause and each event."""
    answer = built("mv_1", exchange(0, 500, job_id="mv_1"), histories=(failed_history(),))
    assert list(answer) == [
        "id", "kind", "job_ids", "correlation_ids", "suspected_cause", "events"
    ]  # fmt: skip
    assert (answer["kind"], answer["job_ids"]) == ("job", ["mv_1"])
    assert answer["correlation_ids"] == ["c-1"]
    cause = answer["suspected_cause"]
    assert list(cause) == ["summary", "kind", "at", "event"]
    assert answer["events"][cause["event"]]["kind"] == "stage_failed"
    for event in answer["events"]:
        assert list(event) == [
            "at", "source", "kind", "severity", "correlation_id", "job_id", "summary",
            "duration_ms", "facts",
        ]  # fmt: skip
    assert answer["events"][0]["at"] == "2026-11-23T16:19:17.000Z"
    assert json.loads(json.dumps(answer)) == answer


def test_kinds() -> None:
    """An ID is a job's, a correlation's, or nobody's."""
    assert built("c-1", exchange())["kind"] == "correlation"
    assert built("mv_9", exchange(job_id="mv_9"))["kind"] == "job"
    assert built("x", exchange())["kind"] == "unknown"


def test_an_exchange_shows_its_upload_and_failed_attempts() -> None:
    """Each becomes an event of its own, in its place; the exchange keeps the rest."""
    failed = [
        {"at": T0 + 0.5, "until": T0 + 2.5, "kind": "connect", "target": "http://a", "count": 20},
        {"at": T0 + 2.6, "until": T0 + 2.6, "kind": "503", "target": "http://a", "count": 1},
    ]
    event = exchange(
        0, 202, kind="creation", job_id="mv_1", attempts=2, failed_attempts=failed, duration=3.0,
        upload_verdict="accepted", upload_type="audio/mpeg", upload_size=1000, upload_duration=2.0,
    )  # fmt: skip
    answer = built("mv_1", event)
    sources = [(e["source"], e["kind"]) for e in answer["events"]]
    assert sources == [
        ("exchange", "creation"),
        ("upload", "accepted"),
        ("attempt", "connect"),
        ("attempt", "status_503"),
    ]
    assert "failed_attempts" not in answer["events"][0]["facts"]
    assert "make-video at http://a could not be reached, 20 times within 2.0 s" in summaries(
        answer["events"]
    )
    assert "upload accepted: audio/mpeg, 1,000 bytes, plays 2.0 s" in summaries(answer["events"])


def test_an_only_attempt_is_not_shown_twice() -> None:
    """Where the exchange failed as its only attempt did, it says all that there is to say."""
    failed = [{"at": T0, "until": T0, "kind": "503", "target": "http://a", "count": 1}]
    assert len(unfold(exchange(0, 503, failed_attempts=failed))) == 1


def test_events_of_the_machine_belong_to_the_time_of_a_timeline() -> None:
    """What happened to circuits and mirrors meanwhile is shown; what came before is only known."""
    around = [
        breaker(-600, "open"),
        breaker(5, "open"),
        breaker(90, "closed"),
        trace_event(6, "mirror", "stranded", job_id="mv_other"),
    ]
    answer = built(
        "mv_1", exchange(job_id="mv_1"), histories=(failed_history(),), state_changes=around
    )
    assert [e["at"] for e in answer["events"] if e["source"] == "breaker"] == [
        "2026-11-23T16:19:22.000Z"
    ]
    assert "16:09:17" in answer["suspected_cause"]["summary"]
    assert not [e for e in answer["events"] if e["job_id"] == "mv_other"]


def test_a_timeline_without_end_is_bounded() -> None:
    """Of too many events the calm ones in the middle go, never the trouble, and that is said."""
    calm = [exchange(n / 100) for n in range(3000)]
    trouble = [exchange(n / 10 + 0.001, 500) for n in range(100)]
    answer = built("c-1", *calm, *trouble)
    assert len(answer["events"]) == MOST
    assert sum(e["severity"] == "error" for e in answer["events"]) == 100
    assert answer["events"][0]["at"] == "2026-11-23T16:19:17.000Z"
    assert answer["note"] == "2100 further events are not shown"
    many = built("c-1", *(exchange(n / 100, 500) for n in range(3000)))
    assert len(many["events"]) == MOST


def test_nothing_at_all() -> None:
    """No events and no histories: an answer without a cause, not a failure."""
    assert built("x")["suspected_cause"] is None


# --- what may be kept ---------------------------------------------------------------------------

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda below: st.lists(below) | st.dictionaries(st.text(), below),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), _VALUES))
def test_any_facts_can_be_kept(facts: dict[str, Any]) -> None:
    """Whatever a client or a service said, it becomes short, printable, strict JSON."""
    kept = bounded(facts)
    assert len(kept) <= FACTS
    encoded = encode_facts(kept)
    assert encoded.isascii()
    assert encoded.isprintable()
    json.loads(encoded, parse_constant=lambda name: pytest.fail(name))


def test_facts_have_a_largest_size() -> None:
    """The largest facts go first, the others stay, and the loss is marked."""
    facts = bounded({"status": 200, **{f"f{n}": ["é" * 500] * 40 for n in range(5)}})
    encoded = encode_facts(facts)
    assert len(encoded) <= FACTS_BYTES
    assert json.loads(encoded)["status"] == 200
    assert json.loads(encoded)["cut"] is True


@pytest.mark.parametrize(
    ("raw", "kept"),
    [("plain", "plain"), ("a\x1b[31m\n", "a\\x1b[31m\\n"), ("x" * 600, "x" * 500 + "…")],
)
def test_texts_are_made_harmless(raw: str, kept: str) -> None:
    """What acts on a terminal is shown as what it is; what is too long is cut."""
    assert text(raw) == kept


def test_an_allowance() -> None:
    """A burst, then so many a second, however the clock jumps back."""
    allowance = TokenBucket(10, 100)
    assert sum(allowance.take(1.0) for _ in range(1000)) == 100
    assert not allowance.take(1.05)
    assert sum(allowance.take(2.0) for _ in range(100)) == 10
    assert not allowance.take(0.0)
    assert not allowance.take(1.0)


# --- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, ""), (0.0042, "4.2 ms"), (0.34, "340 ms"), (2.14, "2.1 s"), (185, "3 min 5 s"),
     (7800, "2 h 10 min")],
)  # fmt: skip
def test_durations(seconds: float | None, words: str) -> None:
    """As people say them."""
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (exchange(0, 502, code="upstream_reset", attempts=3, detail="gone"),
         "GET /x: 502 upstream_reset (gone; 3 attempts)"),
        (exchange(0, 499, code="client_left"), "GET /x: the client left"),
        (exchange(0, 200, rescued_from=404), "GET /x: 200 (answered here instead of 404)"),
        (breaker(0, "half_open", "s"), "the circuit of s lets probes through (5 x)"),
        (trace_event(0, "mirror", "redis_lost", reason="closed"),
         "Redis no longer answers: closed"),
        (trace_event(0, "restore", "restored", restored=2, kept=1, cause="flush"),
         "2 jobs put back into Redis (flush), 1 were still there"),
        (trace_event(0, "proxy", "reload_refused", problems=["a", "b"]),
         "reload refused, the old config stays in force: a and 1 more"),
        (trace_event(0, "mirror", "something_new"), "something new"),
    ],
)  # fmt: skip
def test_summaries(event: TraceEvent, words: str) -> None:
    """One line each; a kind without words of its own appears under its name."""
    assert summary(event) == words


@given(
    st.sampled_from(["exchange", "attempt", "breaker", "upload", "job", "restore", "mirror"]),
    st.text(max_size=20),
    st.dictionaries(st.sampled_from(["status", "error", "stage", "reason", "target"]), _VALUES),
)
def test_every_event_has_a_summary(source: Any, kind: str, facts: dict[str, Any]) -> None:
    """One printable line, whatever was kept."""
    line = summary(TraceEvent(T0, source, kind, Severity.OK, facts=bounded(facts)))
    assert line.isprintable()
    assert len(line) <= 2000
