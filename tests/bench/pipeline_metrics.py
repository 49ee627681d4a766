"""What counting the pipeline costs: `python -m tests.bench.pipeline_metrics`.

A process of its own rewrites the jobs of a real Redis so many times a second, each write a change,
every fourth one of which ends a stage; some jobs name stages and errors of their own. Prints how
many changes were written and captured, how long the event loop was held up (by the clock, and by
work of its own), how late events were counted, how long a scrape takes, and how many series there
are at the half and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import tempfile
import time
from pathlib import Path

import redis
import uvloop
from redis.asyncio import Redis

from proxy.core.clock import SystemClock
from proxy.core.memory.allocator import collect_rarely
from proxy.demo.redis_server import RedisServer
from proxy.jobs.metrics import JobMetrics
from proxy.jobs.mirror import Mirror
from proxy.jobs.redis.connection import RedisAccess
from proxy.jobs.store import sql
from proxy.telemetry.metrics.registry import Metrics
from tests.bench.mirror import part, percentiles
from tests.counting_kit import document, iso, stage
from tests.jobs_kit import PREFIX, eventually, followed, settings

STAGES = ("analyze_audio", "load_approved", "select_shorts", "assemble_video",
          "generate_subtitles", "final_composition", "trim_video", "validate_av_sync")  # fmt: skip
SLICE = 0.02  # seconds between two bursts of the writer


def version(number: int, now: float) -> tuple[str, bytes]:
    """The n-th change: four for each stage of a job, then the next job."""
    job, step = divmod(number, 4 * len(STAGES))
    done, quarter = divmod(step, 4)
    stages = {name: stage("completed", now - 1, now) for name in STAGES[:done]}
    hostile = job % 10 == 0
    if quarter == 3:
        stages[STAGES[done]] = stage("completed", now - 1, now)
        if hostile:
            stages[f"own_{job}"] = stage("failed", now - 1, now, error_message=f"[CODE_{job}] x")
    else:
        stages[STAGES[done]] = stage("processing", now, progress=quarter)
    job_id = f"b_{job}"
    if step == 4 * len(STAGES) - 1:
        more = {"completed_at": iso(now), "result": {"shorts_used": job % 9}}
        status = "failed" if hostile else "completed"
        return job_id, document(job_id, status, now - 9, stages=stages, **more)
    return job_id, document(job_id, "processing", now - 9, stages=stages)


def write_changes(url: str, rate: int, seconds: float, written: object) -> None:
    """In a process of its own; sixty-four jobs at a time, so that changes of one rarely merge."""
    client = redis.Redis.from_url(url)
    number, began = 0, time.monotonic()
    side_by_side, each = 64, 4 * len(STAGES)
    while (passed := time.monotonic() - began) < seconds:
        pipe = client.pipeline(transaction=False)
        while number < passed * rate:
            block, place = divmod(number, side_by_side * each)
            step, job = divmod(place, side_by_side)
            job_id, raw = version((block * side_by_side + job) * each + step, time.time())
            pipe.set(PREFIX + job_id, raw, ex=86400)
            number += 1
        pipe.execute()
        time.sleep(SLICE)
    written.value = number  # type: ignore[attr-defined]


def series(text: bytes) -> int:
    return sum(not line.startswith(b"#") for line in text.splitlines())


async def scrape(metrics: Metrics) -> tuple[float, int]:
    """Seconds and series of one scrape, in a thread as the admin does it."""
    began = time.perf_counter()
    text, _ = await asyncio.to_thread(metrics.exposition, "application/openmetrics-text")
    return time.perf_counter() - began, series(text)


async def main(rate: int, seconds: float, count: bool) -> None:
    collect_rarely()  # as the proxy itself
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        server = RedisServer(home / "redis")
        server.start()
        metrics = Metrics("bench")
        changes = {} if count else {"job_metrics": None}
        mirror = Mirror(
            "bench",
            settings(home / "jobs.db", **changes),
            RedisAccess(lambda: Redis.from_url(server.url)),
            JobMetrics(metrics.registry),
            SystemClock(),
        )
        await mirror.start()
        try:
            await followed(mirror)
            await load(server, mirror, metrics, rate, seconds)
        finally:
            await mirror.stop()
            server.kill()


async def load(
    server: RedisServer, mirror: Mirror, metrics: Metrics, rate: int, seconds: float
) -> None:
    spawn = multiprocessing.get_context("spawn")
    written = spawn.Value("l", 0)
    writer = spawn.Process(target=write_changes, args=(server.url, rate, seconds, written))
    scrapes: list[float] = []
    sizes: list[int] = []
    writer.start()
    async with part(f"{rate} changes/s for {seconds:g} s"):
        while writer.is_alive():
            took, size = await scrape(metrics)
            scrapes.append(took)
            sizes.append(size)
            await asyncio.sleep(0.5)
        ended = time.perf_counter()

    async def all_settled() -> bool:
        (pending,) = await mirror._store.column(sql.PENDING_COUNT)
        return (
            mirror._store.backlog == 0
            and not mirror._session.capture.changes._urgent
            and pending == 0
        )

    await eventually(all_settled, "settled", 60)
    print(f"  all counted {time.perf_counter() - ended:.2f} s after the last write")
    events = await mirror._store.table("SELECT outcome, count(*) FROM pipeline_events GROUP BY 1")
    print(f"  written {written.value}, captured {mirror.state()['captured']}, events {events}")
    print("  scrape under load:", percentiles(scrapes))
    print("  scrape at rest:", percentiles([(await scrape(metrics))[0] for _ in range(20)]))
    print(
        f"  series: {sizes[len(sizes) // 2]} at the half, {(await scrape(metrics))[1]} at the end"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--off", action="store_true", help="without job_metrics, to compare")
    arguments = parser.parse_args()
    uvloop.run(main(arguments.rate, arguments.seconds, not arguments.off))
