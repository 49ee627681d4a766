"""The queue of jobs as callers and operators see it, decided without Redis."""

from __future__ import annotations

import json
from statistics import median
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from proxy.config.mirrors import Forecast
from proxy.core.clock import ManualClock, iso_utc
from proxy.jobs.document import parse
from proxy.jobs.metrics import JobMetrics
from proxy.jobs.queue.forecast import (
    Durations,
    JobDuration,
    Standing,
    WaitingLine,
    sample_of,
    stage_starts,
)
from proxy.jobs.queue.queue import JobQueue
from tests.bench import forecast as bench

TEN_SECONDS = JobDuration((("a", 0.0), ("b", 4.0)), 10.0)


class World:
    """A queue whose jobs are documents; `workers` may be changed."""

    def __init__(self, **settings: Any) -> None:
        self.clock = ManualClock()
        self.workers: int | None = 1
        self.registry = CollectorRegistry()
        metrics = JobMetrics(self.registry).for_mirror("m").queue()
        self.queue = JobQueue(Forecast(**settings), self.clock, metrics, lambda: self.workers)
        self.stages: dict[str, dict[str, Any]] = {}
        self.created: dict[str, float] = {}

    def learned(self, samples: int = 5) -> World:
        """As many jobs of ten seconds, all alike."""
        for _ in range(samples):
            self.queue.durations.learn(TEN_SECONDS)
        return self

    def document(self, job_id: str, status: str, *begun: str, skew: float = 0.0) -> bytes:
        """A version with these stages begun; the app's clock is off by `skew`."""
        now = self.clock.time() + skew
        stages = self.stages.setdefault(job_id, {})
        for stage in begun:
            stages.setdefault(stage, {"status": "processing", "started_at": now})
        return json.dumps(
            {
                "id": job_id,
                "status": status,
                "created_at": self.created.setdefault(job_id, now),
                "completed_at": now if status == "completed" else None,
                "stages": stages,
            }
        ).encode()

    def seen(self, job_id: str, status: str, *begun: str, skew: float = 0.0) -> None:
        """The mirror sees such a version."""
        self.queue.changed(parse(job_id, self.document(job_id, status, *begun, skew=skew)))

    def shown(self, job_id: str) -> tuple[int | None, str | None]:
        """What a caller gets: the position and the time."""
        found = dict(self.queue.field_pairs(job_id))
        place = found.get("X-Job-Queue-Position")
        return None if place is None else int(place), found.get("X-Job-Estimated-Completion")

    def at(self, seconds: float) -> str:
        """A moment from now, as callers get it."""
        return iso_utc(self.clock.time() + seconds)[:19] + "Z"

    def value(self, name: str) -> float | None:
        """A metric of the mirror."""
        return self.registry.get_sample_value(name, {"mirror": "m"})


def test_a_line_is_served_in_order() -> None:
    """The first one waits for the running job, the next one for it, and so on."""
    world = World().learned()
    world.seen("run", "processing", "a")
    world.queue.review()
    for name in ("one", "two"):
        world.clock.advance(0.001)
        world.seen(name, "queued")
    assert world.shown("run") == (0, world.at(10))
    assert world.shown("one") == (1, world.at(20))
    assert world.shown("two") == (2, world.at(30))
    world.clock.advance(4)
    world.seen("run", "processing", "b")
    world.queue.review()
    assert world.shown("two") == (2, world.at(26))


def test_two_workers_halve_the_wait() -> None:
    """Each worker takes the next job when it is free."""
    world = World().learned()
    world.workers = 2
    for name in ("one", "two", "three"):
        world.seen(name, "queued")
        world.clock.advance(0.001)
    world.queue.review()
    assert [world.shown(name)[1] for name in ("one", "two", "three")] == [
        world.at(10),
        world.at(10),
        world.at(20),
    ]
    assert world.value("proxy_jobs_queue_capacity_per_minute") == 12
    assert world.value("proxy_jobs_queue_drain_seconds") == 20


@pytest.mark.parametrize(
    ("samples", "workers", "slots"), [(4, 1, None), (5, 0, None), (5, None, None), (0, 1, 3)]
)
def test_what_cannot_be_known_is_left_out(
    samples: int, workers: int | None, slots: int | None
) -> None:
    """Too few finished jobs, no worker, or nobody knows how many: the place alone."""
    world = World(slots=slots).learned(samples)
    world.workers = workers
    world.seen("one", "queued")
    assert world.shown("one") == (1, None)
    world.queue.review()
    assert world.shown("one") == (1, None)
    assert str(world.value("proxy_jobs_queue_drain_seconds")) == "nan"


