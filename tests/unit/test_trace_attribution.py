"""Whose call it was: attributed where one job can be meant, and never else."""

from __future__ import annotations

import pytest

from proxy.trace.attribution import attribute, services_of
from proxy.trace.job_history import JobHistory
from tests.trace_kit import CALLED_IN, T0, call, failed_history, job_history, stages

NOW = T0 + 100
IDLE = 10.0


def mine(*calls: object, others: tuple[JobHistory, ...] = ()) -> list[float]:
    """When the calls were made that go to a job in `generate_subtitles` from 1 to 20."""
    found = attribute(calls, failed_history(), others, CALLED_IN, NOW, IDLE)  # type: ignore[arg-type]
    assert all(event.job_id == "mv_1" for event in found)
    return [event.at - T0 for event in found]


def test_a_call_in_the_stage_that_makes_such_calls() -> None:
    """While one job alone was in that stage, the call is its own, and marked as inferred."""
    assert mine(call(5)) == [5]
    (event,) = attribute([call(5)], failed_history(), [], CALLED_IN, NOW, IDLE)
    assert event.facts["inferred"] is True


def test_not_outside_the_stage() -> None:
    """Before the stage, after it, and of a service that the stage does not call: nobody's."""
    assert mine(call(0.2), call(25), call(5, service="youtube-search"), call(5, service="x")) == []


def test_not_while_another_job_is_at_work() -> None:
    """Two jobs at once: it could be either's, so it is neither's."""
    other = job_history((5, {"status": "processing"}), (8, {"status": "completed"}), job_id="mv_2")
    calls = [call(4.5), call(4.9), call(6), call(8), call(8.01)]
    assert mine(*calls, others=(other,)) == [4.5, pytest.approx(8.01)]


def test_not_for_ever_while_another_job_is_stuck() -> None:
    """A job whose worker was killed never ends: it counts until it has not changed for long."""
    stuck = job_history(
        (0, {"status": "processing"}), (1, {"status": "processing", "n": 1}), job_id="mv_2"
    )
    assert mine(call(5), call(15), others=(stuck,)) == [15]


def test_a_job_that_only_waits_does_not_matter() -> None:
    """A queued job makes no calls."""
    assert mine(call(5), others=(job_history((0, {"status": "queued"}), job_id="mv_2"),)) == [5]


def test_work_that_the_mirror_did_not_see() -> None:
    """A job that waited and then had failed, one version after the other, was worked on between:
    the calls of that time are its own, unless they may be another's."""
    brief = job_history((0, {"status": "queued"}), (2, {"status": "failed", "error": "503"}))

    def its(*others: JobHistory) -> list[float]:
        calls = [call(-0.1), call(1), call(2.1), call(1, service="x")]
        found = attribute(calls, brief, others, CALLED_IN, NOW, IDLE)
        return [event.at - T0 for event in found]

    assert its() == [1]
    other = job_history((0.5, {"status": "queued"}), (1.5, {"status": "completed"}), job_id="mv_2")
    assert its(other) == []
    cancelled = job_history(
        (0, {"status": "queued"}), (1.5, {"status": "cancelled"}), job_id="mv_2"
    )
    assert its(cancelled) == [1]


def test_what_a_call_says_of_itself_is_not_overruled() -> None:
    """A call with a job ID is that job's, whatever the time says, and not marked as inferred."""
    assert mine(call(50, job_id="mv_1")) == [50]
    assert mine(call(5, job_id="mv_2")) == []
    (event,) = attribute([call(5, job_id="mv_1")], failed_history(), [], CALLED_IN, NOW, IDLE)
    assert "inferred" not in event.facts


def test_a_deleted_job_may_still_be_worked_on() -> None:
    """Deleting a job does not stop its worker, so calls after that may be its own."""
    gone = job_history(
        (0, {"status": "processing"}), job_id="mv_2", deleted="2026-11-23T16:19:18+00:00"
    )
    assert mine(call(5), others=(gone,)) == []


def test_an_unfinished_stage_lasts_until_now() -> None:
    """A job that is still in its stage gets the latest calls."""
    one = job_history(
        (0, {"status": "processing", "stages": stages(generate_subtitles="processing")})
    )
    assert len(attribute([call(99)], one, [], CALLED_IN, NOW, IDLE)) == 1


def test_services_of_a_phase() -> None:
    """By the names of the current shape's stages and of the older one's statuses."""
    assert services_of("generating_subtitles", CALLED_IN) == ["audio-transcriber"]
    assert services_of("processing", CALLED_IN) == ["youtube-search", "video-downloader"]
    assert services_of("trim_video", CALLED_IN) == []
