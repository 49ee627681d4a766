"""With a real Celery worker: every job is worked on to its end, and never by two at once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from proxy.demo.redis_server import RedisServer
from proxy.jobs.mirror import Mirror
from proxy.jobs.requeue import evidence, workers
from proxy.jobs.requeue.observation import Track
from proxy.jobs.requeue.requeuer import requeue_problem
from proxy.jobs.requeue.starter import CannotRequeue
from tests.celery_worker.kit import QUEUE, CeleryWorker, Producer, producing, runs
from tests.integration.test_jobs_redis_trouble import as_user, documented_acl
from tests.jobs_kit import PREFIX, connected, eventually, followed, holds, job, running, write

REQUEUE = {"queues": [QUEUE], "settle": "500ms", "spacing": "1s"}
FAST: dict[str, Any] = {"requeue": REQUEUE, "app_breaker": "1s"}
LONG = 60.0


@pytest.fixture(autouse=True)
def lively(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are counted and asked every second: a test has no hour."""
    monkeypatch.setattr(workers, "COUNT_EVERY", 1.0)
    monkeypatch.setattr(workers, "ASK_EVERY", 1.0)


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
            return bool(await mirror._store.table("SELECT 1 FROM job_messages"))

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


async def test_the_documented_rights_are_enough(
    redis_server: RedisServer, tmp_path: Path, worker: CeleryWorker, producer: Producer
) -> None:
    """A killed worker's job is put back by a user who has what the docs grant, and no more."""
    (rules,) = documented_acl("proxy-requeue")
    async with (
        as_user(redis_server, *rules) as server,
        connected(redis_server) as app,
        running(server, tmp_path / "j.db", **FAST) as mirror,
    ):
        await followed(mirror)
        await queued(app, mirror, "mv_1")
        worker.start()
        await asyncio.to_thread(producer.send, "mv_1")
        await eventually(status(app, "mv_1", "processing"), "begun", LONG)
        worker.kill()
        await eventually(requeued(mirror, app), "put back", LONG)
        assert mirror.state()["requeue"]["refused"] == []
        assert mirror.state()["requeue"]["error"] is None
        denied = await app.execute_command("ACL", "LOG")
        assert not denied, "nothing was asked for that is not granted"


def requeued(mirror: Mirror, app: Redis) -> Any:
    """Whether one message is in the queue."""

    async def check() -> bool:
        return bool(await app.llen(QUEUE) == 1)

    return check


@pytest.mark.parametrize(
    ("missing", "part"), [("-llen", "error"), ("-publish", "refused"), ("-hgetall", "error")]
)
async def test_a_missing_right_is_no_emptiness(
    redis_server: RedisServer, tmp_path: Path, missing: str, part: str
) -> None:
    """An error reply is an error in the log and in the state, and nothing is pushed for it."""
    (rules,) = documented_acl("proxy-requeue")
    async with (
        as_user(redis_server, *rules, missing) as server,
        connected(redis_server) as app,
        running(server, tmp_path / "j.db", **FAST) as mirror,
    ):
        await followed(mirror)
        await app.hset("unacked", "x", "no message")
        await queued(app, mirror, "mv_1")

        def logged() -> bool:
            found = mirror.state()["requeue"][part]
            return missing[1:].upper() in str(found).upper() or "EVAL" in str(found)

        await eventually(logged, "the missing right")
        assert await app.llen(QUEUE) == 0


