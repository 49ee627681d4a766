"""The pipeline's events are counted once, by one sidecar, whatever is killed meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from proxy.core.clock import SystemClock
from proxy.demo.redis_server import RedisServer
from proxy.jobs.metrics import JobMetrics
from proxy.jobs.mirror import Mirror
from proxy.jobs.redis.connection import RedisAccess
from proxy.jobs.video_metrics import counting, lease
from proxy.jobs.video_metrics.events import EventReader
from tests.counting_kit import STAGES, all_versions, counted, document, iso, stage
from tests.http1 import PATIENCE
from tests.jobs_kit import (
    PREFIX,
    connected,
    eventually,
    followed,
    holds,
    job,
    locked,
    running,
    settings,
    write,
)

DURATION = "pipeline_stage_duration_seconds"
COUNTING = "proxy_pipeline_counting"
EVENTS = 6  # of a whole life: three stages, the job, shorts, segments


class Sidecar:
    """A mirror with a registry of its own, that can be killed as a process is: without a word."""

    def __init__(self, server: RedisServer, path: Path, **changes: Any) -> None:
        self.path = path
        self._server = server
        self._changes = changes
        self.registry = CollectorRegistry()
        self.mirror = self._make()

    def _make(self) -> Mirror:
        self.registry = CollectorRegistry()
        return Mirror(
            "make_video",
            settings(self.path, **self._changes),
            RedisAccess(lambda: Redis.from_url(self._server.url)),
            JobMetrics(self.registry),
            SystemClock(),
        )

    async def start(self) -> None:
        """Start, and wait until it follows Redis."""
        self.mirror = self._make()
        await self.mirror.start()
        await followed(self.mirror)

    async def kill(self) -> None:
        """The lease stays as it is, and so does what is not committed."""
        tasks, self.mirror._tasks = self.mirror._tasks, []
        await asyncio.gather(*(task.stop() for task in tasks))
        self.mirror._store._queue.clear()
        await self.mirror._store.stop()

    def has(self, name: str, **labels: str) -> float:
        """A sample of this sidecar."""
        return counted(self.registry, name, **labels)

    @property
    def counts(self) -> bool:
        """Whether it says that it is the one."""
        return self.has(COUNTING, mirror="make_video") == 1

    @property
    def stages(self) -> float:
        """Stage durations that it has counted."""
        return sum(self.has(f"{DURATION}_count", stage=name) for name in STAGES)


@asynccontextmanager
async def fleet(server: RedisServer, home: Path, *names: str) -> AsyncIterator[list[Sidecar]]:
    """Started sidecars, the first of which counts."""
    sidecars = [Sidecar(server, home / f"{name}.db") for name in names]
    try:
        for position, sidecar in enumerate(sidecars):
            await sidecar.start()
            if position == 0:
                await eventually(lambda: sidecars[0].counts, "the first one counts")
        yield sidecars
    finally:
        for sidecar in sidecars:
            await sidecar.mirror.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of a second instead of ten."""
    for name, seconds in {"LEASE": 1.0, "RENEW": 0.2, "LOOK": 0.1}.items():
        monkeypatch.setattr(lease, name, seconds)
    for name, seconds in {
        "TICK": 0.1,
        "BATCH_PAUSE": 0.02,
        "BETTER_WORD": 0.3,
        "SURVEY": 0.1,
    }.items():
        monkeypatch.setattr(counting, name, seconds)


async def write_all(client: Redis, job_id: str, began: float | None = None) -> None:
    """A whole life of a job, each version a write of its own."""
    for raw in all_versions(job_id, time.time() if began is None else began):
        await write(client, job_id, raw)


async def test_a_job_of_three_stages(redis_server: RedisServer, tmp_path: Path) -> None:
    """Durations, result and final status are counted; the job is an exemplar, not a label."""
    async with connected(redis_server) as app, fleet(redis_server, tmp_path, "a") as (one,):
        await write(app, "mv_0", document("mv_0", "queued", time.time()))
        await eventually(lambda: one.has("pipeline_jobs_active") == 1, "active")
        await write_all(app, "mv_1")
        await eventually(lambda: one.has("pipeline_jobs_total", status="completed") == 1, "counted")
        assert one.stages == 3
        assert one.has(f"{DURATION}_sum", stage="load_approved") == pytest.approx(2.0)
        assert one.has("video_processing_shorts_count_sum") == 4
        assert one.has("subtitle_segments_count_sum") == 7
        assert one.has("pipeline_jobs_active") == 1
        samples = [sample for family in one.registry.collect() for sample in family.samples]
        assert not any("job_id" in sample.labels for sample in samples)
        exemplars = [sample.exemplar for sample in samples if sample.exemplar is not None]
        assert {exemplar.labels["job_id"] for exemplar in exemplars} == {"mv_1"}


