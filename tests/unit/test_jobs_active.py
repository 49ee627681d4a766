"""Which job a worker's call is made for, decided without Redis."""

from __future__ import annotations

import pytest

from proxy.core.clock import ManualClock
from proxy.jobs.redis.active_jobs import REMEMBERED, ActiveJobs


def jobs(clock: ManualClock | None = None) -> ActiveJobs:
    """No job yet, and no Redis."""
    return ActiveJobs("make_video:job:", lambda: None, clock or ManualClock(), idle=60.0)


def of_call(active: ActiveJobs, target: str = "/jobs/abc") -> str | None:
    """The ID of the job that a call is made for."""
    found = active.of_call(target)
    return None if found is None else found.job_id


def test_the_only_active_job_is_meant() -> None:
    """From the first status that is work until the job is finished."""
    active = jobs()
    active.created("mv_1", "one")
    active.changed("mv_1", "queued")
    assert active.of_call("/") is None
    active.changed("mv_1", "processing")
    found = active.of_call("/search/shorts?query=x")
    assert found is not None
    assert (found.job_id, found.correlation_id) == ("mv_1", "one")
    active.changed("mv_1", "completed")
    assert active.of_call("/") is None


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_every_end_is_an_end(status: str) -> None:
    """A finished job makes no more calls, however it ended."""
    active = jobs()
    active.changed("mv_1", "processing")
    active.changed("mv_1", status)
    assert of_call(active) is None


def test_two_active_jobs_leave_a_call_nobodys() -> None:
    """A wrong ID is worse than none; a call that names its job is certain all the same."""
    active = jobs()
    active.changed("mv_1", "processing")
    active.changed("mv_2", "analyzing_audio")
    assert of_call(active) is None
    assert of_call(active, "/jobs?callback=mv_2") == "mv_2"
    assert of_call(active, "/mv_1/mv_2") is None
    active.ended("mv_1")
    assert of_call(active) == "mv_2"


def test_the_older_status_that_moves_back_ends_nothing() -> None:
    """`queued` in the middle of the older service's work does not take its calls away."""
    active = jobs()
    active.changed("mv_1", "analyzing_audio")
    active.changed("mv_1", "queued")
    assert of_call(active) == "mv_1"


def test_a_stranded_job_counts_no_more() -> None:
    """A job whose worker was killed stands in nobody's way once it has been idle long enough."""
    clock = ManualClock()
    active = jobs(clock)
    active.changed("mv_dead", "processing")
    clock.advance(59)
    active.changed("mv_live", "processing")
    assert of_call(active) is None
    clock.advance(2)
    assert of_call(active) == "mv_live"
    clock.advance(61)
    assert of_call(active) is None


def test_memory_is_bounded() -> None:
    """However many jobs are made, the newest are remembered and no more."""
    active = jobs()
    for number in range(REMEMBERED + 10):
        active.created(f"mv_{number}", f"id-{number}")
        active.changed(f"mv_{number}", "processing")
    assert of_call(active, f"/jobs/mv_{REMEMBERED}") is None  # too many are active to look
    for number in range(REMEMBERED + 9):
        active.ended(f"mv_{number}")
    found = active.of_call("/")
    assert found is not None
    assert found.correlation_id == f"id-{REMEMBERED + 9}"
