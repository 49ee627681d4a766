"""What a job document says, and which of two versions is the newer."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.jobs.document import (
    KeyPattern,
    as_json,
    deleted_body,
    digest_of,
    is_newer,
    job_body,
    list_body,
    not_found_body,
    parse,
    sql_time,
    to_timestamp,
    valid_job_id,
)
from tests.jobs_kit import job, recording

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
times = st.sampled_from(
    [None, "", "yesterday", "2026-11-23T13:21:42-03:00", "2026-11-23T16:21:43", 1795450902.5]
)
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
documents = st.fixed_dictionaries(
    {},
    optional={
        "id": anything | st.just("mv_1"),
        "job_id": anything | st.just("mv_1"),
        "status": anything | st.sampled_from(["queued", "processing", "completed", "failed"]),
        "progress": anything,
        "created_at": times | anything,
        "updated_at": times | anything,
        "completed_at": times | anything,
        "stages": anything
        | st.dictionaries(
            st.text(max_size=5),
            st.fixed_dictionaries({"started_at": times, "completed_at": times}),
            max_size=3,
        ),
    },
)


@patient
@given(st.binary(max_size=200) | documents.map(lambda one: json.dumps(one).encode()))
def test_no_value_breaks_the_parser(raw: bytes) -> None:
    """Whatever the bytes: a snapshot with sane members that SQLite can take."""
    snapshot = parse("mv_1", raw)
    assert snapshot.raw is raw
    assert snapshot.digest == digest_of(raw)
    assert 0.0 <= snapshot.progress <= 100.0
    assert 0 < len(snapshot.status) <= 64
    snapshot.status.encode()
    for moment in (snapshot.created_at, snapshot.completed_at, snapshot.activity):
        assert moment is None or sql_time(moment)
    body = job_body(snapshot)
    assert (body is None) == (snapshot.shape == "opaque")
    if body is not None:
        assert isinstance(json.loads(body), dict)


@patient
@given(documents, documents, documents)
def test_newer_is_a_strict_order(one: Any, two: Any, three: Any) -> None:
    """Never both ways, never of itself, and transitive: sidecars must agree on a winner."""
    a, b, c = (parse("mv_1", json.dumps(document).encode()) for document in (one, two, three))
    assert not is_newer(a, a)
    assert not (is_newer(a, b) and is_newer(b, a))
    if is_newer(a, b) and is_newer(b, c):
        assert is_newer(a, c)


EARLY, LATE = "2026-11-23T16:21:43", "2026-11-23T16:21:44"


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ({"created_at": EARLY}, {"created_at": LATE}),
        ({"updated_at": EARLY}, {"updated_at": LATE}),
        ({"started_at": EARLY}, {"started_at": LATE}),
        ({"completed_at": EARLY}, {"completed_at": LATE}),
        ({"created_at": EARLY}, {"created_at": EARLY, "stages": {"a": {"started_at": LATE}}}),
        ({"created_at": EARLY}, {"created_at": EARLY, "stages": {"a": {"completed_at": LATE}}}),
        ({"created_at": EARLY, "progress": 90}, {"created_at": LATE, "progress": 10}),
        ({"created_at": EARLY, "status": "failed"}, {"created_at": LATE, "status": "queued"}),
        ({"created_at": EARLY, "status": "queued"}, {"created_at": EARLY, "status": "completed"}),
        (
            {"created_at": EARLY, "status": "processing", "progress": 99},
            {"created_at": EARLY, "status": "failed", "progress": 50},
        ),
        ({"created_at": EARLY, "progress": 10}, {"created_at": EARLY, "progress": 11}),
    ],
)
def test_the_later_of_two_versions(older: dict[str, Any], newer: dict[str, Any]) -> None:
    """The latest time anywhere in the document decides, then being finished, then progress."""
    one, other = (parse("mv_1", json.dumps(each).encode()) for each in (older, newer))
    assert is_newer(other, one)
    assert not is_newer(one, other)


@pytest.mark.parametrize(
    "other",
    [
        {"created_at": EARLY, "status": "queued"},
        {"created_at": EARLY, "expires_at": LATE, "status": "queued"},
        {"status": "completed", "progress": 100},
        [LATE],
    ],
    ids=["equal", "differs in what is no activity", "without times", "opaque"],
)
def test_in_doubt_neither_version_is_the_later(other: object) -> None:
    """Equal ranks, or no time to go by: nothing is sure."""
    one = parse("mv_1", json.dumps({"created_at": EARLY, "status": "queued"}).encode())
    two = parse("mv_1", json.dumps(other).encode())
    assert not is_newer(one, two)
    assert not is_newer(two, one)


@pytest.mark.parametrize("name", ["success", "failures", "older-shape", "deleted-midway"])
def test_recorded_versions_never_seem_to_go_back(name: str) -> None:
    """Of two recorded versions of a job, the earlier is never called the newer.

    But for the older app's step back to a stale `queued`, which only its history can tell.
    """
    seen: dict[str, list[Any]] = {}
    wrong = 0
    for entry in recording(name):
        if isinstance(entry.get("value"), dict):
            job_id = entry["key"].rpartition(":")[2]
            snapshot = parse(job_id, json.dumps(entry["value"]).encode())
            assert snapshot.oddities == ()
            wrong += sum(is_newer(earlier, snapshot) for earlier in seen.get(job_id, []))
            seen.setdefault(job_id, []).append(snapshot)
    assert wrong == (1 if name == "older-shape" else 0)


def test_both_shapes_are_distinguished() -> None:
    """`id` and offsets: the current app. `job_id` and naive UTC: the older one."""
    current = parse("mv_1", job("mv_1", "processing", 40))
    assert (current.shape, current.status, current.progress) == ("current", "processing", 40.0)
    assert current.created_at == pytest.approx(1795450902.670528)
    older = parse("a1", b'{"job_id":"a1","status":"queued","created_at":"2026-11-23T16:21:42"}')
    assert (older.shape, older.created_at) == ("older", 1795450902.0)


def test_oddities_are_named() -> None:
    """Each strange value says what is strange about it."""
    assert parse("a", b"\xff").oddities == ("not_utf8",)
    assert parse("a", b"[1]").oddities == ("not_json",)
    assert parse("a", b"[" * 100_000).oddities == ("not_json",)
    assert parse("a", b'{"status":"queued"}').oddities == ("no_id",)
    assert parse("a", b'{"id":"b","status":7}').oddities == ("other_id", "bad_status")
    assert parse("a", b'{"id":"a","status":"queued","created_at":"soon"}').oddities == ("bad_date",)


def test_the_current_answer_is_the_recorded_one() -> None:
    """`GET /jobs/{id}` in the current shape: eight members in order, `updated_at` empty."""
    body = job_body(parse("mv_1", job("mv_1", "queued")))
    assert body is not None
    assert list(json.loads(body).items()) == [
        ("job_id", "mv_1"),
        ("status", "queued"),
        ("progress", 0.0),
        ("stages", {}),
        ("result", None),
        ("error", None),
        ("created_at", "2026-11-23T13:21:42.670528-03:00"),
        ("updated_at", ""),
    ]


def test_the_older_answer_is_the_document() -> None:
    """`GET /jobs/{id}` of the older app gives the stored document byte for byte."""
    raw = json.dumps(recording("older-shape")[0]["value"]).encode()
    assert job_body(parse("koJrHRezgVJpqPFft7trC3", raw)) == raw


def test_lists_deletions_and_absences_are_shaped_like_the_app() -> None:
    """The bodies are those that were recorded for each version."""
    assert list_body("current", []) == b'{"status":"success","total":0,"jobs":[]}'
    assert list_body("older", []) == b'{"total":0,"jobs":[]}'
    assert json.loads(list_body("current", [job("a"), job("b")]))["total"] == 2
    assert not_found_body("current") == b'{"error":"HTTP_ERROR","message":"Job not found"}'
    assert not_found_body("older") == b'{"detail":"Job not found"}'
    assert json.loads(deleted_body("current", "mv_1"))["status"] == "deleted"
    assert json.loads(deleted_body("older", "a1")) == {
        "message": "Job deleted successfully",
        "job_id": "a1",
    }


@pytest.mark.parametrize(
    "hostile", ["", ".", "..", "a/b", "a b", "a" * 129, "ä", "a\n", "*", "{a}", "a\x00"]
)
def test_hostile_ids_never_become_keys(hostile: str) -> None:
    """Only letters, digits and `_ . : -`, at most 128, and nothing behind a newline."""
    assert not valid_job_id(hostile)
    pattern = KeyPattern.parse("app:job:{job_id}")
    assert pattern.job_id(b"app:job:" + hostile.encode()) is None


def test_keys_are_read_both_ways() -> None:
    """Prefix and suffix are matched exactly; the glob hides its own special characters."""
    pattern = KeyPattern.parse("app[1]:{job_id}:doc")
    assert pattern.key("mv_1") == "app[1]:mv_1:doc"
    assert pattern.job_id(b"app[1]:mv_1:doc") == "mv_1"
    assert pattern.job_id(b"app[1]:mv_1") is None
    assert pattern.job_id(b"other:mv_1:doc") is None
    assert pattern.glob() == r"app\[1\]:*:doc"
    for template in ("app:job", "{job_id}", "{job_id}:{job_id}", "a:{job_id}{job_id}"):
        with pytest.raises(ValueError, match="job_id"):
            KeyPattern.parse(template)


def test_dates_beyond_reason_are_none() -> None:
    """Milliseconds, infinities, years before Redis and after us: no date."""
    for value in (1795450902000, float("inf"), float("nan"), -5, True, "0001-01-01T00:00:00", []):
        assert to_timestamp(value) is None
    assert to_timestamp("2026-11-23T13:21:42.5-03:00") == 1795450902.5


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_is_no_number_becomes_null(number: str) -> None:
    """Python writes NaN into a job, no browser reads it: our answers stay JSON, and nothing else of
    them changes."""

    def strict(body: bytes | None) -> Any:
        def refuse(name: str) -> None:
            raise AssertionError(f"{name} is no JSON")

        assert body is not None
        return json.loads(body, parse_constant=refuse)

    words = b'"error":"NaN, not Infinity","progress":50.5'
    current = b'{"id":"mv_1",%b,"stages":{},"result":{"drift":%b}}' % (words, number.encode())
    older = b'{"job_id":"mv_1",%b,"updated_at":"","result":{"drift":%b}}' % (words, number.encode())
    for raw in (current, older):
        answer = strict(job_body(parse("mv_1", raw)))
        (listed,) = strict(list_body("current", [as_json(raw)]))["jobs"]
        for found in (answer, listed):
            assert found["result"]["drift"] in (None, math.inf)
            assert (found["error"], found["progress"]) == ("NaN, not Infinity", 50.5)
