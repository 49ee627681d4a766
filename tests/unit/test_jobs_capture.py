"""A fetch of jobs from Redis while the store commits what it was given before."""

from __future__ import annotations

from typing import Any, cast

from prometheus_client import CollectorRegistry

from proxy.config.mirrors import Mirror as MirrorConfig
from proxy.core.clock import ManualClock
from proxy.jobs.context import MirrorContext
from proxy.jobs.document import KeyPattern, parse
from proxy.jobs.metrics import JobMetrics, MirrorMetrics
from proxy.jobs.redis.capture import Capture
from proxy.jobs.redis.connection import RedisConnection
from proxy.jobs.redis.replies import Command, ServerInfo
from proxy.jobs.redis.restore_rules import DataEpoch
from proxy.jobs.store.records import Head, Row
from proxy.jobs.store.store import JobStore

SERVER = ServerInfo("a" * 40, flushes=0, evicted=0, loading=False)


class Committing:
    """A store whose one row is committed after its file was read and before the answer is used."""

    backlog = 0
    degraded = None

    def __init__(self) -> None:
        document = parse("mv_1", b'{"id": "mv_1", "status": "queued"}')
        raw, digest = document.raw, document.digest
        self._waiting: Row | None = Row("mv_1", "queued", 0.0, raw, "", 1.0, None, digest, 1, 1.0)
        self.deleted: list[str] = []

    def unwritten(self, job_id: str) -> Row | None:
        """What is not committed yet."""
        return self._waiting if job_id == "mv_1" else None

    async def heads(self, job_ids: list[str]) -> dict[str, Head]:
        """What was committed when the file was read: nothing."""
        self._waiting = None
        return {}

    def mark_deleted(self, job_id: str, origin: str, *, held: bool) -> None:
        """A tombstone."""
        self.deleted.append(job_id)


class Empty:
    """A server that has no key, and is the one that it was."""

    mode = "events"

    async def call(self, *commands: Command) -> list[Any]:
        """GETRANGE of a missing key is empty, its PTTL is -2."""
        return [b"" if command[0] == "GETRANGE" else -2 for command in commands]

    async def info(self) -> ServerInfo:
        """As before."""
        return SERVER


async def test_a_job_deleted_while_it_is_committed_gets_its_tombstone() -> None:
    """Its row is neither among those read nor among those that wait: it is known all the same."""
    store = Committing()
    settings = MirrorConfig(key="job:{job_id}", sqlite="jobs.db", index=None)
    metrics = MirrorMetrics(JobMetrics(CollectorRegistry()), "m")
    capture = Capture(
        MirrorContext("m", settings, ManualClock(), metrics),
        KeyPattern.parse(settings.key),
        cast(JobStore, store),
        on_lost=lambda life: None,
        on_other_key=lambda key: None,
    )
    capture.happened(b"job:mv_1", "del")
    capture.happened(b"job:mv_2", "del")  # nobody knows that one
    batch = capture.changes.take(awaited_only=False)
    await capture._fetch(cast(RedisConnection, Empty()), DataEpoch(SERVER, "start"), batch)
    assert store.deleted == ["mv_1"]