async def test_many_sidecars_push_one_message(
    redis_server: RedisServer, tmp_path: Path, producer: Producer
) -> None:
    """The claim is taken by the script that pushes; attempts are bounded and spaced."""
    requeue = {**REQUEUE, "attempts": 2}
    async with (
        running(redis_server, tmp_path / "a.db", requeue=requeue, app_breaker="500ms") as one,
        running(redis_server, tmp_path / "b.db", requeue=requeue, app_breaker="500ms") as other,
        connected(redis_server) as app,
    ):
        await followed(one)
        await followed(other)
        raw = await write(app, "mv_1", new("mv_1"))
        for mirror in (one, other):
            await eventually(holds(mirror, "mv_1", raw), "captured")
        await asyncio.to_thread(producer.send, "mv_1")
        for mirror in (one, other):

            async def seen(mirror: Mirror = mirror) -> bool:
                return bool(await mirror._store.table("SELECT 1 FROM job_messages"))

            await eventually(seen, "message seen")
        for _ in range(2):
            await app.delete(QUEUE)
            await eventually(requeued(one, app), "pushed", LONG)
        await app.delete(QUEUE)

        def given_up() -> bool:
            found = [mirror.judgement("mv_1") for mirror in (one, other)]
            return all(one is not None and one.unattended for one in found)

        await eventually(given_up, "unattended", LONG)
        (claim,) = [key async for key in app.scan_iter("requeue:*mv_1")]
        assert await app.hget(claim, "attempts") == b"2"
        assert await app.llen(QUEUE) == 0


async def test_a_prefix_of_kombu_and_one_of_ours(redis_server: RedisServer, tmp_path: Path) -> None:
    """`global_keyprefix` is before every key of the broker's, and before the workers' channel."""
    requeue = {**REQUEUE, "global_keyprefix": "app:"}
    worker = CeleryWorker(
        tmp_path, redis_server, BREAKER_OPEN_FOR="1", STEP="0.3", GLOBAL_KEYPREFIX="app:"
    )
    with producing(redis_server, "app:") as producer:
        async with (
            running(redis_server, tmp_path / "j.db", requeue=requeue, app_breaker="1s") as mirror,
            connected(redis_server) as app,
        ):
            await followed(mirror)
            await queued(app, mirror, "mv_1")
            try:
                worker.start()
                await asyncio.to_thread(producer.send, "mv_1")
                await eventually(status(app, "mv_1", "processing"), "begun", LONG)
                worker.kill()
                worker.start()
                await eventually(status(app, "mv_1", "completed"), "completed", LONG)
                assert not [key async for key in app.scan_iter("unacked*")]
            finally:
                worker.kill()


async def test_old_data_does_not_run_a_job_again(
    redis_server: RedisServer, tmp_path: Path, producer: Producer
) -> None:
    """Messages of jobs that went on meanwhile are taken out of queue and `unacked`."""
    async with running(redis_server, tmp_path / "j.db", **FAST) as mirror:
        since = await followed(mirror)
        async with connected(redis_server) as app:
            await queued(app, mirror, "mv_done", "mv_runs", "mv_waits", "mv_taken")
            for job_id in ("mv_taken", "mv_done", "mv_runs", "mv_waits"):
                await asyncio.to_thread(producer.send, job_id)
            (raw,) = await app.lrange(QUEUE, -1, -1)
            await app.rpop(QUEUE)
            await app.hset("unacked", "tag", json.dumps([json.loads(raw), "", QUEUE]))
            await app.zadd("unacked_index", {"tag": 1.0})
            await app.save()
            for job_id, state in (
                ("mv_taken", "completed"),
                ("mv_done", "completed"),
                ("mv_runs", "processing"),
            ):
                raw = await write(app, job_id, new(job_id, status=state))
                await eventually(holds(mirror, job_id, raw), "captured")
        await asyncio.to_thread(redis_server.kill)
        await asyncio.to_thread(redis_server.start)
        await followed(mirror, since)
        async with connected(redis_server) as app:
            assert await app.llen(QUEUE) == 1
            assert await app.hlen("unacked") == await app.zcard("unacked_index") == 0
            assert b"mv_waits" in (await app.lrange(QUEUE, 0, -1))[0]
            await eventually(status(app, "mv_done", "completed"), "the newer version")


