"""Events of the pipeline in documents: recorded ones of both shapes, odd ones, hostile ones."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.mirrors import JobFields
from proxy.jobs.document import parse
from proxy.jobs.video_metrics.events import (
    DRIFT,
    INPUT_DURATION,
    JOBS,
    MOST_EVENTS,
    SEGMENTS,
    SHORTS,
    STAGE_DURATION,
    STAGE_ERRORS,
    VALIDATIONS,
    EventReader,
    PipelineEvent,
    token,
)
from tests.counting_kit import distinct, document, iso, recorded, stage

NOW = 1_795_000_000.0


def events(raw: bytes, fields: JobFields | None = None) -> list[PipelineEvent]:
    """The events of one document."""
    return EventReader(fields or JobFields()).events(parse("mv_1", raw))


def of(found: list[PipelineEvent], family: str) -> list[tuple[tuple[str, ...], float]]:
    """Labels and values of one family's events."""
    return [(event.labels, event.value) for event in found if event.family == family]


def job(status: str = "completed", **more: Any) -> bytes:
    """A document of the current shape."""
    return document("mv_1", status, NOW, **more)


# --- recorded lives -------------------------------------------------------------------------------


def test_a_recorded_success() -> None:
    """Eight stages with the times that they took, one completed job, its result."""
    found = list(distinct(recorded("success")).values())
    durations = {labels[0]: value for labels, value in of(found, STAGE_DURATION)}
    assert set(durations) == {
        "analyze_audio", "load_approved", "select_shorts", "assemble_video",
        "generate_subtitles", "final_composition", "trim_video", "validate_av_sync",
    }  # fmt: skip
    assert durations["assemble_video"] == pytest.approx(15.470310)
    assert durations["validate_av_sync"] == pytest.approx(0.263634)
    assert of(found, JOBS) == [(("completed",), 1.0)]
    assert of(found, SHORTS) == [((), 2.0)]
    assert of(found, SEGMENTS) == [((), 0.0)]
    assert of(found, VALIDATIONS) == [(("passed",), 1.0)]
    assert of(found, STAGE_ERRORS) == []
    assert len(found) == 8 + 4


def test_recorded_failures() -> None:
    """Stage, type and code of the errors, though stage and type are written one after the other."""
    found = list(distinct(recorded("failures")).values())
    blamed = ("load_approved", "VideoProcessingException", "NO_SHORTS_FOUND")
    assert of(found, STAGE_ERRORS) == [(blamed, 1.0)] * 2
    assert Counter(of(found, JOBS)) == {(("failed",), 1.0): 2, (("completed",), 1.0): 1}
    assert (("approved",), 3.0) in of(found, VALIDATIONS)


def test_a_recorded_deletion_midway() -> None:
    """A job that was deleted and written again has each of its stages once."""
    found = list(distinct(recorded("deleted-midway")).values())
    assert len(of(found, STAGE_DURATION)) == 8
    assert of(found, JOBS) == [(("completed",), 1.0)]


def test_a_recorded_job_of_the_older_shape() -> None:
    """Status that goes backwards, and a job that completes twice, count each job once."""
    found = list(distinct(recorded("older-shape")).values())
    assert of(found, JOBS) == [(("completed",), 1.0)] * 2
    assert of(found, INPUT_DURATION) == [((), 7.092)]
    assert of(found, SHORTS) == [((), 2.0)]
    assert of(found, SEGMENTS) == [((), 2.0)]
    assert of(found, VALIDATIONS) == [(("approved",), 2.0)]
    assert of(found, STAGE_DURATION) == []  # that shape does not tell


@pytest.mark.parametrize("name", ["success", "failures", "deleted-midway", "older-shape"])
def test_the_order_of_versions_does_not_matter(name: str) -> None:
    """Backwards, twice over: the same events with the same labels and values."""
    versions = recorded(name)
    forth, back = distinct(versions), distinct([*reversed(versions), *versions])
    assert {key: (event.labels, event.value) for key, event in forth.items()} == {
        key: (event.labels, event.value) for key, event in back.items()
    }


# --- attempts ------------------------------------------------------------------------------------


