"""What the job mirror costs and how fast it is: `python -m tests.bench.mirror`.

Prints capture latency, creations, restore after an empty restart, reads in a big store, its start,
and the longest time that the event loop was held up in each part: by the clock, and by its own work
(processor time of its thread, which other processes on the machine cannot spoil).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from proxy.core.clock import SystemClock
from proxy.core.memory.allocator import collect_rarely
from proxy.demo.redis_server import RedisServer
from proxy.jobs.document import parse
from proxy.jobs.metrics import JobMetrics
from proxy.jobs.mirror import Mirror
from proxy.jobs.redis.connection import RedisAccess
from proxy.jobs.store.store import JobStore
from tests.jobs_kit import PREFIX, eventually, followed, recording, settings, write

DOCUMENT = recording("success")[5]["value"]


def document(job_id: str, progress: float = 0.0) -> bytes:
    """A recorded document of 2.6 KB under another id."""
    return json.dumps(
        {**DOCUMENT, "id": job_id, "progress": progress}, separators=(",", ":")
    ).encode()


def percentiles(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    marks = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return ", ".join(
        f"{name} {ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000:.1f} ms"
        for name, share in marks.items()
    )


@asynccontextmanager
async def part(name: str) -> AsyncIterator[None]:
    """Print how long a part took and how long it held the event loop at most."""
    worst = worked = 0.0

    async def watch() -> None:
        nonlocal worst, worked
        while True:
            before, busy = time.perf_counter(), time.thread_time()
            await asyncio.sleep(0.001)
            worst = max(worst, time.perf_counter() - before - 0.001)
            worked = max(worked, time.thread_time() - busy)

    watcher = asyncio.create_task(watch())
    began = time.perf_counter()
    yield
    took = time.perf_counter() - began
    watcher.cancel()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    held = f"loop held {worst * 1000:.1f} ms at most, {worked * 1000:.1f} ms by work"
    print(f"{name}: {took:.2f} s, {held}, peak {memory} MiB")


def mirror_on(server: RedisServer, path: Path) -> Mirror:
    return Mirror(
        "bench",
        settings(path),
        RedisAccess(lambda: Redis.from_url(server.url)),
        JobMetrics(CollectorRegistry()),
        SystemClock(),
    )


async def capture(server: RedisServer, mirror: Mirror) -> None:
    async with Redis.from_url(server.url) as app:
        lags: list[float] = []
        async with part("1,000 updates, 200/s"):
            for number in range(1000):
                job_id = f"mv_{number % 50}"
                await write(app, job_id, document(job_id, number / 10))
                sighting = mirror._session.capture.changes.watch(job_id)
                wrote = time.perf_counter()
                await sighting.kept
                lags.append(time.perf_counter() - wrote)
                mirror._session.capture.changes.unwatch(job_id, sighting)
                await asyncio.sleep(max(0.0, 0.005 - lags[-1]))
        print("  write to commit:", percentiles(lags))

        results: Counter[str] = Counter()

        async def create(number: int) -> float:
            job_id = f"new_{number}"
            await write(app, job_id, document(job_id))
            wrote = time.perf_counter()
            results[await mirror.creations.confirm(job_id)] += 1
            return time.perf_counter() - wrote

        async with part("1,000 creations, 200/s"):
            tasks = []
            for number in range(1000):
                tasks.append(asyncio.create_task(create(number)))
                await asyncio.sleep(0.005)
            took = await asyncio.gather(*tasks)
        print("  confirmation:", percentiles(took), dict(results))


async def restore(server: RedisServer, mirror: Mirror, jobs: int) -> None:
    async with Redis.from_url(server.url) as app:
        async with part(f"{jobs} jobs captured in one go"):
            for start in range(0, jobs, 100):
                async with app.pipeline(transaction=False) as pipe:
                    for number in range(start, min(start + 100, jobs)):
                        pipe.set(f"{PREFIX}r_{number}", document(f"r_{number}"), ex=86400)
                    await pipe.execute()

            async def all_there() -> bool:
                (rows,) = await mirror._store.column("SELECT count(*) FROM jobs")
                return bool(rows >= jobs)

            await eventually(all_there, "captured", 120)
        since = mirror.state()["last_sync"]
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    async with part("empty restart to restored and compared"):
        await followed(mirror, since, 120)
    print("  restore:", mirror.state()["last_restore"])


async def big(path: Path, rows: int) -> None:
    store = JobStore(path, SystemClock())
    await store.start()
    now = time.time()
    async with part(f"{rows} rows written"):
        for number in range(rows):
            job_id = f"big_{number}"
            store.put(parse(job_id, document(job_id)), now, now + 86400, None)
            if number % 200 == 0:
                await asyncio.sleep(0)
            if store.backlog > 4000:
                await store.flushed(30)
        await store.flushed(60)
    await store.stop()
    size = (await asyncio.to_thread(path.stat)).st_size
    print(f"  file: {size / 2**30:.2f} GiB")
    store = JobStore(path, SystemClock())
    async with part("start"):
        await store.start()
        await store.get("big_1")
    gets: list[float] = []
    lists: list[float] = []
    async with part("reads"):
        for number in range(0, rows, max(1, rows // 1000)):
            began = time.perf_counter()
            await store.get(f"big_{number}")
            gets.append(time.perf_counter() - began)
        for status in (None, "processing", "failed") * 30:
            began = time.perf_counter()
            await store.listing(status, now, 50)
            lists.append(time.perf_counter() - began)
    print("  get:", percentiles(gets))
    print("  list of 50:", percentiles(lists))
    await store.stop()


async def main(rows: int, jobs: int) -> None:
    collect_rarely()  # as the proxy itself
    print("SQLite", sqlite3.sqlite_version)
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        server = RedisServer(home / "redis")
        server.start()
        mirror = mirror_on(server, home / "mirror.db")
        await mirror.start()
        try:
            await followed(mirror)
            await capture(server, mirror)
            await restore(server, mirror, jobs)
        finally:
            await mirror.stop()
            server.kill()
        if rows:
            await big(home / "big.db", rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--jobs", type=int, default=100_000)
    arguments = parser.parse_args()
    uvloop.run(main(arguments.rows, arguments.jobs))
