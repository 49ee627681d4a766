"""Whatever is killed while jobs live, in the end every job is in both stores in its newest form."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from proxy.demo.redis_server import RedisServer
from proxy.jobs.answers import Tombstoned
from proxy.jobs.creations import Creation
from tests.jobs_kit import PREFIX, connected, eventually, followed, job, running, write


@pytest.mark.parametrize("seed", [1, 2])
async def test_no_acknowledged_version_is_lost(
    seed: int, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Jobs are created, updated and deleted while Redis is killed empty and the proxy restarted.

    What counts as acknowledged is what the store had committed; `creations.confirm` is asked as a
    creating route asks it.
    """
    chance = random.Random(seed)
    newest: dict[str, bytes] = {}
    gone: set[str] = set()
    for _ in range(3):
        async with running(redis_server, tmp_path / "j.db") as mirror:
            await followed(mirror)
            client = Redis.from_url(redis_server.url, socket_timeout=1)
            try:
                for step in range(60):
                    if chance.random() < 0.03:
                        await asyncio.to_thread(redis_server.kill)
                        await asyncio.to_thread(redis_server.start)
                    job_id = f"mv_{chance.randrange(40)}"
                    if job_id in gone:
                        continue
                    if job_id in newest and chance.random() < 0.1:
                        with suppress(RedisError):
                            await client.delete(PREFIX + job_id)
                        assert await mirror.tombstone(job_id, app_notified=True)
                        gone.add(job_id)
                        continue
                    value = job(job_id, "processing", progress=float(len(newest)), step=step)
                    with suppress(RedisError):
                        await write(client, job_id, value)
                        outcome = await mirror.creations.confirm(job_id, timeout=1.0)
                        if outcome is Creation.CONFIRMED:
                            newest[job_id] = value
                        else:
                            # Refused: the writer does not rely on it, whatever became of it.
                            newest.pop(job_id, None)
            finally:
                await client.aclose()
    async with connected(redis_server) as app, running(redis_server, tmp_path / "j.db") as mirror:
        await followed(mirror)
        alive = {job_id: raw for job_id, raw in newest.items() if job_id not in gone}
        assert alive

        async def all_there() -> bool:
            values = await app.mget([PREFIX + job_id for job_id in alive])
            return values == list(alive.values())

        await eventually(all_there, "every job in its newest version")
        for job_id, raw in alive.items():
            shown = await mirror.inspection.show(job_id)
            assert shown is not None
            assert shown["data"].encode() == raw
        for job_id in gone:
            assert isinstance(await mirror.reads.lookup(job_id), Tombstoned)
            assert not await app.exists(PREFIX + job_id)
