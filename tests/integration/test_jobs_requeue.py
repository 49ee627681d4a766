"""With a real Celery worker: every job is worked on to its end, and never by two at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from proxy.jobs.mirror import Mirror
from proxy.jobs.requeue.starter import CannotRequeue
from proxy.redis_server import RedisServer
from tests.celery_worker.kit import QUEUE, CeleryWorker, Producer, producing, runs
from tests.jobs_kit import PREFIX, connected, eventually, followed, holds, job, running, write

REQUEUE = {"queues": [QUEUE], "settle": "500ms", "spacing": "1s"}
FAST: dict[str, Any] = {"requeue": REQUEUE, "app_breaker": "1s"}
LONG = 60.0


@pytest.fixture
def worker(redis_server: RedisServer, tmp_path: Path) -> Iterator[CeleryWorker]:
    """A worker that the test starts."""
    one = CeleryWorker(tmp_path, redis_server, BREAKER_OPEN_FOR="1", STEP="0.3")
    yield one
    one.kill()


@pytest.fixture
def producer(redis_server: RedisServer) -> Iterator[Producer]:
    with producing(redis_server) as one:
        yield one


async def queued(app: Redis, mirror: Mirror, *job_ids: str) -> None:
    """Jobs in Redis and in the mirror, without messages."""
    for job_id in job_ids:
        raw = await write(app, job_id, new(job_id))
        await eventually(holds(mirror, job_id, raw), "captured")


def new(job_id: str, **more: Any) -> bytes:
    return job(job_id, audio_file=f"data/raw/audio/{job_id}.mp3", **more)


def status(app: Redis, job_id: str, *wanted: str) -> Any:
    """Whether the job in Redis has one of these statuses."""

    async def check() -> bool:
        raw = await app.get(PREFIX + job_id)
        return raw is not None and json.loads(raw)["status"] in wanted

    return check


def began(worker: CeleryWorker, job_id: str) -> int:
    return sum(what == "begins" and one == job_id for what, one, _, _ in runs(worker.runs))


async def test_a_job_whose_message_was_discarded_is_worked_on(
    redis_server: RedisServer, tmp_path: Path, worker: CeleryWorker, producer: Producer
) -> None:
    """Its own message where one was seen, else the shape of one for a job of the same kind."""
    async with (
        running(redis_server, tmp_path / "j.db", **FAST) as mirror,
        connected(redis_server) as app,
    ):
        await followed(mirror)
        await queued(app, mirror, "mv_first", "mv_second")
        await asyncio.to_thread(producer.send, "mv_first")

        async def message_seen() -> bool:
            return bool(await mirror._ledger.table("SELECT 1 FROM job_messages"))

        await eventually(message_seen, "message seen")
        await app.delete(QUEUE)
        worker.start()
        for job_id in ("mv_first", "mv_second"):
            await eventually(status(app, job_id, "completed"), f"{job_id} completed", LONG)
            assert began(worker, job_id) == 1


async def test_a_killed_worker_gives_its_job_back(
    redis_server: RedisServer, tmp_path: Path, worker: CeleryWorker, producer: Producer
) -> None:
    """The message returns from `unacked` as kombu restores it, and the next worker takes it."""
    async with (
        running(redis_server, tmp_path / "j.db", **FAST) as mirror,
        connected(redis_server) as app,
    ):
        await followed(mirror)
        await queued(app, mirror, "mv_1")
        worker.start()
        task_id = await asyncio.to_thread(producer.send, "mv_1")
        await eventually(status(app, "mv_1", "processing"), "begun", LONG)
        worker.kill()

        async def restored() -> bool:
            return await app.llen(QUEUE) == 1 and await app.hlen("unacked") == 0

        await eventually(restored, "restored", LONG)
        message = json.loads((await app.lrange(QUEUE, 0, 0))[0])
        assert message["headers"]["id"] == task_id
        assert message["headers"]["redelivered"] is True
        assert message["properties"]["delivery_info"]["redelivered"] is True
        worker.start()
        await eventually(status(app, "mv_1", "completed"), "completed", LONG)

        async def acknowledged() -> bool:
            return await app.zcard("unacked_index") == 0

        await eventually(acknowledged, "acknowledged", LONG)


async def test_a_job_that_runs_unconnected_is_left_alone(
    redis_server: RedisServer, tmp_path: Path, producer: Producer
) -> None:
    """A solo worker goes on while Redis restarts empty, and no second run begins."""
    worker = CeleryWorker(tmp_path, redis_server, BREAKER_OPEN_FOR="1", STEP="3", STEPS="2")
    async with running(redis_server, tmp_path / "j.db", **FAST) as mirror:
        since = await followed(mirror)
        async with connected(redis_server) as app:
            await queued(app, mirror, "mv_1")
            worker.start()
            await asyncio.to_thread(producer.send, "mv_1")
            await eventually(status(app, "mv_1", "processing"), "begun", LONG)
        try:
            await asyncio.to_thread(redis_server.kill)
            await asyncio.to_thread(redis_server.start)
            await followed(mirror, since)
            async with connected(redis_server) as app:
                await eventually(status(app, "mv_1", "completed"), "completed", LONG)
                assert await app.llen(QUEUE) == 0
            assert began(worker, "mv_1") == 1
        finally:
            worker.kill()


async def test_an_operator_needs_proof_or_force(redis_server: RedisServer, tmp_path: Path) -> None:
    """Without proof the request is refused with the evidence; a finished job never starts."""
    async with (
        running(redis_server, tmp_path / "j.db", requeue=REQUEUE) as mirror,
        connected(redis_server) as app,
    ):
        await followed(mirror)
        await queued(app, mirror, "mv_1", "mv_done")
        raw = await write(app, "mv_done", new("mv_done", status="completed"))
        await eventually(holds(mirror, "mv_done", raw), "captured")
        with pytest.raises(CannotRequeue, match="may be worked on") as refused:
            await mirror.requeue("mv_1", reason="test", force=False)
        assert "without a message" in (refused.value.evidence or "")
        for job_id in ("mv_done", "mv_unknown"):
            with pytest.raises(CannotRequeue, match="finished, deleted or not known"):
                await mirror.requeue(job_id, reason="test", force=True)
        with pytest.raises(CannotRequeue, match="no message of this job"):
            await mirror.requeue("mv_1", reason="test", force=True)
