"""Evicted jobs: counted one by one, logged once per burst."""

from __future__ import annotations

import logging
import math

from proxy.jobs.metrics import MirrorMetrics

log = logging.getLogger(__name__)

QUIET = 5.0  # seconds without an eviction after which a burst is over
LONGEST = 60.0  # seconds after which an ongoing burst is logged
REMEMBERED = 100_000


class Evictions:
    """Jobs that are missing in Redis without proof of a deletion. No I/O."""

    def __init__(self, mirror: str, metrics: MirrorMetrics) -> None:
        self.total = 0  #: since the start
        self._mirror = mirror
        self._metrics = metrics
        self._missing: set[str] = set()  # already counted
        self._burst: list[str] = []  # the first job of the burst
        self._in_burst = 0
        self._began = self._latest = -math.inf

    def note(self, job_id: str, now: float) -> None:
        """A job was found missing at `now` (monotonic) without proof that it was deleted."""
        if job_id in self._missing:
            return
        if len(self._missing) >= REMEMBERED:
            self._missing.clear()
        self._missing.add(job_id)
        self.total += 1
        self._metrics.evicted.inc()
        if not self._in_burst:
            self._burst = [job_id]
            self._began = now
        self._in_burst += 1
        self._latest = now

    def present(self, job_id: str) -> None:
        """A job is in Redis, or no longer expected there."""
        self._missing.discard(job_id)

    def report(self, now: float) -> None:
        """Log a burst that is over or lasts too long. Call this periodically."""
        if not self._in_burst or (now - self._latest < QUIET and now - self._began < LONGEST):
            return
        log.warning(
            "jobs evicted from Redis",
            extra={
                "mirror": self._mirror,
                "jobs": self._in_burst,
                "first": self._burst[0],
                "seconds": round(self._latest - self._began, 3),
            },
        )
        self._in_burst = 0
