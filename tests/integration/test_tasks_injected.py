"""A fault in any background task of a whole proxy is survived, seen, and forgotten by nobody."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis

from proxy.core import tasks
from proxy.core.tasks import Tasks
from proxy.demo.redis_server import RedisServer
from proxy.embed import ReliabilityProxy
from tests.http1.upstream import Upstream
from tests.jobs_kit import INDEX, PREFIX, eventually, job

#: Every loop of a proxy that has all its features on; whoever adds one adds it here.
LOOPS = {
    "app-metrics",
    "breaker-listen",
    "breaker-sync",
    "deadlines",
    "health-app-http://127.0.0.1:PORT",
    "idempotency:renew",
    "store-writer:jobs.db",
    "loop-lag",
    "mirror:make_video:active",
    "mirror:make_video:clean-up",
    "mirror:make_video:counting",
    "mirror:make_video:session",
    "mirror:make_video:measure",
    "mirror:make_video:pass-on",
    "mirror:make_video:queue",
    "shortage-watch",
    "status-recorder",
    "trace-writer",
    "upload-probes",
}


@pytest.fixture
def upstream() -> Any:
    """Something that answers."""
    upstream = Upstream()
    yield upstream
    upstream.stop()


def everything(directory: Path, redis: RedisServer, upstream: Upstream) -> Any:
    """A config with every feature that has a loop."""
    role = {"mirror": "make_video"}
    return {
        "listeners": {
            "front": {
                "bind": "127.0.0.1:0",
                "routes": [
                    {"name": "create", "path": "/make-video", "methods": ["POST"],
                     "upstream": "app", "upload": {"field": "audio_file", "max_size": "1MiB"},
                     "job": {**role, "creates": True}},
                    {"name": "status", "path": "/jobs/{job_id}", "methods": ["GET"],
                     "upstream": "app", "job": {**role, "reads": "job_id"}},
                    {"name": "delete", "path": "/jobs/{job_id}", "methods": ["DELETE"],
                     "upstream": "app", "job": {**role, "deletes": "job_id"}},
                    {"name": "other", "path": "/{rest:*}", "upstream": "app"},
                ],
            }
        },
        "upstreams": {
            "app": {
                "targets": [upstream.url],
                "breaker": {},
                "health": {"path": "/health", "every": "200ms"},
            }
        },
        "redis": {"url": redis.url},
        "mirrors": {
            "make_video": {
                "key": PREFIX + "{job_id}", "index": INDEX, "sqlite": str(directory / "jobs.db"),
            }
        },
        "trace": {"sqlite": str(directory / "trace.db")},
        "app_metrics": {"url": f"{upstream.url}/metrics"},
        "admin": {"bind": "127.0.0.1:0"},
        "drain_timeout": "1s",
    }  # fmt: skip


@pytest.fixture
async def site(
    tmp_path: Path, redis_server: RedisServer, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ReliabilityProxy]:
    """A whole proxy in this process."""
    monkeypatch.setattr(tasks, "PAUSE", (0.01, 0.05))
    config = everything(tmp_path, redis_server, upstream)
    async with ReliabilityProxy(config) as proxy:
        running = tasks_of(proxy)
        yield proxy
    assert running.reports() == [], "whatever was started is ended"


def tasks_of(proxy: ReliabilityProxy) -> Tasks:
    """What no interface shows: the background tasks themselves, to break them."""
    return proxy._running.vitals.tasks


async def checks(proxy: ReliabilityProxy) -> dict[str, Any]:
    """What `/readyz` says."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{proxy.admin_url}/readyz") as answer,
    ):
        assert answer.status == 200
        return dict((await answer.json())["checks"])


async def fetched(proxy: ReliabilityProxy, path: str) -> Any:
    """The body of an answer of the admin."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{proxy.admin_url}{path}") as answer,
    ):
        return await (answer.json() if "json" in answer.content_type else answer.text())


async def test_a_fault_in_each_loop_is_survived(
    site: ReliabilityProxy, upstream: Upstream, redis_server: RedisServer
) -> None:
    """Each dies by name, is counted, goes on, and does its work as before."""
    loops = {task.name: task for task in tasks_of(site)}
    assert {name.replace(str(upstream.port), "PORT") for name in loops} == LOOPS
    for name, loop in loops.items():
        loop.inject(RuntimeError(f"injected into {name}"))
        await eventually(lambda loop=loop: loop.deaths == 1, f"{name} died")
        await eventually(lambda loop=loop: loop.state == "running", f"{name} goes on")
    assert (await checks(site))["tasks"]["ok"], "once is not always"
    # All of it works: a job is mirrored and read, health is asked for, events are written.
    app = Redis.from_url(redis_server.url)
    await app.set(PREFIX + "mv_1", job("mv_1"), ex=600)

    async def known() -> bool:
        return "mv_1" in json.dumps(await fetched(site, "/api/jobs"))

    await eventually(known, "the job is mirrored")
    await app.aclose()
    asked = len(upstream.requests)
    await eventually(lambda: len(upstream.requests) > asked, "health is asked for")
    metrics = await fetched(site, "/metrics")
    for name in loops:
        assert f'proxy_task_deaths_total{{task="{name}"}}' in metrics
    state = (await fetched(site, "/api/jobs"))["mirrors"][0]
    assert (state["redis"], state["sqlite"], state["backlog"]) == ("live", "ok", 0)


async def test_a_loop_that_keeps_dying_is_shown(site: ReliabilityProxy) -> None:
    """In `/readyz`, which stays ready, and in the sentence of the status page."""
    (loop,) = [task for task in tasks_of(site) if task.name == "mirror:make_video:measure"]
    for number in range(3):
        await eventually(lambda: loop.state == "running", "it goes on")
        loop.inject(RuntimeError("disk of straw"))
        await eventually(lambda number=number: loop.deaths == number + 1, "it died")
    check = (await checks(site))["tasks"]
    assert not check["ok"]
    assert "mirror:make_video:measure keeps dying (RuntimeError: disk of straw)" in check["detail"]
    health = (await fetched(site, "/api/status"))["health"]
    assert health["level"] == "error"
    assert [one["kind"] for one in health["findings"]].count("task_dying") == 1
    await asyncio.sleep(0)
