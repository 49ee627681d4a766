"""Job histories: what the versions of a document say happened, whatever is in them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.clock import iso_utc
from proxy.trace.events import Severity
from proxy.trace.job_history import EVENTS, JobHistory, moment, read_history
from tests.jobs_kit import recording as recorded
from tests.trace_kit import T0, failed_history, job_history, stages


def from_recording(name: str) -> list[JobHistory]:
    """The histories in a recording of the real service."""
    versions: dict[str, list[dict[str, Any]]] = {}
    for line in recorded(name):
        if isinstance(line.get("value"), dict):
            job_id = line["key"].rpartition(":")[2]
            version = {"seen": iso_utc(line["t"]), "data": json.dumps(line["value"])}
            versions.setdefault(job_id, []).append(version)
    return [read_history("m", {"job_id": one, "versions": seen}) for one, seen in versions.items()]


def test_a_recorded_success() -> None:
    """A real job: queued, taken, eight stages with their own durations, completed."""
    (done,) = (one for one in from_recording("success") if one.status == "completed")
    kinds = [event.kind for event in done.events]
    assert kinds[0] == "created"
    assert kinds[-1] == "completed"
    assert kinds.count("stage_completed") == 8
    took = {e.facts["stage"]: e.duration for e in done.events if e.kind == "stage_completed"}
    assert took["assemble_video"] == pytest.approx(15.47, abs=0.1)
    assert done.events[-1].duration == pytest.approx(42.3, abs=0.2)
    assert "generate_subtitles" in [phase.name for phase in done.phases]
    assert done.working(T0)[1] == done.ended_at  # type: ignore[index]


def test_recorded_failures() -> None:
    """A real failure names its stage, message and type."""
    failed = [one for one in from_recording("failures") if one.status == "failed"]
    assert failed
    for one in failed:
        assert one.failed_in == "load_approved"
        assert "NO_SHORTS_FOUND" in (one.error or "")
        assert one.error_type == "VideoProcessingException"
        assert one.events[-1].severity is Severity.ERROR


def test_the_older_shape() -> None:
    """One status for each stage, which also moves backwards: each is a phase, none is an end."""
    histories = from_recording("older-shape")
    assert any(phase.name == "generating_subtitles" for one in histories for phase in one.phases)
    one = histories[0]
    names = [phase.name for phase in one.phases]
    assert names[-1] == "completed"
    assert one.finished


def test_phases_and_failure() -> None:
    """A phase lasts from the version that began it to the next one."""
    one = failed_history()
    assert [(p.name, p.start - T0) for p in one.phases] == [
        ("queued", 0),
        ("generate_subtitles", 1),
        ("processing", 20),
        ("failed", pytest.approx(20.01, abs=0.002)),
    ]
    assert one.failed_in == "generate_subtitles"
    span = one.working(T0 + 100)
    assert span == (T0 + 1, pytest.approx(T0 + 20.01, abs=0.002))


def test_a_deleted_job_is_still_worked_on() -> None:
    """A worker does not notice a deletion: until an end is seen, it may be at work."""
    one = job_history(
        (0, {"status": "queued"}),
        (1, {"status": "processing"}),
        deleted=iso_utc(T0 + 5),
        origin="client",
    )
    assert one.finished
    assert one.events[-1].kind == "deleted"
    assert one.working(T0 + 50) == (T0 + 1, T0 + 50)


def test_a_finished_job_that_rises_again() -> None:
    """A worker that writes an old copy makes the job unfinished again, which is an event."""
    one = job_history(
        (0, {"status": "processing"}), (1, {"status": "completed"}), (2, {"status": "processing"})
    )
    assert not one.finished
    assert (one.events[-1].kind, one.events[-1].severity) == ("status", Severity.WARNING)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=9), below, max_size=4)
    ),
    max_leaves=8,
)
_DOCUMENT = st.fixed_dictionaries(
    {},
    optional={
        "status": _JSON | st.sampled_from(["queued", "processing", "failed", "completed"]),
        "stages": _JSON | st.dictionaries(st.text(max_size=5), _JSON, max_size=3),
        "error": _JSON,
        "query": _JSON,
    },
)


@given(st.lists(_DOCUMENT.map(json.dumps) | st.text(max_size=20) | _JSON, max_size=6))
def test_nothing_in_a_document_can_break_it(documents: list[Any]) -> None:
    """Whatever the versions are, they are read, and what is kept of them is plain and printable."""
    shown = [{"seen": iso_utc(T0 + n), "data": data} for n, data in enumerate(documents)]
    one = read_history("m", {"job_id": "mv_1", "versions": shown})
    for event in one.events:
        assert event.kind.isprintable()
        json.dumps(event.facts)


def test_a_document_of_countless_stages_stays_bounded() -> None:
    """Neither stages nor versions without end make more than so many events."""
    many = {f"s{n}": {"status": "processing"} for n in range(5000)}
    done = {f"s{n}": {"status": "completed", "x": "y" * 9} for n in range(5000)}
    versions = [(n, {"status": f"st{n}", "stages": many if n % 2 else done}) for n in range(50)]
    assert len(job_history(*versions).events) == EVENTS


@pytest.mark.parametrize("value", [None, 5, "", "2026-11-23T16:19:17", "x" * 50, "9999-99-99"])
def test_times_that_are_none(value: object) -> None:
    """A time without an offset, or none at all, is not guessed at."""
    assert moment(value) is None


def test_stages_keep_their_errors() -> None:
    """A stage that waits for another try is a warning that says why."""
    before = stages(a="processing")
    after = {"a": {"status": "waiting_retry", "error_message": "503 from x"}}
    one = job_history(
        (0, {"status": "processing", "stages": before}),
        (1, {"status": "processing", "stages": after}),
    )
    event = one.events[-1]
    assert (event.kind, event.severity) == ("stage_waiting_retry", Severity.WARNING)
    assert event.facts["error"] == "503 from x"
