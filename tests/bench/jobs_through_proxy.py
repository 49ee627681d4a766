"""What the job mirror costs in the whole proxy: `python -m tests.bench.jobs_through_proxy`.

Prints creations with and without `creates`, from how soon after a write the row is committed
(`proxy_mirror_lag_seconds`), and how late the event loop was (`proxy_event_loop_lag_seconds`, two
samples a second) while an empty Redis got its jobs back and reads went on.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sqlite3
import tempfile
import time
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from redis.asyncio import Redis
from redis.exceptions import RedisError

from proxy.demo.redis_server import RedisServer
from tests.bench.mirror import document, percentiles
from tests.jobs_kit import PREFIX
from tests.jobs_site import JobSite, routes


class App:
    """An app that writes its key and answers, and knows nothing else."""

    def __init__(self, url: str) -> None:
        self.redis = Redis.from_url(url)
        self.number = 0

    async def create(self, request: web.Request) -> web.Response:
        await request.read()
        self.number += 1
        job_id = f"mv_{self.number:08d}"
        await self.redis.set(PREFIX + job_id, document(job_id), ex=86400)
        return web.json_response({"status": "accepted", "job_id": job_id}, status=202)

    async def read(self, request: web.Request) -> web.Response:
        try:
            raw = await self.redis.get(PREFIX + request.match_info["job_id"])
        except RedisError:
            raw = None  # as the real one
        return web.json_response({} if raw else {"error": 1}, status=200 if raw else 404)


def lag(site: JobSite, name: str) -> dict[float, int]:
    """The buckets of a histogram, cumulated."""
    with urllib.request.urlopen(f"http://127.0.0.1:{site.proxy.admin_port}/metrics") as reply:
        text = reply.read().decode()
    bucket = rf'^{name}_bucket{{[^}}]*le="([^"]+)"[^}}]*}} ([0-9.e+]+)'
    found = re.findall(bucket, text, re.MULTILINE)
    return {float(limit): int(float(count)) for limit, count in found}


def rows(site: JobSite) -> int:
    """Jobs in the store."""
    with closing(sqlite3.connect(f"file:{site.sqlite}?mode=ro", uri=True)) as store:
        return int(store.execute("SELECT count(*) FROM jobs").fetchone()[0])


def distribution(before: dict[float, int], after: dict[float, int]) -> str:
    """Where the new samples lie."""
    new = {limit: count - before.get(limit, 0) for limit, count in after.items()}
    total = max(new.values())
    limits = {
        share: min(k for k, v in new.items() if v >= share * total) for share in (0.5, 0.99, 1)
    }
    return f"{total} samples; p50/p99/max at most " + "/".join(
        f"{limit * 1000:g} ms" for limit in limits.values()
    )


async def creations(site: JobSite, path: str, count: int, at_once: int) -> None:
    url = f"http://{site.address[0]}:{site.address[1]}{path}"
    took: list[float] = []
    left = iter(range(count))
    async with aiohttp.ClientSession() as http:

        async def client() -> None:
            for _ in left:
                began = time.perf_counter()
                async with http.post(url, data=b"x" * 1000) as answer:
                    assert answer.status == 202, await answer.text()
                took.append(time.perf_counter() - began)

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(at_once)))
    rate = count / (time.perf_counter() - began)
    print(f"{path}, {at_once} at once: {rate:.0f}/s; {percentiles(took)}")


async def restored(site: JobSite, server: RedisServer, jobs: int) -> None:
    client: Any = Redis.from_url(server.url)
    created = await client.dbsize()
    for start in range(0, jobs, 200):
        async with client.pipeline(transaction=False) as pipe:
            for number in range(start, min(start + 200, jobs)):
                pipe.set(f"{PREFIX}r_{number}", document(f"r_{number}"), ex=86400)
            await pipe.execute()
    deadline = time.monotonic() + 120
    while await asyncio.to_thread(rows, site) < jobs + created:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)
    await asyncio.to_thread(site.wait_live, 60)
    before = await asyncio.to_thread(lag, site, "proxy_event_loop_lag_seconds")
    took: list[float] = []
    wrong = 0
    done = asyncio.Event()

    async def read() -> None:
        nonlocal wrong
        async with aiohttp.ClientSession() as http:
            number = 0
            while not done.is_set():
                number = (number + 7919) % jobs
                began = time.perf_counter()
                url = f"http://{site.address[0]}:{site.address[1]}/jobs/r_{number}"
                async with http.get(url) as answer:
                    wrong += answer.status != 200
                took.append(time.perf_counter() - began)
                await asyncio.sleep(0.01)

    reader = asyncio.create_task(read())
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    await client.aclose()
    client = Redis.from_url(server.url)
    began = time.perf_counter()
    while (await client.dbsize()) < jobs + created and time.perf_counter() < began + 60:  # noqa: ASYNC110 (another process's state)
        await asyncio.sleep(0.05)
    print(f"{jobs} jobs back {time.perf_counter() - began:.2f} s after Redis started empty")
    await asyncio.to_thread(site.wait_live, 60)
    done.set()
    await reader
    after = await asyncio.to_thread(lag, site, "proxy_event_loop_lag_seconds")
    print("  reads meanwhile, 100/s:", percentiles(took), f"; {wrong} not answered with the job")
    print("  event loop meanwhile:", distribution(before, after))
    await client.aclose()


async def main(jobs: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        server = RedisServer(home / "redis")
        server.start()
        app = App(server.url)
        site_app = web.Application()
        site_app.router.add_post("/make-video", app.create)
        site_app.router.add_post("/plain", app.create)
        site_app.router.add_get("/jobs/{job_id}", app.read)
        runner = web.AppRunner(site_app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        target = f"http://127.0.0.1:{runner.addresses[0][1]}"
        site = await asyncio.to_thread(
            JobSite, home / "site", server, target, route_list=routes("2s")
        )
        try:
            await creations(site, "/plain", 1000, 8)
            await creations(site, "/make-video", 1000, 8)
            before = await asyncio.to_thread(lag, site, "proxy_mirror_lag_seconds")
            await creations(site, "/make-video", 1000, 1)
            after = await asyncio.to_thread(lag, site, "proxy_mirror_lag_seconds")
            print("  from news to commit:", distribution(before, after))
            await restored(site, server, jobs)
        finally:
            await asyncio.to_thread(site.proxy.stop)
            await runner.cleanup()
            await app.redis.aclose()
            server.kill()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000)
    asyncio.run(main(parser.parse_args().jobs))
