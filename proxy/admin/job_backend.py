"""The mirrors' jobs, for `JobControl`."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from proxy.admin.problems import RequeueRefused
from proxy.admin.status.jobs import stage_documents
from proxy.core.errors import StoreAway
from proxy.jobs.document import to_timestamp
from proxy.jobs.redis.connection import CommandRefused, RedisLost
from proxy.jobs.requeue.starter import CannotRequeue
from proxy.jobs.service import Mirrors
from proxy.jobs.stages import StageTimeline, read_timeline
from proxy.jobs.store.schema import StoreSilent


@contextmanager
def _as_problems(**facts: Any) -> Iterator[None]:
    """Turn errors of Redis and the store into problem documents with `facts`."""
    try:
        yield
    except RedisLost as error:
        raise StoreAway(f"Redis does not answer: {error}", retry_after=5, **facts) from error
    except CommandRefused as error:
        raise StoreAway(f"Redis {error}", retry_after=5, **facts) from error
    except StoreSilent as error:
        raise StoreAway(f"The store does not answer: {error}", retry_after=5, **facts) from error


class JobBackend:
    """The jobs of all mirrors, as JSON. `mirror` None means all; an unknown name raises `KeyError`.
    What cannot be done now (Redis or the store does not answer) raises `ProxyError`."""

    def __init__(self, mirrors: Mirrors) -> None:
        self._mirrors = mirrors

    async def list(
        self, mirror: str | None, status: str | None, limit: int, stranded: bool
    ) -> list[dict[str, Any]]:
        """Jobs, newest first."""
        rows: list[dict[str, Any]] = []
        # Operators need the mirrors' states above all when the store does not answer.
        with _as_problems(mirrors=self.states(mirror)):
            for one in self._mirrors.chosen(mirror):
                found = await one.inspection.jobs(status, limit, stranded)
                rows += [{"mirror": one.name, **row} for row in found]
        rows.sort(key=lambda row: (row["first_seen"], row["created_at"]), reverse=True)
        return rows[:limit]

    def states(self, mirror: str | None) -> builtins.list[dict[str, Any]]:
        """The state of each mirror: how it follows Redis, since when, and what is wrong."""
        return [one.state() for one in self._mirrors.chosen(mirror)]

    async def show(self, mirror: str, job_id: str) -> dict[str, Any] | None:
        """A job with all its known versions; None for an unknown one."""
        with _as_problems():
            job = await self._mirrors.by_name[mirror].inspection.show(job_id)
        if job is None:
            return None
        versions = job["versions"]
        timeline = StageTimeline()
        if "data" in job:
            seen = [(to_timestamp(one["seen"]) or 0.0, one["status"]) for one in versions]
            timeline = read_timeline(job["data"].encode(), job["status"], seen)
        stages = stage_documents(timeline.stages)
        found = self._mirrors.by_name[mirror].judgement(job_id)
        return {
            "mirror": mirror,
            **job,
            "error": timeline.error,
            "stages": stages,
            "work": None if found is None else {**asdict(found), "unattended": found.unattended},
        }

    async def requeue(
        self, mirror: str, job_id: str, reason: str, force: bool
    ) -> dict[str, Any] | None:
        """Push a new message for a job that no worker has; what was done, or None for an unknown
        job. Raises `RequeueRefused` with the evidence if a worker may have it, unless `force` is
        given."""
        one = self._mirrors.by_name[mirror]
        with _as_problems():
            known = await one.inspection.show(job_id)
            if known is None:
                return None
            try:
                done = await one.requeue(job_id, reason=reason, force=force)
            except CannotRequeue as cannot:
                facts: dict[str, Any] = {"evidence": cannot.evidence} if cannot.evidence else {}
                detail = f"Job {job_id} is not requeued: {cannot}"
                if cannot.evidence:
                    detail += f" ({cannot.evidence})"
                raise RequeueRefused(detail, **facts) from cannot
        return {"mirror": mirror, **asdict(done)}

    async def sync(self, mirror: str | None) -> dict[str, Any]:
        """Copy the jobs in Redis into SQLite now; what was done."""
        with _as_problems():
            return {"synced": [await one.sync() for one in self._mirrors.chosen(mirror)]}

    async def restore(self, mirror: str | None) -> dict[str, Any]:
        """Restore the jobs that Redis has lost, now; what was done."""
        with _as_problems():
            return {
                "restored": [
                    {"mirror": one.name, **asdict(await one.restore())}
                    for one in self._mirrors.chosen(mirror)
                ]
            }
