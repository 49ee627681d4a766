"""What the tests of the job mirror share: a mirror on a real Redis, and the app's way to write."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from proxy.config.mirrors import Mirror as MirrorConfig
from proxy.core.clock import SystemClock
from proxy.demo.redis_server import RedisServer
from proxy.jobs.metrics import JobMetrics
from proxy.jobs.mirror import Mirror
from proxy.jobs.redis.connection import CaptureMode, RedisAccess
from tests.http1.message import PATIENCE

FIXTURES = Path(__file__).parent / "fixtures"
PREFIX = "make_video:job:"
INDEX = "make_video:jobs:list"
CREATED = 1795450902.670528


def settings(path: Path, **changes: Any) -> MirrorConfig:
    """The mirror of the ready config, with its file at `path`."""
    values: dict[str, Any] = {"key": PREFIX + "{job_id}", "index": INDEX, "sqlite": path}
    return MirrorConfig(**{**values, **changes})


def job(job_id: str, status: str = "queued", progress: float = 0.0, **more: Any) -> bytes:
    """A document of the current shape."""
    document = {
        "id": job_id,
        "status": status,
        "progress": progress,
        "created_at": "2026-11-23T13:21:42.670528-03:00",
        "completed_at": None,
        "stages": {},
        "error": None,
        "result": None,
        **more,
    }
    return json.dumps(document, separators=(",", ":")).encode()


async def write(client: Redis, job_id: str, value: bytes | None = None, ttl: int = 86400) -> bytes:
    """Write a job as the app does: SETEX, then ZADD."""
    raw = value if value is not None else job(job_id)
    await client.set(PREFIX + job_id, raw, ex=ttl)
    await client.zadd(INDEX, {job_id: CREATED})
    return raw


@asynccontextmanager
async def running(
    server: RedisServer,
    path: Path,
    *,
    registry: CollectorRegistry | None = None,
    mode: CaptureMode = "tracking",
    **changes: Any,
) -> AsyncIterator[Mirror]:
    """A started mirror."""
    mirror = Mirror(
        "make_video",
        settings(path, **changes),
        RedisAccess(lambda: Redis.from_url(server.url), mode),
        JobMetrics(registry or CollectorRegistry()),
        SystemClock(),
    )
    await mirror.start()
    try:
        yield mirror
    finally:
        await mirror.stop()


@asynccontextmanager
async def connected(server: RedisServer) -> AsyncIterator[Redis]:
    """A client as the app has one."""
    client = Redis.from_url(server.url)
    try:
        yield client
    finally:
        await client.aclose()


async def eventually(
    check: Callable[[], bool | Awaitable[bool]], what: str, limit: float = PATIENCE
) -> None:
    """Wait until `check` holds; fails with `what` after `limit` seconds."""
    deadline = time.monotonic() + limit
    while True:
        outcome = check()
        if outcome if isinstance(outcome, bool) else await outcome:
            return
        assert time.monotonic() < deadline, f"not within {limit:g} s: {what}"
        await asyncio.sleep(0.005)


async def followed(mirror: Mirror, since: str | None = None, limit: float = PATIENCE) -> str:
    """Wait until the mirror has compared everything, later than `since`; returns when it did."""

    def compared() -> bool:
        state = mirror.state()
        return state["redis"] == "live" and state["last_sync"] not in (None, since)

    await eventually(compared, "mirror compared with Redis", limit)
    return str(mirror.state()["last_sync"])


def holds(mirror: Mirror, job_id: str, raw: bytes) -> Callable[[], Awaitable[bool]]:
    """Whether the store's newest version of a job is exactly this value."""

    async def check() -> bool:
        shown = await mirror.inspection.show(job_id)
        return shown is not None and shown.get("data", "").encode() == raw

    return check


@asynccontextmanager
async def locked(path: Path, how: str = "BEGIN IMMEDIATE") -> AsyncIterator[None]:
    """Another process has an SQLite file to itself. Waited for in a thread: the mirror may be
    within a transaction of its own, and needs the event loop to end it."""
    other = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
    with closing(other):
        await asyncio.to_thread(other.execute, how)
        try:
            yield
        finally:
            other.execute("ROLLBACK")


def deleted(mirror: Mirror, job_id: str) -> Callable[[], Awaitable[bool]]:
    """Whether the store has a tombstone for a job."""

    async def check() -> bool:
        return "deleted" in (await mirror.inspection.show(job_id) or {})

    return check


def recording(name: str) -> list[dict[str, Any]]:
    """A recorded job life, one entry a command."""
    with (FIXTURES / f"job-life-{name}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