async def test_that_nobody_works_is_known_at_once(
    redis_server: RedisServer,
    tmp_path: Path,
    producer: Producer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No worker, or one that is deaf to the queue: in the state, the metrics, the log, the list."""
    monkeypatch.setattr(workers, "COUNT_EVERY", 0.1)
    monkeypatch.setattr(workers, "NOBODY_AFTER", 0.2)
    monkeypatch.setattr(evidence, "STALLED_AFTER", 0.5)
    registry = CollectorRegistry()
    emitted: list[str] = []

    def value(name: str) -> float | None:
        return registry.get_sample_value(name, {"mirror": "make_video"})

    def found(reason: str) -> bool:
        judged = mirror.judgement("mv_1")
        return judged is not None and judged.unattended and judged.reason == reason

    async with (
        running(redis_server, tmp_path / "j.db", registry=registry, **FAST) as mirror,
        connected(redis_server) as app,
    ):
        mirror._session.requeue._workers._emit = lambda kind, facts: emitted.append(kind)  # type: ignore[union-attr]
        await followed(mirror)
        worker = app.pubsub()
        await worker.psubscribe("/0.celery.pidbox")
        await eventually(lambda: value("proxy_queue_workers") == 1, "a worker")
        await worker.aclose()
        await queued(app, mirror, "mv_1")
        await asyncio.to_thread(producer.send, "mv_1")
        await eventually(lambda: found("no_worker"), "no worker")
        await eventually(lambda: emitted == ["no_workers"], "reported")
        await eventually(lambda: value("proxy_jobs_unattended") == 1, "counted")
        assert value("proxy_queue_workers") == 0
        assert "nobody works on the queue since" in str(requeue_problem(mirror.state()["requeue"]))
        assert [one["job_id"] for one in await mirror.inspection.jobs(stranded=True)] == ["mv_1"]
        assert "nobody works on the queue" in caplog.messages
        deaf = app.pubsub()
        await deaf.psubscribe("/0.celery.pidbox")
        await eventually(lambda: emitted == ["no_workers", "workers_back"], "back")
        await eventually(lambda: found("not_taken"), "deaf")
        await deaf.aclose()


async def test_many_jobs_that_cannot_be_requeued_share_a_line(
    redis_server: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A few have one of their own, the rest are counted; so thousands are no flood of lines."""
    push = evidence.Judgement(evidence.Action.PUSH, "no_message", "it has no message")

    async def cannot(*of: Any) -> None:
        raise CannotRequeue("no message of this job was seen")

    async with running(redis_server, tmp_path / "j.db", **FAST) as mirror:
        await followed(mirror)
        requeuer: Any = mirror._session.requeue
        tracks = {f"mv_{number}": Track(judged=push, unattended_since=0.0) for number in range(20)}
        monkeypatch.setattr(requeuer._starter, "start", cannot)
        monkeypatch.setattr(requeuer._starter, "withdraw", AsyncMock())
        monkeypatch.setattr(requeuer, "_tracks", tracks)
        await requeuer._act(None, None, tracks)
    assert caplog.messages.count("job not requeued") == 5
    (rest,) = [one for one in caplog.records if one.getMessage() == "more jobs not requeued"]
    assert vars(rest)["jobs"] == 15


async def test_workers_stay_known_across_a_restart_of_the_proxy(
    redis_server: RedisServer, tmp_path: Path, worker: CeleryWorker, producer: Producer
) -> None:
    """A worker that is not connected now may work on: it must not be forgotten with the process."""
    path = tmp_path / "j.db"
    async with running(redis_server, path, **FAST) as mirror, connected(redis_server) as app:
        await followed(mirror)
        await queued(app, mirror, "mv_1")
        worker.start()

        async def known() -> bool:
            rows = dict(await mirror._store.table("SELECT name, value FROM meta"))
            return "one@test" in rows.get("workers", "")

        await eventually(known, "known", LONG)
    worker.kill()
    async with running(redis_server, path, **FAST) as mirror:
        await followed(mirror)
        requeuer = mirror._session.requeue
        assert requeuer is not None
        await eventually(lambda: "one@test" in requeuer._workers.state.known, "remembered")


async def test_a_worker_that_has_begun_another_job_since_does_not_keep_the_first(
    redis_server: RedisServer, tmp_path: Path, producer: Producer, caplog: Any
) -> None:
    """Killed and started again under its name, then too busy to answer, its messages lost: what
    the new process began, seen by an earlier process of ours, proves that the old one is gone."""
    path, slow = tmp_path / "j.db", {"STEP": "60", "BREAKER_OPEN_FOR": "1"}
    old, new_one = (CeleryWorker(tmp_path / name, redis_server, **slow) for name in ("old", "new"))
    late = {**FAST, "app_breaker": "1h"}
    try:
        async with running(redis_server, path, **late) as mirror, connected(redis_server) as app:

            async def stored(what: str) -> bool:
                rows = dict(await mirror._store.table("SELECT name, value FROM meta"))
                return what in rows.get("solo_workers", "")

            await followed(mirror)
            await queued(app, mirror, "mv_1")
            old.start()
            await eventually(lambda: stored("one@test"), "known as a solo worker", LONG)
            await asyncio.to_thread(producer.send, "mv_1")
            await eventually(lambda: stored("mv_1"), "seen to begin", LONG)
            await app.delete("unacked", "unacked_index")
            old.kill()
            left = time.time()
            await queued(app, mirror, "mv_2")
            # What begins within the slack of two clocks proves nothing, and workers start fast.
            await eventually(lambda: time.time() > left + 2 * evidence.CLOCK_SLACK, "well apart")
            new_one.start()
            await asyncio.to_thread(producer.send, "mv_2")
            await eventually(lambda: stored("mv_2"), "seen to begin", LONG)
            await app.delete("unacked", "unacked_index")
            assert await app.llen(QUEUE) == 0
        async with running(redis_server, path, **FAST) as mirror, connected(redis_server) as app:
            await followed(mirror)

            async def has_message() -> bool:
                return await app.llen(QUEUE) == 1

            await eventually(has_message, "put back to work", LONG)
        requeued = [one for one in caplog.records if one.message == "job requeued"]
        assert [(one.job_id, one.reason) for one in requeued] == [("mv_1", "worker_replaced")]
    finally:
        old.kill()
        new_one.kill()


@pytest.mark.parametrize("trouble", ["redis", "frozen"])
async def test_an_idle_worker_does_not_get_what_another_is_at(
    redis_server: RedisServer, tmp_path: Path, producer: Producer, trouble: str
) -> None:
    """Redis restarts empty, or the busy worker hangs for a while: its job is not begun again."""
    go_on, fast = tmp_path / "go-on", {"BREAKER_OPEN_FOR": "1", "STEP": "0.1"}
    busy = CeleryWorker(tmp_path, redis_server, "busy", HOLD=str(go_on), **fast)
    idle = CeleryWorker(tmp_path, redis_server, "idle", **fast)
    async with running(redis_server, tmp_path / "j.db", **FAST) as mirror:
        since = await followed(mirror)
        requeuer = mirror._session.requeue
        assert requeuer is not None
        try:
            async with connected(redis_server) as app:
                await queued(app, mirror, "mv_1")
                busy.start()
                await eventually(
                    lambda: "busy@test" in requeuer._workers.state.known, "known", LONG
                )
                await asyncio.to_thread(producer.send, "mv_1")
                await eventually(status(app, "mv_1", "processing"), "begun", LONG)
            idle.start()

            def answers(later_than: float) -> bool:
                answer = requeuer._workers.state.answers.get("idle@test")
                return answer is not None and answer.asked_at > later_than

            # A worker that loses Redis while it starts may end itself: let it start first.
            await eventually(lambda: answers(0.0), "started", LONG)
            if trouble == "redis":
                await asyncio.to_thread(redis_server.kill)
                await asyncio.to_thread(redis_server.start)
                await followed(mirror, since)
            else:
                busy.freeze()
            after = time.time()
            await eventually(lambda: answers(after), "the other answers", LONG)
            busy.thaw()
            go_on.touch()
            async with connected(redis_server) as app:
                await eventually(status(app, "mv_1", "completed"), "completed", LONG)
            assert began(busy, "mv_1") == 1
        finally:
            busy.kill()
            idle.kill()