def test_a_stage_that_is_retried() -> None:
    """Failed, waiting, running again, completed: one error and one duration, the last attempt's."""
    first = stage("failed", NOW, NOW + 1, error_message="[TRANSCRIBER_DOWN] no")
    waits = stage("waiting_retry", NOW, NOW + 1, error_message="[TRANSCRIBER_DOWN] no")
    again = stage("processing", NOW + 5)
    done = stage("completed", NOW + 5, NOW + 8)
    found = distinct(
        parse("mv_1", job("processing", stages={"generate_subtitles": one}))
        for one in (first, waits, again, done)
    ).values()
    assert of(list(found), STAGE_ERRORS) == [
        (("generate_subtitles", "unknown", "TRANSCRIBER_DOWN"), 1.0)
    ]
    assert of(list(found), STAGE_DURATION) == [(("generate_subtitles",), 3.0)]


def test_two_failed_attempts_are_two_errors() -> None:
    """Attempts are distinguished by when they started."""
    versions = (
        job("processing", stages={"trim_video": stage("failed", NOW + start, NOW + start + 1)})
        for start in (0, 10)
    )
    found = distinct(parse("mv_1", raw) for raw in versions).values()
    assert len(of(list(found), STAGE_ERRORS)) == 2


def test_an_error_waits_for_its_type() -> None:
    """Not sure until the job has failed or the stage itself names the type; its name stays."""
    failed = {"trim_video": stage("failed", NOW, NOW + 1, error_message="[CODE_1] x")}
    (early,) = events(job("processing", stages=failed))
    late = next(
        event
        for event in events(job("failed", stages=failed, error={"type": "Boom", "message": "y"}))
        if event.family == STAGE_ERRORS
    )
    assert (early.sure, early.labels) == (False, ("trim_video", "unknown", "CODE_1"))
    assert (late.sure, late.labels) == (True, ("trim_video", "Boom", "CODE_1"))
    assert early.name == late.name
    failed["trim_video"]["error_type"] = "Own"
    (own,) = events(job("processing", stages=failed))
    assert (own.sure, own.labels[1]) == (True, "Own")


def test_a_failure_that_no_stage_is_to_blame_for() -> None:
    """The job's own error counts once, under the stage that it names, if any."""
    error = {"type": "MicroserviceException", "message": "[SEARCH_FAILED] 503", "stage": "search"}
    found = of(events(job("failed", error=error)), STAGE_ERRORS)
    assert found == [(("search", "MicroserviceException", "SEARCH_FAILED"), 1.0)]
    found = of(events(job("failed", error="it broke")), STAGE_ERRORS)
    assert found == [(("unknown", "unknown", "unknown"), 1.0)]


def test_an_error_in_words_of_the_older_shape() -> None:
    """A text under `error` is searched for a code."""
    raw = json.dumps(
        {"job_id": "mv_1", "status": "failed", "completed_at": "2026-11-23T16:54:35",
         "stages": {"download_pipeline": {"status": "failed", "error": "[NO_QUERY] nothing"}},
         "error": None}
    ).encode()  # fmt: skip
    labels = ("download_pipeline", "unknown", "NO_QUERY")
    assert of(events(raw), STAGE_ERRORS) == [(labels, 1.0)]


def test_a_duration_of_its_own() -> None:
    """Where the times are missing or go backwards, `duration` is taken; else nothing."""
    stages = {
        "a": stage("completed", duration=2.5),
        "b": stage("completed", NOW + 5, NOW, duration=4),
        "c": stage("completed", NOW + 5, NOW),
        "d": stage("completed", NOW),
        "e": stage("completed", duration="long"),
        "f": stage("skipped", NOW, NOW + 1),
    }
    assert of(events(job("processing", stages=stages)), STAGE_DURATION) == [
        (("a",), 2.5),
        (("b",), 4.0),
    ]


def test_a_failed_job_without_an_end() -> None:
    """The latest time in the document stands for `completed_at`."""
    stages = {"trim_video": stage("failed", NOW, NOW + 3)}
    found = events(job("failed", stages=stages))
    assert {event.at for event in found} == {NOW + 3}


# --- fields --------------------------------------------------------------------------------------


