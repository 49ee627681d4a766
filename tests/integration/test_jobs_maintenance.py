"""Clean-up, stranded jobs, listings, and what happens while one of the stores refuses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from proxy.config.mirrors import Mirror as MirrorConfig
from proxy.core.clock import ManualClock
from proxy.demo.redis_server import RedisServer
from proxy.jobs import maintenance
from proxy.jobs.answers import Expired, Known
from proxy.jobs.creations import Creation
from proxy.jobs.metrics import JobMetrics
from proxy.jobs.mirror import Mirror
from proxy.jobs.redis.connection import RedisAccess
from proxy.jobs.service import Mirrors
from tests.jobs_kit import (
    PREFIX,
    connected,
    deleted,
    eventually,
    followed,
    holds,
    job,
    locked,
    running,
    settings,
    write,
)

DAY = 86400.0


async def known(mirror: Mirror, job_id: str) -> bool:
    return await mirror.inspection.show(job_id) is not None


async def test_clean_up_forgets_what_ended_long_ago(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Expired jobs stay known for `keep_for`, then they and old tombstones are forgotten."""
    clock = ManualClock(time.time())
    mirror = Mirror(
        "make_video",
        settings(tmp_path / "j.db", keep_for="7d"),
        RedisAccess(lambda: Redis.from_url(redis_server.url)),
        JobMetrics(CollectorRegistry()),
        clock,
    )
    await mirror.start()
    try:
        await followed(mirror)
        async with connected(redis_server) as app:
            for job_id, ttl in (("mv_short", 3600), ("mv_long", 30 * 86400)):
                raw = await write(app, job_id, ttl=ttl)
                await eventually(holds(mirror, job_id, raw), "captured")
            await mirror.tombstone("mv_gone", app_notified=True)
        clock.advance(2 * DAY)
        assert isinstance(await mirror.reads.lookup("mv_short"), Expired)
        assert await mirror.clean_up() == 0
        clock.advance(6 * DAY)
        assert await mirror.clean_up() == 2
        assert await mirror.reads.lookup("mv_short") is None
        assert await mirror.reads.lookup("mv_gone") is None
        assert isinstance(await mirror.reads.lookup("mv_long"), Known)
    finally:
        await mirror.stop()


