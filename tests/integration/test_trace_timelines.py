"""Timelines from a real mirror and a real trace: who else was worked on, and whose call it was."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from proxy.admin.trace_backend import TraceBackend
from proxy.core.clock import SystemClock
from proxy.demo.redis_server import RedisServer
from proxy.jobs.mirror import Mirror
from proxy.jobs.store import inspection
from proxy.trace.events import TraceEvent
from proxy.trace.recorder import Trace
from tests.jobs_kit import connected, eventually, followed, job, running, write
from tests.trace_kit import stages, trace


class Stage:
    """A mirror, a trace, the app's client, and the timelines built of them."""

    def __init__(self, mirror: Mirror, kept: Trace, client: Redis) -> None:
        self.mirror = mirror
        self.trace = kept
        self.client = client
        mirrors = cast(Any, SimpleNamespace(by_name={"make_video": mirror}))
        self.backend = TraceBackend(kept, mirrors, SystemClock())

    async def is_now(self, job_id: str, status: str, stage: str = "", **more: Any) -> None:
        """The worker writes the job, and the mirror has it."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
        doing = stages(**{stage: "processing"}) if stage else {}
        raw = job(job_id, status, created_at=now, stages=doing, **more)
        await write(self.client, job_id, raw)

        async def has() -> bool:  # in SQLite, where stories look, not only on its way there
            shown = await self.mirror.inspection.show(job_id) or {"versions": []}
            return [v["data"].encode() for v in shown["versions"][-1:]] == [raw]

        await eventually(has, f"{job_id} {status}")

    def call(self, correlation_id: str) -> None:
        """The worker calls audio-transcriber now, in vain."""
        facts = {"direction": "egress", "status": 503, "method": "POST", "path": "/jobs"}
        event = TraceEvent(
            time.time(), "exchange", "failed", facts=facts, service="audio-transcriber"
        )
        event.correlation_id = correlation_id
        self.trace.record(event)

    async def calls_of(self, job_id: str) -> list[str]:
        """The correlation IDs of the calls in its timeline."""
        built = await self.backend.timeline(job_id)
        assert built is not None
        return [e["correlation_id"] for e in built["events"] if e["source"] == "exchange"]


@pytest.fixture
async def stage(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """All of it, on a Redis of its own. Its parameter is when a job counts as stuck."""
    server = RedisServer(tmp_path / "redis")
    server.start()
    kept = trace(tmp_path / "trace.db", SystemClock(), stuck_after=getattr(request, "param", "1h"))
    try:
        async with running(server, tmp_path / "jobs.db") as mirror, connected(server) as client:
            await followed(mirror)
            await kept.start()
            yield Stage(mirror, kept, client)
            await kept.stop()
    finally:
        server.kill()


async def test_a_call_while_one_job_is_worked_on(stage: Stage) -> None:
    """It is that job's, though others wait or are done."""
    await stage.is_now("mv_done", "processing", "generate_subtitles")
    await stage.is_now("mv_done", "completed")
    await stage.is_now("mv_waits", "queued")
    await stage.is_now("mv_1", "queued")
    await stage.is_now("mv_1", "processing", "generate_subtitles")
    stage.call("call-1")
    assert await stage.calls_of("mv_1") == ["call-1"]
    assert await stage.calls_of("mv_done") == []
    assert await stage.calls_of("mv_waits") == []
    built = await stage.backend.timeline("mv_1")
    assert built is not None
    assert built["events"][-1]["facts"]["inferred"] is True


@pytest.mark.parametrize("stage", ["5s"], indirect=True)
async def test_a_call_while_two_are(stage: Stage) -> None:
    """It is nobody's; once the other one has not changed for long, it is known again."""
    await stage.is_now("mv_2", "processing", "trim_video")
    await stage.is_now("mv_1", "processing", "generate_subtitles")
    stage.call("call-1")
    assert await stage.calls_of("mv_1") == []

    async def known_again() -> bool:
        stage.call("later")
        return "later" in await stage.calls_of("mv_1")

    await eventually(known_again, "a call that is the job's")
    assert "call-1" not in await stage.calls_of("mv_1")


async def test_a_job_that_was_deleted_meanwhile(stage: Stage) -> None:
    """Its worker goes on, so a call may be its own: deleted jobs are looked at too."""
    await stage.is_now("mv_gone", "processing", "generate_subtitles")
    assert await stage.mirror.tombstone("mv_gone", app_notified=True)
    await stage.is_now("mv_1", "processing", "generate_subtitles")
    stage.call("call-1")
    assert await stage.calls_of("mv_1") == []
    built = await stage.backend.timeline("mv_gone")
    assert built is not None
    assert built["suspected_cause"]["kind"] == "deleted"


async def test_who_was_there(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Expired and deleted jobs are counted in, later and long finished ones are not; where there
    are too many to know, that is the answer."""
    before = time.time()
    await stage.is_now("mv_early", "processing")
    await stage.is_now("mv_early", "completed")
    middle = time.time()
    await write(stage.client, "mv_short", job("mv_short", "processing"), ttl=1)
    await stage.is_now("mv_waits", "queued")
    await stage.is_now("mv_gone", "processing")
    await stage.mirror.tombstone("mv_gone", app_notified=True)
    now = time.time()

    async def expired() -> bool:
        return await stage.client.exists("make_video:job:mv_short") == 0

    await eventually(expired, "mv_short expired")

    async def there(start: float, end: float, most: int = 9) -> set[str] | None:
        found = await stage.mirror.inspection.contemporaries(start, end, 3600, most)
        return None if found is None else set(found)

    assert await there(middle, now + 1) == {"mv_short", "mv_gone"}
    assert await there(before, now + 1) == {"mv_early", "mv_short", "mv_gone"}
    assert await there(before, now + 1, 2) is None
    assert await there(before - 10, before - 5) == {"mv_short"}  # by its date made long ago
    assert await there(before - 200, before - 100) == set()  # but we should have seen it by then
    monkeypatch.setattr(inspection, "LIST_LIMIT", (1, 1))
    assert await there(middle, now + 1) is None


async def test_failed_jobs_are_among_the_latest(stage: Stage) -> None:
    """A job's failure is no event of the trace, and is in the timeline with the others."""
    error = {"message": "[X] no", "type": "VideoProcessingException"}
    await stage.is_now("mv_1", "processing", "trim_video")
    await stage.is_now("mv_1", "failed", error=error)
    (event,) = [e for e in await stage.backend.recent("error", 10) if e["source"] == "job"]
    assert (event["job_id"], event["kind"]) == ("mv_1", "failed")
    assert event["summary"] == "job failed: [X] no"


async def test_an_opaque_job_has_a_timeline(stage: Stage) -> None:
    """A value that is no document: the timeline says that it exists, and nothing raises."""
    await write(stage.client, "mv_odd", b"\x80\x81 no json")

    async def seen() -> bool:
        return await stage.mirror.inspection.show("mv_odd") is not None

    await eventually(seen, "mv_odd")
    built = await stage.backend.timeline("mv_odd")
    assert built is not None
    assert (built["kind"], built["job_ids"]) == ("job", ["mv_odd"])
    assert [event["kind"] for event in built["events"]] == ["first_seen"]


async def test_nothing_known(stage: Stage) -> None:
    """No timeline, and a hint at what is kept."""
    assert await stage.backend.timeline("mv_nobody") is None
    assert "7 days" in stage.backend.hint()