def test_workers_that_nobody_counts_are_seen_by_what_they_do() -> None:
    """Without a broker to ask, as many as worked at once are how many there are."""
    world = World().learned()
    world.workers = None
    world.seen("run", "processing", "a")
    world.seen("one", "queued")
    world.queue.review()
    assert world.shown("one") == (1, world.at(20))


def test_a_stuck_job_has_no_end() -> None:
    """Far beyond everything that was ever seen, nobody knows when it will be done."""
    world = World().learned()
    world.seen("run", "processing", "a")
    world.clock.advance(12.9)
    world.queue.review()
    assert world.shown("run") == (0, world.at(6))
    world.clock.advance(0.2)
    world.queue.review()
    assert world.shown("run") == (0, None)


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled", "deleted"])
def test_a_job_that_is_over_has_no_estimate(end: str) -> None:
    """However it ended; and those behind it move up."""
    world = World().learned()
    world.seen("run", "processing", "a")
    world.seen("next", "queued")
    if end == "deleted":
        world.queue.ended("run")
    else:
        world.seen("run", end)
    assert world.shown("run") == (None, None)
    world.queue.review()
    assert world.shown("next") == (1, world.at(10))
    assert world.value("proxy_jobs_queue_completions_total") == (0 if end == "deleted" else 1)


def test_an_app_whose_clock_is_off_moves_nothing() -> None:
    """15 minutes behind or ahead: durations stand in the document, moments are ours."""
    for skew in (-900.0, 900.0):
        world = World().learned()
        world.seen("run", "processing", "a", skew=skew)
        world.clock.advance(4)
        world.seen("run", "processing", "b", skew=skew)
        assert world.shown("run") == (0, world.at(6))
        world.clock.advance(6)
        world.seen("run", "completed", skew=skew)
        assert world.queue.durations.typical == pytest.approx(10)


def test_the_wait_ends_with_the_first_work() -> None:
    """Once for each job, by our clock."""
    world = World()
    world.seen("one", "queued")
    world.clock.advance(7)
    world.seen("one", "processing")
    world.clock.advance(1)
    world.seen("one", "processing", "a")
    assert world.value("proxy_jobs_queue_wait_seconds_count") == 1
    assert world.value("proxy_jobs_queue_wait_seconds_sum") == 7


def test_the_older_shape_names_its_stage_in_its_status() -> None:
    """Its stages have no dates; a status that goes back to `queued` is still work."""
    world = World()
    for job_id in ("o1", "o2", "o3", "o4", "o5", "o6"):
        for status, lasts in (("queued", 1), ("fetching", 2), ("queued", 1), ("assembling", 6)):
            value = {"job_id": job_id, "status": status}
            world.queue.changed(parse(job_id, json.dumps(value).encode()))
            world.queue.review()
            if job_id == "o6" and status == "assembling":
                assert world.shown(job_id) == (0, world.at(6))
            world.clock.advance(lasts)
        value = {"job_id": job_id, "status": "completed"}
        world.queue.changed(parse(job_id, json.dumps(value).encode()))
    assert world.queue.durations.typical == 9


def test_a_rewrite_of_a_completed_job_teaches_nothing_twice() -> None:
    """The service writes final versions more than once."""
    world = World()
    world.seen("one", "processing", "a")
    world.clock.advance(1)
    world.seen("one", "completed")
    world.seen("one", "completed")
    assert len(world.queue.durations) == 1


def test_a_job_that_is_started_again_begins_anew() -> None:
    """A lost worker's job has new times, and so a new end."""
    world = World().learned()
    world.seen("one", "processing", "a")
    world.clock.advance(4)
    world.seen("one", "processing", "b")
    world.clock.advance(3)
    world.stages["one"].clear()
    world.seen("one", "processing", "a")
    assert world.shown("one") == (0, world.at(10))


