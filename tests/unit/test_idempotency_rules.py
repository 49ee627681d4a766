"""Keys, fingerprints, records and decisions of idempotent creations, without any store."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.idempotency.decide import Repeat, decide, outcome_of_answer, outcome_of_failure
from proxy.idempotency.key import fingerprint, parse_key, record_id, upload_record_id
from proxy.idempotency.record import MAX_ANSWER, Record, StoredAnswer, decode, encode

ANSWER = StoredAnswer(202, (b"Content-Type: application/json",), b'{"job_id":"mv_1"}')
RUNNING = Record("f" * 64, "running", "one", 1000.5)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ([], None),
        ([b""], None),
        ([b'""'], None),
        ([b"abc"], "abc"),
        ([b'"abc"'], "abc"),
        ([b' "a b" '], "a b"),
        ([rb'"a\"b\\c"'], 'a"b\\c'),
        ([b"8e03978e-40d5-43dd-bc93-6894a57f9324"], "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ([b"x" * 255], "x" * 255),
    ],
)
def test_a_key_is_read_in_both_forms(values: list[bytes], key: str | None) -> None:
    """The RFC 9651 string and the bare form name the same key, and an empty value names none."""
    assert parse_key(values) == key


@pytest.mark.parametrize(
    "values",
    [[b"a", b"a"], [b"x" * 256], [b'"open'], [b"\xe9"], [b"a\x01b"], [rb'"a\b"'], [b'"a"b"']],
)
def test_an_unreadable_key_is_refused(values: list[bytes]) -> None:
    """What could be read in two ways, or not at all, is an error and never a key."""
    with pytest.raises(ValueError, match="Idempotency-Key"):
        parse_key(values)


def test_records_are_named_by_family_caller_and_key() -> None:
    """Two callers, families or kinds of record never share a name, however their parts are cut."""
    names = {
        record_id("a", [b"k"], "x"),
        record_id("b", [b"k"], "x"),
        record_id("a", [b"l"], "x"),
        record_id("a", [], "x"),
        record_id("a", [b"k", b"x"], ""),
        upload_record_id("a", [b"k"], "x"),
    }
    assert len(names) == 6
    assert all(len(name) == 40 and set(name) <= set(string.hexdigits) for name in names)


@given(st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=8)), max_size=6))
def test_a_fingerprint_does_not_depend_on_order(parts: list[tuple[bytes, ...]]) -> None:
    """Clients may order a form's fields differently each time."""
    whole = fingerprint("POST", "/make-video", parts)
    assert fingerprint("POST", "/make-video", reversed(parts)) == whole
    assert fingerprint("POST", "/create", parts) != whole
    assert fingerprint("POST", "/make-video", [*parts, (b"one", b"more")]) != whole


def test_a_fingerprint_keeps_parts_apart() -> None:
    """A byte that moves from a name to its value makes another request."""
    one = fingerprint("POST", "/", [(b"ab", b"c")])
    assert one != fingerprint("POST", "/", [(b"a", b"bc")])


@given(
    st.builds(
        Record,
        st.text(string.hexdigits, max_size=64),
        st.sampled_from(["running", "unknown"]),
        st.text(max_size=40),
        st.floats(0, 4e9),
    ),
    st.binary(max_size=200),
)
def test_a_record_survives_storage(record: Record, body: bytes) -> None:
    """What was written is what is read, with and without an answer."""
    assert decode(encode(record)) == record
    done = record.finished(StoredAnswer(201, (b"Location: /jobs/1",), body))
    assert decode(encode(done)) == done
    assert decode(encode(done).decode()) == done


@given(st.one_of(st.binary(max_size=300), st.text(max_size=300), st.integers(), st.none()))
def test_anything_else_is_no_record(data: object) -> None:
    """Bytes that somebody else wrote into Redis are read as nothing, and raise nothing."""
    assert decode(data) is None


@pytest.mark.parametrize(
    "change",
    [
        {"status": 99},
        {"status": True},
        {"status": "202"},
        {"fields": ["Set-Cookie: a=b"]},
        {"fields": ["Content-Type: a\r\nX-Evil: b"]},
        {"fields": [1]},
        {"body": "%%%"},
        {"body": 3},
    ],
)
def test_a_forged_answer_is_no_record(change: dict[str, object]) -> None:
    """A record may not smuggle fields, line ends or statuses into our answers."""
    document = json.loads(encode(RUNNING.finished(ANSWER)))
    document["answer"].update(change)
    assert decode(json.dumps(document)) is None
    assert decode(encode(RUNNING.finished(StoredAnswer(202, (), b"x" * (MAX_ANSWER + 1))))) is None


@pytest.mark.parametrize(
    ("found", "same", "alive", "expected"),
    [
        (None, True, False, "first"),
        (RUNNING, True, True, "wait"),
        (RUNNING, True, False, "settle"),
        (RUNNING.left_open(), True, True, "settle"),
        (RUNNING.finished(ANSWER), True, False, Repeat(ANSWER)),
        (RUNNING, False, True, "mismatch"),
        (RUNNING.finished(ANSWER), False, True, "mismatch"),
    ],
)
def test_what_a_request_may_do(
    found: Record | None, same: bool, alive: bool, expected: object
) -> None:
    """Each state of a key leads to exactly one way to go on."""
    asked = RUNNING.fingerprint if same else "0" * 64
    assert decide(found, asked, owner_alive=alive) == expected


def test_which_answers_are_kept() -> None:
    """Answers about the request are final, those about the moment not, and failures are open."""
    assert [outcome_of_answer(status) for status in (200, 202, 303, 400, 413, 422)] == ["keep"] * 6
    assert [outcome_of_answer(s) for s in (401, 403, 409, 429, 502, 503)] == ["release"] * 6
    assert [outcome_of_answer(status) for status in (500, 504, 507)] == ["unknown"] * 3


def test_which_failures_burn_no_key() -> None:
    """Only a request that reached the app may have been carried out."""
    assert outcome_of_failure("upstream_reset", sent=True) == "unknown"
    assert outcome_of_failure("upstream_timeout", sent=True) == "unknown"
    assert outcome_of_failure("client_left", sent=True) == "unknown"
    assert outcome_of_failure("upstream_timeout", sent=False) == "release"
    assert outcome_of_failure("upstream_unreachable", sent=False) == "release"
    assert outcome_of_failure("upstream_unreachable", sent=True) == "unknown"
    assert outcome_of_failure("job_not_stored", sent=True) == "release"
