"""The timeline of a job, from whatever its document says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.jobs.stages import ERROR_LIMIT, MOST, NAME_LIMIT, read_timeline

FIXTURES = Path(__file__).parents[1] / "fixtures"


def recorded(name: str) -> list[dict[str, Any]]:
    """The documents of a recording, in order."""
    lines = (FIXTURES / name).read_text(encoding="utf-8").splitlines()
    return [line["value"] for line in map(json.loads, lines) if line.get("value")]


def stages_of(document: object, status: str, seen: Any = ()) -> list[tuple[str, str, float | None]]:
    """Name, state and seconds of each stage."""
    timeline = read_timeline(json.dumps(document).encode(), status, seen)
    return [
        (s.name, s.state, None if s.seconds is None else round(s.seconds, 2))
        for s in timeline.stages
    ]


def test_a_completed_job_of_the_real_service() -> None:
    """Eight stages in their order, with the time each took."""
    document = recorded("job-life-success.jsonl")[-1]
    stages = stages_of(document, "completed")
    assert [name for name, *_ in stages] == list(document["stages"])
    assert {state for _, state, _ in stages} == {"done"}
    assert stages[3] == ("assemble_video", "done", 15.47)


def test_a_failed_job_of_the_real_service() -> None:
    """The stage that failed is named, what follows has not begun, and the error is without the ID
    that the app puts before it."""
    failed = next(d for d in recorded("job-life-failures.jsonl") if d["status"] == "failed")
    timeline = read_timeline(json.dumps(failed).encode(), "failed")
    states = [stage.state for stage in timeline.stages]
    assert states == ["done", "failed"] + ["pending"] * 6
    assert timeline.error is not None
    assert timeline.error.startswith("[NO_SHORTS_FOUND] No approved videos available")


def test_an_older_job_is_shown_by_its_statuses() -> None:
    """Where a document has no stages, each status that names one is one, from when it was seen."""
    seen = [
        (100.0, "queued"), (101.0, "analyzing_audio"), (104.0, "fetching_shorts"),
        (104.5, "queued"), (105.0, "fetching_shorts"), (110.0, "completed"),
    ]  # fmt: skip
    document = {"job_id": "x", "status": "completed", "stages": {}}
    assert stages_of(document, "completed", seen) == [
        ("analyzing_audio", "done", 3.0),
        ("fetching_shorts", "done", 6.0),
    ]


def test_the_last_status_before_a_failure_is_what_failed() -> None:
    """An older job that failed did so in the stage it was last seen in."""
    seen = [(1.0, "analyzing_audio"), (2.0, "assembling_video"), (5.0, "failed")]
    stages = stages_of({"job_id": "x", "stages": {}, "error": "boom"}, "failed", seen)
    assert [state for _, state, _ in stages] == ["done", "failed"]
    running = stages_of({"job_id": "x", "stages": {}}, "assembling_video", seen[:2])
    assert running == [("analyzing_audio", "done", 1.0), ("assembling_video", "running", None)]
    assert stages_of({"job_id": "x"}, "assembling_video") == [("assembling_video", "running", None)]


def test_recorded_older_jobs_have_a_timeline() -> None:
    """The recordings of the older service give stages without versions too."""
    for document in recorded("job-life-older-shape.jsonl"):
        timeline = read_timeline(json.dumps(document).encode(), document["status"])
        if document["status"] not in ("queued", "completed"):
            assert timeline.stages


def test_a_stage_under_way_when_its_job_failed_has_failed() -> None:
    """A worker that died leaves its stage unfinished."""
    stages = {"a": {"status": "completed"}, "b": {"status": "processing"}}
    assert [s for _, s, _ in stages_of({"stages": stages}, "failed")] == ["done", "failed"]
    assert [s for _, s, _ in stages_of({"stages": stages}, "processing")] == ["done", "running"]


@pytest.mark.parametrize(
    "raw",
    [b"", b"\xff", b"null", b"[]", b'{"stages": [1]}', b'{"stages": {"a": 1}}', b"[" * 100_000],
)
def test_what_is_no_job_has_no_timeline(raw: bytes) -> None:
    """Never an exception."""
    assert read_timeline(raw, "unknown").stages == ()


def test_a_hostile_document_stays_bounded() -> None:
    """Hundreds of stages, endless names, lone surrogates, absurd numbers."""
    stages: dict[str, Any] = {
        f"\ud800{i}" + "n" * 5000: {
            "status": ["x"], "display_name": "<b>" * 5000, "error_message": "e" * 5000,
            "duration": 10**400, "started_at": "9" * 39, "completed_at": -1,
        }
        for i in range(200)
    }  # fmt: skip
    timeline = read_timeline(json.dumps({"stages": stages, "error": ["no"]}).encode(), "failed")
    assert len(timeline.stages) == MOST
    for stage in timeline.stages:
        assert len(stage.name) <= NAME_LIMIT
        assert len(stage.title) <= NAME_LIMIT
        assert stage.error is not None
        assert len(stage.error) <= ERROR_LIMIT
        assert (stage.state, stage.seconds) == ("unknown", None)
        (stage.name + stage.title + stage.error).encode()
    assert timeline.error is None


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(
    st.dictionaries(st.sampled_from(["stages", "error", "error_message"]), JSON | st.dictionaries(
        st.text(), st.dictionaries(
            st.sampled_from(["status", "started_at", "completed_at", "duration", "error"]), JSON
        ), max_size=4,
    )),
    st.text(max_size=20),
    st.lists(st.tuples(st.floats(0, 2e9), st.text(max_size=10)), max_size=6),
)  # fmt: skip
def test_no_document_breaks_it(
    document: dict[str, Any], status: str, seen: list[tuple[float, str]]
) -> None:
    """Whatever JSON allows gives a timeline that can be written as UTF-8."""
    timeline = read_timeline(json.dumps(document).encode(), status, seen)
    for stage in timeline.stages:
        f"{stage.name}{stage.title}{stage.error}".encode()


@pytest.mark.parametrize(
    ("first", "second", "states"),
    [
        ("failed", "processing", ["failed", "running"]),
        ("completed", "processing", ["done", "failed"]),
        ("failed", "completed", ["failed", "done"]),
    ],
)
def test_the_running_stage_of_a_failed_job_failed_unless_another_did(
    first: str, second: str, states: list[str]
) -> None:
    """Where the document names the stage that failed, no other one is blamed."""
    stages = {"a": {"status": first}, "b": {"status": second}}
    document = {"id": "x", "status": "failed", "stages": stages}
    assert [state for _, state, _ in stages_of(document, "failed")] == states