async def test_an_input_measured_at_its_upload_is_counted_once(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Told when the job is created, again after kill -9, and by the finished job, otherwise: the
    first word counts. A job that is deleted, and one that cannot last so long, tell nothing."""
    family = "video_processing_input_duration_seconds"
    async with connected(redis_server) as app, fleet(redis_server, tmp_path, "a") as (one,):
        for job_id in ("mv_1", "mv_2", "mv_3"):
            raw = await write(app, job_id, document(job_id, "queued", time.time()))
            await eventually(holds(one.mirror, job_id, raw), "captured")
        await one.mirror.tombstone("mv_2", app_notified=True)
        one.mirror.input_measured("mv_1", 33.5)
        one.mirror.input_measured("mv_2", 33.5)
        one.mirror.input_measured("mv_3", 1e9)
        await eventually(lambda: one.has(f"{family}_count") == 1, "counted")
        await one.kill()
        await one.start()
        one.mirror.input_measured("mv_1", 33.5)
        done = document("mv_1", "completed", time.time(), audio_duration=40.0)
        await write(app, "mv_1", done)
        await eventually(lambda: one.has("pipeline_jobs_total", status="completed") == 1, "ended")
        assert one.has(f"{family}_count") == 1
        assert one.has(f"{family}_sum") == 33.5


async def test_counts_survive_a_restart_and_nothing_is_counted_again(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """After a kill and a stop the totals go on where they were; rewrites and comparisons add
    nothing; what happened meanwhile is counted."""
    async with connected(redis_server) as app, fleet(redis_server, tmp_path, "a") as (one,):
        await write_all(app, "mv_1")
        await eventually(lambda: one.has("pipeline_jobs_total", status="completed") == 1, "counted")
        await one.kill()
        await write_all(app, "mv_2")
        await one.start()
        await eventually(lambda: one.has("pipeline_jobs_total", status="completed") == 2, "both")
        await one.mirror.stop()
        await one.start()
        await eventually(lambda: one.counts, "counts at once")
        await write_all(app, "mv_1")
        await one.mirror.sync()
        await write_all(app, "mv_3")
        await eventually(lambda: one.has("pipeline_jobs_total", status="completed") == 3, "all")
        # mv_1 was written with other times, as by a second run: that has stages of its own.
        assert one.stages == 3 + 3 + 3 + 3
        assert one.has("video_processing_shorts_count_count") == 3


async def test_replays_are_counted_once(redis_server: RedisServer, tmp_path: Path) -> None:
    """The very same versions again, backwards too, change no count."""
    async with connected(redis_server) as app, fleet(redis_server, tmp_path, "a") as (one,):
        began = time.time()
        versions = all_versions("mv_1", began)
        for raw in [*versions, *reversed(versions), *versions]:
            await write(app, "mv_1", raw)
        await write_all(app, "mv_2")
        await eventually(lambda: one.has("pipeline_jobs_total", status="completed") == 2, "both")
        assert one.stages == 6


async def test_what_was_claimed_before_a_crash_is_counted_after_it(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Killed between claim and commit: the claim is found to be its own, and counted once."""
    async with connected(redis_server) as app, fleet(redis_server, tmp_path, "a") as (one,):
        claimed = asyncio.Event()
        part = one.mirror._counting
        assert part is not None

        async def crash(*_: object) -> bool:
            claimed.set()
            await asyncio.Event().wait()
            return False

        part._commit = crash  # type: ignore[method-assign]
        await write_all(app, "mv_1")
        await asyncio.wait_for(claimed.wait(), PATIENCE)
        keys = await app.keys("pipeline:*counted:*")
        assert [key.rpartition(b":")[2] for key in keys] == [b"mv_1"]
        assert one.stages == 0
        await eventually(lambda: one.mirror._store.backlog == 0, "events committed")
        await one.kill()
        await one.start()
        await eventually(lambda: one.has("pipeline_jobs_total", status="completed") == 1, "counted")
        assert one.stages == 3


async def test_one_of_two_counts(redis_server: RedisServer, tmp_path: Path) -> None:
    """The other one says so, shows no active jobs, and settles what it sees without counting."""
    async with (
        connected(redis_server) as app,
        fleet(redis_server, tmp_path, "a", "b") as (one, other),
    ):
        for number in range(20):
            await write_all(app, f"mv_{number}")
        await eventually(lambda: one.has("pipeline_jobs_total", status="completed") == 20, "all")
        await eventually(settled(other, counting.THEIRS, 20 * EVENTS), "settled")
        assert (one.counts, other.counts) == (True, False)
        assert (one.stages, other.stages) == (60, 0)
        names = {sample.name for family in other.registry.collect() for sample in family.samples}
        assert "pipeline_jobs_active" not in names
        assert await outcomes(one) == {counting.MINE: 20 * EVENTS}


async def outcomes(sidecar: Sidecar) -> dict[int, int]:
    """How many events of a store were settled in which way."""
    rows = await sidecar.mirror._store.table(
        "SELECT outcome, count(*) FROM pipeline_events GROUP BY outcome"
    )
    return dict(rows)


def settled(sidecar: Sidecar, outcome: int, events: int) -> Callable[[], Awaitable[bool]]:
    """Whether all of so many events were settled in this way."""

    async def check() -> bool:
        return await outcomes(sidecar) == {outcome: events}

    return check


async def test_a_takeover_neither_repeats_nor_loses(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """The one that counts is killed while jobs go on; the other takes over. The first comes back
    and the sum over both is what happened."""
    async with (
        connected(redis_server) as app,
        fleet(redis_server, tmp_path, "a", "b") as (one, other),
    ):
        for number in range(15):
            await write_all(app, f"mv_{number}")
            if number == 5:
                await eventually(lambda: one.stages > 0, "some counted")
                await one.kill()
        await eventually(lambda: other.counts, "taken over")
        counted_by_the_dead = one.stages
        await one.start()
        await eventually(
            lambda: (
                one.has("pipeline_jobs_total", status="completed")
                + other.has("pipeline_jobs_total", status="completed")
                == 15
            ),
            "every job by somebody",
        )
        await eventually(lambda: one.stages + other.stages == 45, "every stage by somebody")
        assert not one.counts
        assert one.stages >= counted_by_the_dead
        assert other.stages > 0


async def test_redis_restarts_empty(redis_server: RedisServer, tmp_path: Path) -> None:
    """Lease and claims are gone; the same sidecar goes on counting, and what is restored is not
    counted again by anyone."""
    async with fleet(redis_server, tmp_path, "a", "b") as (one, other):
        async with connected(redis_server) as app:
            for number in range(5):
                await write_all(app, f"mv_{number}")
        await eventually(lambda: one.has("pipeline_jobs_total", status="completed") == 5, "counted")
        await eventually(settled(other, counting.THEIRS, 5 * EVENTS), "settled")
        since = [side.mirror.state()["last_sync"] for side in (one, other)]
        await asyncio.to_thread(redis_server.kill)
        await eventually(lambda: not one.counts, "nobody counts without Redis")
        assert one.stages == 15
        await asyncio.to_thread(redis_server.start)
        for side, before in zip((one, other), since, strict=True):
            await followed(side.mirror, before)
        async with connected(redis_server) as app:
            for number in range(5, 8):
                await write_all(app, f"mv_{number}")
        await eventually(lambda: one.has("pipeline_jobs_total", status="completed") == 8, "goes on")
        assert (one.counts, other.counts) == (True, False)
        assert (one.stages, other.stages) == (24, 0)


async def test_who_was_away_learns_what_was_counted_before_redis_lost_its_data(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """The one that counts claims again; so the other one knows at once, and may take over."""
    async with fleet(redis_server, tmp_path, "a", "b") as (one, other):
        async with connected(redis_server) as app:
            await write_all(app, "mv_0")
            await eventually(settled(other, counting.THEIRS, EVENTS), "seen by both")
            await other.kill()
            for number in range(1, 50):
                await write_all(app, f"mv_{number}")
        await eventually(settled(one, counting.MINE, 50 * EVENTS), "counted")
        since = one.mirror.state()["last_sync"]
        await asyncio.to_thread(redis_server.kill)
        await asyncio.to_thread(redis_server.start)
        await followed(one.mirror, since)
        await eventually(lambda: one.counts, "goes on")
        await other.start()
        await eventually(settled(other, counting.THEIRS, 50 * EVENTS), "learned")
        await one.kill()
        await eventually(lambda: other.counts, "taken over")
        async with connected(redis_server) as app:
            await write_all(app, "mv_last")
        await eventually(lambda: other.stages == 3, "counts what is new")
        assert other.has("pipeline_jobs_total", status="completed") == 1


async def test_events_whose_claims_were_lost_are_not_counted_by_another(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis is emptied before the second sidecar has read the claims: it presumes them."""
    monkeypatch.setattr(counting, "PRESUMED", 0.5)
    async with (
        connected(redis_server) as app,
        fleet(redis_server, tmp_path, "a", "b") as (one, other),
    ):
        part = other.mirror._counting
        assert part is not None
        gate, claim = asyncio.Event(), part._claims.claim

        async def late(events: Any, **more: Any) -> list[int]:
            await gate.wait()
            return await claim(events, **more)

        part._claims.claim = late  # type: ignore[method-assign]
        await write_all(app, "mv_1")
        await eventually(lambda: one.stages == 3, "counted")
        await eventually(settled(other, 0, EVENTS), "seen by the other one too")
        await app.delete(*await app.keys("pipeline:*counted:*"))
        gate.set()
        await eventually(settled(other, counting.THEIRS, EVENTS), "presumed")
        assert other.stages == 0


async def test_old_jobs_are_not_counted_by_a_new_store(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """What ended before the store began is history; what ends after that is counted."""
    async with connected(redis_server) as app:
        hour_ago = time.time() - 3600
        await write_all(app, "mv_old", hour_ago)
        stages = {"analyze_audio": stage("completed", hour_ago, hour_ago + 1)}
        await write(app, "mv_1", document("mv_1", "processing", hour_ago, stages=stages))
        async with fleet(redis_server, tmp_path, "a") as (one,):
            now = time.time() + 1
            stages["load_approved"] = stage("completed", hour_ago, now)
            done = document("mv_1", "completed", hour_ago, stages=stages, completed_at=iso(now))
            await write(app, "mv_1", done)
            await eventually(lambda: one.has("pipeline_jobs_total", status="completed") == 1, "new")
            assert one.stages == 1
            assert one.has(f"{DURATION}_sum", stage="load_approved") == pytest.approx(
                now - hour_ago, abs=0.01
            )
            assert (await outcomes(one))[counting.HISTORY] > 0


async def test_a_damaged_store_counts_nothing_again(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """A new file is begun and filled from Redis; totals go on, and survive the next restart."""
    async with connected(redis_server) as app, fleet(redis_server, tmp_path, "a") as (one,):
        await write_all(app, "mv_1")
        await eventually(lambda: one.has("pipeline_jobs_total", status="completed") == 1, "counted")
        part = one.mirror._counting
        assert part is not None
        before = part._claims.owner
        one.mirror._store._recovery._suspected()
        await eventually(lambda: part._claims.owner != before, "a file of its own")
        await write_all(app, "mv_2")
        await eventually(lambda: one.has("pipeline_jobs_total", status="completed") == 2, "goes on")
        assert one.stages == 6
        await one.mirror.stop()
        await one.start()
        await eventually(lambda: one.counts, "counts")
        assert one.has("pipeline_jobs_total", status="completed") == 2
        assert one.stages == 6


async def test_while_sqlite_cannot_write_another_one_counts(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """The lease is not renewed; nothing is counted twice when SQLite is back."""
    async with (
        connected(redis_server) as app,
        fleet(redis_server, tmp_path, "a", "b") as (one, other),
    ):
        await write_all(app, "mv_0")
        await eventually(lambda: one.stages == 3, "counted")
        async with locked(one.path):
            for number in range(1, 5):
                await write_all(app, f"mv_{number}")
            await eventually(lambda: other.counts, "taken over")
            assert not one.counts
        await eventually(lambda: one.stages + other.stages == 15, "all of it")
        await eventually(
            lambda: one.has("proxy_pipeline_pending", mirror="make_video") == 0, "settled"
        )
        assert one.stages + other.stages == 15


async def test_a_held_job_that_comes_back_is_not_counted(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """What a worker writes for a job that was deleted through us is not counted."""
    async with connected(redis_server) as app, fleet(redis_server, tmp_path, "a") as (one,):
        versions = all_versions("mv_1", time.time())
        for raw in versions[:4]:
            await write(app, "mv_1", raw)
        await eventually(lambda: one.stages == 1, "the first stage")
        await app.delete(PREFIX + "mv_1")
        assert await one.mirror.tombstone("mv_1", app_notified=True)
        for raw in versions[4:]:
            await write(app, "mv_1", raw)
        await write_all(app, "mv_2")
        await eventually(lambda: one.stages >= 4, "another job")
        assert one.stages == 4
        assert one.has("pipeline_jobs_total", status="completed") == 1


async def test_an_error_waits_a_moment_for_its_type(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """One version names the stage, the next one the type: counted once, with both. A retry that
    never names it is counted too."""
    async with connected(redis_server) as app, fleet(redis_server, tmp_path, "a") as (one,):
        now = time.time()
        failed = {"trim_video": stage("failed", now, now + 1, error_message="[NO_DISK] full")}
        for job_id in ("mv_1", "mv_2"):
            await write(app, job_id, document(job_id, "processing", now, stages=failed))
        end = document("mv_1", "failed", now, stages=failed, error={"type": "IOError"})
        await write(app, "mv_1", end)
        for kind in ("IOError", "unknown"):
            labels = {"stage": "trim_video", "error_type": kind, "error_code": "NO_DISK"}
            await eventually(
                lambda labels=labels: one.has("pipeline_stage_errors_total", **labels) == 1, kind
            )
        assert one.has("pipeline_jobs_total", status="failed") == 1


async def test_a_redis_that_refuses_scripts(redis_server: RedisServer, tmp_path: Path) -> None:
    """It is said and shown; jobs are mirrored all the same, and counted when it is allowed."""
    async with connected(redis_server) as app, fleet(redis_server, tmp_path, "a") as (one,):
        await app.execute_command("ACL", "SETUSER", "default", "-eval")
        await eventually(lambda: not one.counts, "does not count")
        await write_all(app, "mv_1")
        await eventually(settled(one, 0, EVENTS), "seen and not settled")
        assert one.stages == 0
        await app.execute_command("ACL", "SETUSER", "default", "+eval")
        await eventually(lambda: one.stages == 3, "counted at last")


async def test_a_mistake_in_reading_costs_the_metrics_alone(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version is mirrored, without events."""

    def broken(*_: object) -> list[Any]:
        raise ZeroDivisionError

    async with connected(redis_server) as app, fleet(redis_server, tmp_path, "a") as (one,):
        monkeypatch.setattr(EventReader, "events", broken)
        raw = await write(app, "mv_1", job("mv_1", "completed"))
        await eventually(holds(one.mirror, "mv_1", raw), "mirrored")
        assert await outcomes(one) == {}


async def test_turned_off(redis_server: RedisServer, tmp_path: Path) -> None:
    """With `job_metrics: null` there is no family, no event and no key in Redis."""
    registry = CollectorRegistry()
    async with (
        connected(redis_server) as app,
        running(redis_server, tmp_path / "j.db", registry=registry, job_metrics=None) as mirror,
    ):
        await followed(mirror)
        await write(app, "mv_1", job("mv_1", "completed"))
        await eventually(lambda: bool(mirror.state()["captured"]), "captured")
        assert await mirror._store.flushed(PATIENCE)
        assert not [f.name for f in registry.collect() if f.name.startswith("pipeline")]
        assert await mirror._store.column("SELECT count(*) FROM pipeline_events") == [0]
        assert await app.keys("pipeline:*") == []


async def test_a_flood_of_labels_stays_bounded(redis_server: RedisServer, tmp_path: Path) -> None:
    """A thousand jobs with stages, types and codes of their own make no more series than are
    allowed."""
    async with connected(redis_server) as app, fleet(redis_server, tmp_path, "a") as (one,):
        now = time.time()
        for number in range(1000):
            failed = {f"s{number}": stage("failed", now, now, error_message=f"[CODE_{number}]")}
            error = {"type": f"T{number}", "message": ""}
            raw = document(f"mv_{number}", "failed", now, stages=failed, error=error)
            await write(app, f"mv_{number}", raw)
        await eventually(lambda: one.has("pipeline_jobs_total", status="failed") == 1000, "counted")
        errors = [
            sample
            for family in one.registry.collect()
            for sample in family.samples
            if sample.name == "pipeline_stage_errors_total"
        ]
        assert sum(sample.value for sample in errors) == 1000
        assert len(errors) <= 300
        assert json.dumps([sample.labels for sample in errors]).count("other") > 0