def test_paths_of_the_config() -> None:
    """The first path with a fitting value wins; lists count by length; `_ms` is milliseconds."""
    fields = JobFields(
        shorts_count=("nothing.here", "result.text", "result.clips"),
        sync_drift=("result.av.drift_ms",),
        input_duration=("inputs.1.seconds",),
        validation=("result.in_sync",),
        validation_counts={"kept": ("result.kept",), "dropped": ("result.dropped",)},
    )
    more = {
        "result": {"text": "5", "clips": [1, 2, 3], "av": {"drift_ms": -40}, "in_sync": False,
                   "kept": 2, "dropped": 0},
        "inputs": [{"seconds": 1}, {"seconds": 12.5}],
    }  # fmt: skip
    found = events(job(**more), fields)
    assert of(found, SHORTS) == [((), 3.0)]
    assert of(found, DRIFT) == [((), pytest.approx(0.04))]
    assert of(found, INPUT_DURATION) == [((), 12.5)]
    assert of(found, VALIDATIONS) == [(("failed",), 1.0), (("kept",), 2.0)]


def test_a_result_is_read_only_when_the_job_is_finished() -> None:
    """What may still change is left alone."""
    result = {"shorts_used": 2, "subtitle_segments": 1}
    assert events(job("processing", result=result)) == []


@pytest.mark.parametrize(
    ("word", "result"),
    [
        ("completed", ["passed"]),
        (" Failed ", ["failed"]),
        (True, ["passed"]),
        ("skipped", ["skipped"]),
        ("pending", []),
        ("x" * 500, ["other"]),
        (17, []),
        (None, []),
    ],
)
def test_words_for_a_validation(word: object, result: list[str]) -> None:
    """A few known words and truth values; stages that did not run have no result."""
    fields = JobFields(validation=("verdict",))
    assert [labels[0] for labels, _ in of(events(job(verdict=word), fields), VALIDATIONS)] == result


# --- hostile documents ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("NO_SHORTS_FOUND", "NO_SHORTS_FOUND"),
        (None, "unknown"),
        ("", "unknown"),
        (503, "503"),
        ('x"} 1\n# HELP', "other"),
        ("x" * 65, "other"),
        ("\ud800", "other"),
        (["a"], "other"),
        (True, "other"),
        (-1, "other"),
    ],
)
def test_labels_are_tokens(value: object, label: str) -> None:
    """What is not a well-formed token becomes `other`."""
    assert token(value) == label


@pytest.mark.parametrize(
    "value", [-1, 1e300, float("nan"), float("inf"), True, "7", {}, 10**400, None]
)
def test_numbers_out_of_range_are_no_numbers(value: object) -> None:
    """A value that cannot be meant is not observed."""
    raw = job(result={"subtitle_segments": value}, audio_duration=value)
    assert [event.family for event in events(raw)] == [JOBS]


def test_a_flood_of_stages_is_bounded() -> None:
    """Ten thousand stages give no more than a job may have; known events count towards it."""
    flood = {f"s{n}": stage("completed", NOW, NOW + 1) for n in range(10_000)}
    assert len(events(job("processing", stages=flood))) <= 64
    known = {f"d:x:{n}": True for n in range(MOST_EVENTS)}
    reader = EventReader(JobFields())
    assert reader.events(parse("mv_1", job("processing", stages=flood)), known) == []


def test_ill_formed_stages_stay_apart() -> None:
    """Two of them are two events, under one label."""
    raw = job("processing", stages={bad: stage("completed", NOW, NOW + 1) for bad in ("a b", "ü")})
    found = events(raw)
    assert len({event.name for event in found}) == 2
    assert {event.labels for event in found} == {("other",)}


def test_what_is_known_is_not_returned_again() -> None:
    """Except an event that has become sure."""
    raw = job("completed", stages={"a": stage("completed", NOW, NOW + 1)}, completed_at=iso(NOW))
    reader = EventReader(JobFields())
    found = reader.events(parse("mv_1", raw))
    known = {event.name: True for event in found}
    assert reader.events(parse("mv_1", raw), known) == []
    known[found[0].name] = False
    assert reader.events(parse("mv_1", raw), known) == found[:1]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["completed", "failed", "waiting_retry", iso(NOW), "[CODE_X] m"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["status", "stages", "started_at", "completed_at", "error", "type",
                         "duration", "result", "shorts_used", "error_message", "metadata"])
        | st.text(max_size=5), inner, max_size=5),
    max_leaves=30,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["status", "stages", "error", "result"]), VALUES))
def test_any_document_gives_clean_events(value: dict[str, Any]) -> None:
    """Never an exception; names, labels and values always fit to be stored and shown."""
    for event in events(json.dumps(value).encode()):
        assert event.name.isascii()
        assert event.name.isprintable()
        assert len(event.name) <= 100
        assert 0 <= event.value < 10_000_000
        for label in event.labels:
            assert token(label) == label
