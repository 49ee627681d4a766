"""Which jobs are being worked on, and the correlation ID with which each was created.

A worker's calls do not identify the job. But a worker processes one job at a time, so while exactly
one job is active, a call to a microservice belongs to that job.

 1. A job is active from its first status that is neither waiting nor finished until it is finished,
    deleted, requeued by us, or unchanged for `idle` seconds. A status that returns to `queued` by
    itself does not end it: the older service writes that in the middle of its work.
 2. The mirror may notice a start late. So while two jobs are active, one of them new, a call is
    attributed to neither: a wrong ID is worse than none.
 3. The correlation ID of a creation travels through Redis, because the app's sidecar need not be
    the worker's. It is written and read in the background; no request waits for it.

In memory and bounded; `of_call` costs a dictionary look-up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from proxy.core.clock import Clock
from proxy.core.headers import is_correlation_id
from proxy.jobs.document import FINISHED, WAITING, valid_job_id
from proxy.jobs.redis.connection import RedisConnection, RedisLost
from proxy.jobs.redis.replies import CommandError

log = logging.getLogger(__name__)

_T = TypeVar("_T")

REMEMBERED = 10_000
"""Correlation IDs and pending transfers kept in memory; the oldest are dropped first."""

KEEP = 48 * 3600
"""Seconds for which Redis keeps the correlation ID of a creation: twice a job's TTL."""

PAUSE = 0.5  # seconds between two attempts while Redis is unreachable
_BATCH = 64


@dataclass(frozen=True, slots=True)
class ActiveJob:
    """A job being worked on. `correlation_id` is None if we did not see its creation."""

    job_id: str
    correlation_id: str | None


class ActiveJobs:
    """See the rules at the top of the file. `run` is one of the mirror's tasks."""

    def __init__(
        self,
        family: str,
        link: Callable[[], RedisConnection | None],
        clock: Clock,
        *,
        idle: float,
        key_prefix: str = "",
    ) -> None:
        self._key = f"{key_prefix}correlation:{family}"
        self._link = link
        self._clock = clock
        self._idle = idle
        self._active: dict[str, float] = {}  # job ID: monotonic time of its last change
        self._created: dict[str, str] = {}
        self._to_write: dict[str, str] = {}
        self._to_read: dict[str, None] = {}
        self._errand = asyncio.Event()

    # --- what happens to jobs -------------------------------------------------------------------

    def created(self, job_id: str, correlation_id: str) -> None:
        """This proxy answered the creation of a job."""
        if valid_job_id(job_id):
            _remember(self._created, job_id, correlation_id)
            _remember(self._to_write, job_id, correlation_id)
            self._errand.set()

    def changed(self, job_id: str, status: str) -> None:
        """A new version of the job was captured (rule 1)."""
        if status in FINISHED:
            self._active.pop(job_id, None)
        elif status not in WAITING or job_id in self._active:
            if job_id not in self._active and job_id not in self._created:
                _remember(self._to_read, job_id, None)
                self._errand.set()
            _remember(self._active, job_id, self._clock.monotonic())

    def ended(self, job_id: str) -> None:
        """The job was deleted or requeued: nobody works on it."""
        self._active.pop(job_id, None)

    # --- attribution of calls -------------------------------------------------------------------

    def of_call(self, target: str) -> ActiveJob | None:
        """The job that a worker's call to `target` belongs to, if unambiguous: the active job whose
        ID is in the target, else the only active one."""
        active = self._active
        if not active:
            return None
        if len(active) == 1:
            (job_id,) = active
            if self._clock.monotonic() - active[job_id] <= self._idle:
                return ActiveJob(job_id, self._created.get(job_id))
        mentioned = [job_id for job_id in active if job_id in target] if len(active) < 100 else []
        if len(mentioned) != 1:
            self._drop_idle()
            if len(active) != 1:
                return None
            mentioned = list(active)
        return ActiveJob(mentioned[0], self._created.get(mentioned[0]))

    def _drop_idle(self) -> None:
        since = self._clock.monotonic() - self._idle
        for job_id in [job_id for job_id, at in self._active.items() if at < since]:
            del self._active[job_id]

    # --- through Redis --------------------------------------------------------------------------

    async def run(self) -> None:
        """Write and read correlation IDs in Redis until cancelled."""
        while True:
            await self._errand.wait()
            self._errand.clear()
            while self._to_write or self._to_read:
                link = self._link()
                try:
                    if link is None:
                        raise RedisLost("not connected")
                    await self._carry(link)
                except RedisLost:
                    await asyncio.sleep(PAUSE)

    async def _carry(self, link: RedisConnection) -> None:
        writes = dict(_first(self._to_write.items()))
        reads = [job_id for job_id, _ in _first(self._to_read.items())]
        replies = await link.call(
            *(("SET", self._key + job_id, one, "EX", KEEP) for job_id, one in writes.items()),
            *(("GETRANGE", self._key + job_id, 0, 128) for job_id in reads),
        )
        for reply in replies:
            if isinstance(reply, CommandError):
                log.warning("redis refuses correlation ids", extra={"reason": reply.text[:200]})
                break
        for job_id, correlation_id in writes.items():
            if self._to_write.get(job_id) == correlation_id:
                del self._to_write[job_id]
        for job_id, reply in zip(reads, replies[len(writes) :], strict=True):
            self._to_read.pop(job_id, None)
            if isinstance(reply, bytes) and is_correlation_id(reply):
                _remember(self._created, job_id, reply.decode())


def _remember(where: dict[str, _T], job_id: str, value: _T) -> None:
    where.pop(job_id, None)
    where[job_id] = value
    if len(where) > REMEMBERED:
        del where[next(iter(where))]


def _first(items: Iterable[tuple[str, _T]]) -> list[tuple[str, _T]]:
    return [item for item, _ in zip(items, range(_BATCH), strict=False)]