async def test_stranded_jobs_are_found_and_logged(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unfinished and unchanged for too long: listed and counted; finished ones are not."""
    monkeypatch.setattr(maintenance, "MEASURE_EVERY", 0.05)
    registry = CollectorRegistry()
    async with (
        connected(redis_server) as app,
        running(
            redis_server, tmp_path / "j.db", registry=registry, stranded_after="50ms"
        ) as mirror,
    ):
        await followed(mirror)
        await write(app, "mv_stuck", job("mv_stuck", "processing", 20.0))
        await write(app, "mv_done", job("mv_done", "completed", 100.0))

        def counted() -> bool:
            labels = {"mirror": "make_video"}
            return registry.get_sample_value("proxy_jobs_stranded", labels) == 1

        await eventually(counted, "stranded job counted")
        lines = await mirror.inspection.jobs(stranded=True)
        assert [line["job_id"] for line in lines] == ["mv_stuck"]
        assert await mirror.inspection.jobs(status="queued", stranded=True) == []


async def test_a_queued_job_without_a_message_is_stranded_sooner(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """With the broker followed, the lack of a message shows; waiting one's turn does not."""
    requeue = {"queues": ["make_video_queue"], "settle": "100ms"}
    async with (
        connected(redis_server) as app,
        running(redis_server, tmp_path / "j.db", requeue=requeue) as mirror,
    ):
        await followed(mirror)
        worker = app.pubsub()
        await worker.psubscribe("/0.celery.pidbox")
        message = {"body": json.dumps([["mv_waits"], {}, {}]), "headers": {"id": "t1"}}
        message["properties"] = {"body_encoding": "utf-8"}  # type: ignore[assignment]
        await app.lpush("make_video_queue", json.dumps(message))
        for job_id in ("mv_waits", "mv_deaf"):
            raw = await write(app, job_id)
            await eventually(holds(mirror, job_id, raw), "captured")

        async def only_the_deaf_one() -> bool:
            return [one["job_id"] for one in await mirror.inspection.jobs(stranded=True)] == [
                "mv_deaf"
            ]

        await eventually(only_the_deaf_one, "stranded")
        await worker.aclose()


async def test_listing_filters_orders_and_limits(redis_server: RedisServer, tmp_path: Path) -> None:
    """Newest creation first, by status, at most `limit`; deleted jobs are not in it."""
    async with connected(redis_server) as app, running(redis_server, tmp_path / "j.db") as mirror:
        await followed(mirror)
        for minute, status in enumerate(("queued", "completed", "queued", "queued")):
            job_id = f"mv_{minute}"
            created = f"2026-11-23T13:{minute:02d}:00-03:00"
            raw = await write(app, job_id, job(job_id, status, created_at=created))
            await eventually(holds(mirror, job_id, raw), "captured")
        await mirror.tombstone("mv_2", app_notified=False)

        async def ids(status: str | None, limit: int | None) -> list[str]:
            answer = await mirror.reads.listing(status, limit)
            assert answer is not None
            assert dict(answer.headers)["X-Job-Source"] == "sqlite"
            return [one["id"] for one in json.loads(answer.body)["jobs"]]

        assert await ids(None, None) == ["mv_3", "mv_1", "mv_0"]
        assert await ids("queued", 10) == ["mv_3", "mv_0"]
        assert await ids(None, 1) == ["mv_3"]
        assert await ids("queued'; DROP TABLE jobs;--", 5) == []


async def test_a_slow_sqlite_does_not_hold_a_creation_back(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Another process locks the file: the creation is let out as degraded, and committed later."""
    path = tmp_path / "j.db"
    async with connected(redis_server) as app, running(redis_server, path) as mirror:
        await followed(mirror)
        async with locked(path):
            await write(app, "mv_1")
            assert await mirror.creations.confirm("mv_1") is Creation.DEGRADED
        await eventually(holds(mirror, "mv_1", job("mv_1")), "committed at last")


@pytest.mark.parametrize("what", ["file", "folder", "replaced"])
async def test_a_file_that_somebody_removes_is_written_anew(
    redis_server: RedisServer, tmp_path: Path, what: str
) -> None:
    """rm of the database under a running proxy loses nothing, not even what Redis has not; one that
    is replaced is filled from Redis."""
    path = tmp_path / "data" / "j.db"

    def kept() -> set[str]:
        try:
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
                return {row[0] for row in db.execute("SELECT job_id FROM jobs")}
        except sqlite3.Error:
            return set()

    async with running(redis_server, path) as mirror:
        await followed(mirror)
        async with connected(redis_server) as app:
            for job_id in ("mv_1", "mv_2"):
                raw = await write(app, job_id)
                await eventually(holds(mirror, job_id, raw), "captured")
        if what == "replaced":
            path.unlink()
            with contextlib.closing(sqlite3.connect(path)) as other:
                other.execute("CREATE TABLE cookies (a)")
        else:
            await asyncio.to_thread(redis_server.kill)  # now nobody else has the jobs
            path.unlink() if what == "file" else shutil.rmtree(path.parent)
        await eventually(lambda: kept() == {"mv_1", "mv_2"}, "both jobs in a file in its place")
        if what != "replaced":
            await asyncio.to_thread(redis_server.start)
        async with connected(redis_server) as app:

            async def both_there() -> bool:
                return bool(await app.exists(PREFIX + "mv_1", PREFIX + "mv_2") == 2)

            await eventually(both_there, "both jobs in Redis")
            await write(app, "mv_3")
            await eventually(lambda: kept() == {"mv_1", "mv_2", "mv_3"}, "the next one, too")
        assert mirror.state()["sqlite"] == "ok"


async def test_redis_without_memory_is_an_obstacle_not_a_loss(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """A full Redis takes no job back: said once, tried again, done when there is room."""
    async with connected(redis_server) as app, running(redis_server, tmp_path / "j.db") as mirror:
        await followed(mirror)
        raw = await write(app, "mv_1")
        await eventually(holds(mirror, "mv_1", raw), "captured")
        await app.config_set("maxmemory", "1")
        await app.flushall()
        await eventually(lambda: mirror.state()["obstacle"] is not None, "obstacle")
        assert "maxmemory" in mirror.state()["obstacle"]
        assert mirror.redis_up
        await app.config_set("maxmemory", "0")

        async def back() -> bool:
            return bool(await app.exists(PREFIX + "mv_1"))

        await eventually(back, "restored")
        await eventually(lambda: mirror.state()["obstacle"] is None, "obstacle gone")


async def test_evicted_jobs_are_not_taken_for_deleted(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Redis drops keys for want of memory: the store keeps them as live jobs."""
    async with connected(redis_server) as app, running(redis_server, tmp_path / "j.db") as mirror:
        await followed(mirror)
        raw = await write(app, "mv_1", job("mv_1", padding="x" * 100_000))
        await eventually(holds(mirror, "mv_1", raw), "captured")
        await app.config_set("maxmemory-policy", "allkeys-random")
        used = (await app.info("memory"))["used_memory"]
        await app.config_set("maxmemory", used - 60_000)

        async def evicted() -> bool:
            with_error = await asyncio.gather(app.set("other", "x"), return_exceptions=True)
            del with_error
            return not await app.exists(PREFIX + "mv_1")

        await eventually(evicted, "evicted")
        await app.config_set("maxmemory", 0)
        await mirror.sync()
        assert isinstance(await mirror.reads.lookup("mv_1"), Known)
        assert await mirror.reads.revive("mv_1")
        assert await app.get(PREFIX + "mv_1") == raw


async def test_a_manual_restore_puts_back_what_is_missing(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """`restore` answers with counts; a second one finds everything in place."""
    async with connected(redis_server) as app, running(redis_server, tmp_path / "j.db") as mirror:
        await followed(mirror)
        for number in range(5):
            await write(app, f"mv_{number}")
        await mirror.sync()
        tally = await mirror.restore()
        assert (tally.cause, tally.restored, tally.kept) == ("manual", 0, 5)


async def test_two_families_live_side_by_side(redis_server: RedisServer, tmp_path: Path) -> None:
    """Each mirror has its own keys, file and state; a failing one leaves the other alone."""
    (tmp_path / "blocked").write_text("")
    mirrors = Mirrors(
        {
            "one": MirrorConfig(key="one:{job_id}", sqlite=tmp_path / "one.db"),
            "two": MirrorConfig(key="two:{job_id}", sqlite=tmp_path / "blocked" / "two.db"),
        },
        lambda: Redis.from_url(redis_server.url),
        CollectorRegistry(),
        ManualClock(time.time()),
    )
    await mirrors.start()
    try:
        (one,) = mirrors.chosen("one")
        assert len(mirrors.chosen(None)) == 2
        with pytest.raises(KeyError):
            mirrors.chosen("three")
        await followed(one)
        async with connected(redis_server) as app:
            await app.set("one:mv_1", job("mv_1"), ex=3600)
            await app.set("two:mv_2", job("mv_2"), ex=3600)
            await eventually(lambda: known(one, "mv_1"), "captured")
            assert await one.inspection.show("mv_2") is None
            await app.delete("one:mv_1")
            await eventually(deleted(one, "mv_1"), "tombstone")
        assert mirrors.by_name["two"].state()["sqlite"] == "degraded"
    finally:
        await mirrors.stop()


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "make_video:job"},
        {"key": "{job_id}"},
        {"key": "a:{job_id}:{job_id}"},
        {"keep_for": "1s"},
        {"confirm_within": "2m"},
    ],
)
def test_a_mirror_that_cannot_work_is_refused(changes: dict[str, Any]) -> None:
    """The config says what a mirror needs."""
    with pytest.raises(ValueError, match=r"expected|should be|equal"):
        settings(Path("j.db"), **changes)
