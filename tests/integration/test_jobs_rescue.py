"""Celery's queue and bindings survive an empty restart, each message at most once."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from proxy.jobs.rescue import Message, owed, read_message, unpack_unacked
from proxy.redis_server import RedisServer
from tests.jobs_kit import connected, eventually, followed, holds, job, running, write

QUEUE = "make_video_queue"
BINDING = f"_kombu.binding.{QUEUE}"
MEMBER = b"make_video_queue\x06\x16\x06\x16make_video_queue"
RESCUE = {"queues": [QUEUE], "unacked_after": "1ms"}


def message(job_id: str, task_id: str = "", redelivered: bool = False) -> bytes:
    """A Celery message as kombu writes it: the job sits in the base64 body."""
    body = json.dumps([[{"id": job_id, "status": "queued"}], {}, {"callbacks": None}])
    envelope = {
        "body": base64.b64encode(body.encode()).decode(),
        "content-type": "application/json",
        "headers": {"id": task_id or f"task-{job_id}", "task": "make_video"},
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": "tag",
            "redelivered": redelivered,
        },
    }
    return json.dumps(envelope).encode()


async def kept(mirror: Any, messages: int, bindings: int = 1) -> bool:
    found = await mirror._ledger.table("SELECT count(*) FROM broker_messages")
    bound = await mirror._ledger.table("SELECT count(*) FROM broker_bindings")
    return bool(found[0][0] == messages and bound[0][0] == bindings)


async def fill(app: Redis, mirror: Any, queued: list[str], taken: list[str]) -> None:
    """Jobs with messages in the queue and in `unacked`, all of it mirrored."""
    await app.sadd(BINDING, MEMBER)
    for job_id in (*queued, *taken):
        raw = await write(app, job_id)
        await eventually(holds(mirror, job_id, raw), "captured")
    for job_id in queued:
        await app.lpush(QUEUE, message(job_id))
    for job_id in taken:
        field = json.dumps([json.loads(message(job_id)), "", QUEUE])
        await app.hset("unacked", f"tag-{job_id}", field)
    await eventually(lambda: kept(mirror, len(queued) + len(taken)), "broker mirrored")


async def jobs_in(app: Redis) -> list[str]:
    """The jobs in the queue, in the order in which a worker would pop them."""
    values = await app.lrange(QUEUE, 0, -1)
    return [read_message(value)[1][0] for value in reversed(values)]


async def test_an_empty_restart_gives_bindings_and_messages_back(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """In the order of their arrival, before what came since; taken ones after their pause."""
    async with running(redis_server, tmp_path / "j.db", rescue=RESCUE) as mirror:
        since = await followed(mirror)
        async with connected(redis_server) as app:
            await fill(app, mirror, ["mv_1", "mv_2", "mv_3"], ["mv_taken"])
        await asyncio.to_thread(redis_server.kill)
        await asyncio.to_thread(redis_server.start)
        await followed(mirror, since)
        async with connected(redis_server) as app:
            assert await app.smembers(BINDING) == {MEMBER}

            async def all_back() -> bool:
                return sorted(await jobs_in(app)) == ["mv_1", "mv_2", "mv_3", "mv_taken"]

            await eventually(all_back, "messages back")
            ready = [one for one in await jobs_in(app) if one != "mv_taken"]
            assert ready == ["mv_1", "mv_2", "mv_3"]


async def test_two_sidecars_push_a_message_once(redis_server: RedisServer, tmp_path: Path) -> None:
    """The claim in Redis decides who puts a message back."""
    async with (
        running(redis_server, tmp_path / "a.db", rescue=RESCUE) as one,
        running(redis_server, tmp_path / "b.db", rescue=RESCUE) as other,
    ):
        marks = [await followed(one), await followed(other)]
        async with connected(redis_server) as app:
            await fill(app, one, ["mv_1", "mv_2"], [])
            await eventually(lambda: kept(other, 2), "mirrored by both")
            for job_id in ("mv_1", "mv_2"):
                await eventually(holds(other, job_id, job(job_id)), "captured by both")
        await asyncio.to_thread(redis_server.kill)
        await asyncio.to_thread(redis_server.start)
        for mirror, mark in zip((one, other), marks, strict=True):
            await followed(mirror, mark)
        async with connected(redis_server) as app:

            async def both_back() -> bool:
                return await jobs_in(app) == ["mv_1", "mv_2"]

            await eventually(both_back, "each once")
            await one.sync()
            await other.sync()
            assert await both_back()


async def test_a_job_that_went_on_gets_no_message(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Only jobs still queued in the ledger are pushed again."""
    async with running(redis_server, tmp_path / "j.db", rescue=RESCUE) as mirror:
        since = await followed(mirror)
        async with connected(redis_server) as app:
            await fill(app, mirror, ["mv_1", "mv_2"], ["mv_3"])
            for job_id in ("mv_2", "mv_3"):
                raw = await write(app, job_id, job(job_id, "processing"))
                await eventually(holds(mirror, job_id, raw), "captured")
        await asyncio.to_thread(redis_server.kill)
        await asyncio.to_thread(redis_server.start)
        await followed(mirror, since)
        async with connected(redis_server) as app:
            assert await jobs_in(app) == ["mv_1"]


def test_messages_owed_are_told() -> None:
    """None that is there, none whose job is served or went on, one for one job, oldest first."""

    def one(tag: str, position: int, *jobs: str) -> Message:
        return Message(tag.encode(), QUEUE, QUEUE, position, jobs, tag.encode())

    known = [
        one("d", 3, "j4"),
        one("a", 0, "j1"),
        one("b", 1, "j1"),
        one("c", 2, "j3"),
        one("e", 4),
    ]
    queued = frozenset({"j1", "j3", "j4"})
    assert [message.tag for message in owed(known, [], queued)] == [b"a", b"c", b"d"]
    present = [one("x", 0, "j3"), one("d", 1)]
    assert [message.tag for message in owed(known, present, queued)] == [b"a"]
    assert owed(known, [], frozenset()) == []


def test_hostile_messages_are_read_without_harm() -> None:
    """No JSON, wrong types, endless nesting: a tag and no jobs."""
    for raw in (b"", b"\xff", b"[]", b"{}", b'{"body":1}', b'{"headers":3}', b"[" * 100_000):
        assert read_message(raw)[1] == ()
        assert unpack_unacked(raw) is None
    deep = base64.b64encode(b"[[" + b"[" * 500 + b"]" * 500 + b"],{}]").decode()
    assert read_message(json.dumps({"body": deep}).encode())[1] == ()
    tag, jobs = read_message(message("mv_1"))
    assert jobs[0] == "mv_1"
    assert read_message(message("mv_1", redelivered=True))[0] == tag