def test_after_a_start_all_is_as_before() -> None:
    """What the store held is no arrival, and a job goes on from where it was seen last."""
    world = World()
    for number in range(5):
        job_id = f"old{number}"
        begun = world.document(job_id, "processing", "a")
        world.clock.advance(10)
        world.queue.recall(parse(job_id, begun), world.clock.time())
        world.queue.recall(parse(job_id, world.document(job_id, "completed")), world.clock.time())
    run = parse("run", world.document("run", "processing", "a"))
    world.clock.advance(3)
    world.queue.recall(run, world.clock.time() - 3)
    world.queue.recall(parse("one", world.document("one", "queued")), world.clock.time())
    world.queue.review()
    assert world.shown("run") == (0, world.at(7))
    assert world.shown("one") == (1, world.at(17))
    assert world.value("proxy_jobs_queue_arrivals_total") == 0
    assert world.value("proxy_jobs_queue_wait_seconds_count") == 0


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"status":"queued","stages":7}',
        b'{"status":"processing","stages":{"a":[],"b":{"status":{},"started_at":[]}}}',
        b'{"status":"processing","stages":{"a":{"status":"processing","started_at":1e999}}}',
        b'{"status":"completed","completed_at":5,"stages":{"a":{"status":"done","started_at":9}}}',
        b'{"status":"a\\r\\nX-Evil: 1"}',
    ],
)
def test_hostile_documents_are_survived(raw: bytes) -> None:
    """Nothing is raised, nothing learned, and no field of another's making goes out."""
    world = World().learned()
    world.queue.changed(parse("bad", raw))
    world.queue.review()
    assert len(world.queue.durations) == 5
    assert b"Evil" not in world.queue.fields("bad")


def test_a_duration_must_make_sense() -> None:
    """Stages behind the end, or an end before the beginning, are not learned."""
    assert sample_of([("a", 5.0), ("b", 7.0)], 9.0) == JobDuration((("a", 0.0), ("b", 2.0)), 4.0)
    assert sample_of([("a", 5.0)], 5.0) is None
    assert sample_of([("a", 5.0), ("b", 11.0)], 9.0) is None
    assert sample_of([], 9.0) is None
    assert sample_of([("a", 5.0)], None) is None
    assert sample_of([("a", 5.0)], 5.0 + 8 * 86400) is None


def test_a_slow_job_is_expected_to_stay_slow() -> None:
    """Twice as long up to here means longer from here, but not by twice."""
    durations = Durations(2)
    for _ in range(5):
        durations.learn(TEN_SECONDS)
    usual = durations.remaining(Standing("b", 4.0, 0.0))
    slow = durations.remaining(Standing("b", 8.0, 0.0))
    assert usual == 6
    assert slow is not None
    assert 6 < slow < 12


def test_an_unknown_stage_falls_back_to_the_whole() -> None:
    """A stage that no remembered job had leaves the usual length of a job."""
    durations = Durations(2)
    for _ in range(5):
        durations.learn(TEN_SECONDS)
    assert durations.remaining(Standing("new", 3.0, 1.0)) == 6
    assert durations.remaining(Standing(None, 0.0, 2.0)) == 8
    assert durations.remaining(Standing("new", 20.0, 6.0)) is None


def test_busy_workers_beyond_the_slots_do_not_count_twice() -> None:
    """A job more than there are slots (stranded, perhaps) leaves the line as it is."""
    line = WaitingLine(1, [4.0, 9.0], 10.0)
    assert [line.next(), line.next()] == [14.0, 24.0]


def test_recorded_jobs_are_estimated_within_30_percent() -> None:
    """The median error from the first stage on, and that of jobs of other sizes."""
    for errors in bench.measure(histories=3).values():
        assert len(errors) > 200
        assert median(errors) < 0.3


def test_stages_are_in_the_order_in_which_they_began() -> None:
    """Whatever order the document has them in; what has not begun is none."""
    raw = json.dumps(
        {
            "status": "processing",
            "stages": {
                "late": {"status": "processing", "started_at": 20},
                "early": {"status": "completed", "started_at": 10},
                "never": {"status": "pending", "started_at": None},
            },
        }
    ).encode()
    assert stage_starts(parse("x", raw)) == (("early", 10.0), ("late", 20.0))


def test_old_jobs_are_forgotten() -> None:
    """What expired an hour ago, or has not changed for two days, is nobody's queue."""
    world = World()
    world.seen("one", "queued")
    world.clock.advance(2 * 86400 + 1)
    world.seen("two", "queued")
    world.queue.review()
    assert world.shown("one") == (None, None)
    assert world.shown("two") == (1, None)
    assert world.value("proxy_jobs_queue_length") == 1


def test_jobs_may_change_while_the_queue_is_reviewed() -> None:
    """A review takes turns with others; what came in between is newer than what it found."""
    world = World().learned()
    for number in range(150):
        world.seen(f"j{number}", "queued")
        world.clock.advance(0.001)
    review = world.queue.reviewing()
    next(review)
    world.seen("j0", "processing", "a")
    world.seen("j1", "failed")
    world.seen("late", "queued")
    for _ in review:
        pass
    assert world.shown("j0")[0] == 0
    assert world.shown("j1") == (None, None)
    assert world.shown("late")[0] is not None
    world.queue.review()
    assert (world.shown("j2")[0], world.shown("late")[0]) == (1, 149)
