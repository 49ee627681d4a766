"""A mirror's metrics, on a registry that the caller provides."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from proxy.jobs.queue.metrics import QueueFamilies, QueueMetrics
from proxy.jobs.video_metrics.metrics import PipelineMetrics

_LAG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
# Initialised to zero: a counter that first appears as 1 shows no increase to an alert.
_CREATIONS = ("confirmed", "not_stored", "unconfirmed", "degraded", "refused", "unreadable")
_REASONS = (
    "message_missing",
    "task_ended",
    "worker_idle",
    "worker_moved_on",
    "worker_replaced",
    "worker_gone",
    "workers_idle",
    "stranded",
    "operator",
)
_CAUSES = ("start", "restart", "flush", "outdated", "read", "manual")


class JobMetrics:
    """The metric families of all mirrors; `for_mirror` returns the children of one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        one = ("mirror",)
        self.pipeline = PipelineMetrics(registry)
        self.queue = QueueFamilies(registry)
        self.lag = Histogram(
            "proxy_mirror_lag_seconds",
            "Time from a job's change notification to its commit in SQLite",
            one,
            buckets=_LAG,
            registry=registry,
        )
        self.rows = Gauge("proxy_mirror_rows", "Jobs in SQLite", one, registry=registry)
        self.log = Gauge(
            "proxy_mirror_wal_bytes", "Size of SQLite's write-ahead log", one, registry=registry
        )
        self.commits = Counter(
            "proxy_mirror_commits", "Groups of changes committed", one, registry=registry
        )
        self.restored = Counter(
            "proxy_jobs_restored",
            "Jobs restored into Redis, by cause of their loss",
            ("mirror", "cause"),
            registry=registry,
        )
        self.degraded = Gauge(
            "proxy_mirror_degraded",
            "1 while a part (redis, sqlite) does not work",
            ("mirror", "part"),
            registry=registry,
        )
        self.last_sync = Gauge(
            "proxy_mirror_last_sync_timestamp_seconds",
            "When Redis and SQLite were last compared in full, Unix time",
            one,
            registry=registry,
        )
        self.stranded = Gauge(
            "proxy_jobs_stranded", "Unfinished jobs that nobody works on", one, registry=registry
        )
        self.oddities = Counter(
            "proxy_mirror_oddities",
            "Malformed job values, by kind",
            ("mirror", "kind"),
            registry=registry,
        )
        self.creations = Counter(
            "proxy_jobs_created",
            "Creations: confirmed, not_stored, unconfirmed (Redis alive but too slow), degraded, "
            "refused before the app, unreadable answer",
            ("mirror", "result"),
            registry=registry,
        )
        self.held = Counter(
            "proxy_jobs_held",
            "Deleted jobs that came back and were removed",
            one,
            registry=registry,
        )
        self.evicted = Counter(
            "proxy_jobs_evicted",
            "Jobs missing in Redis that were evicted, or not provably deleted",
            one,
            registry=registry,
        )
        self.rescued = Counter(
            "proxy_broker_rescued",
            "Celery bindings and messages restored",
            ("mirror", "kind"),
            registry=registry,
        )

        self.requeued = Counter(
            "proxy_jobs_requeued",
            "Jobs requeued, by the evidence that nobody worked on them",
            ("mirror", "reason"),
            registry=registry,
        )
        self.unattended = Gauge(
            "proxy_jobs_unattended",
            "Unfinished jobs on which no worker is seen to work",
            one,
            registry=registry,
        )
        self.workers = Gauge(
            "proxy_queue_workers",
            "Workers connected to the broker; NaN if unknown",
            one,
            registry=registry,
        )

    def for_mirror(self, name: str) -> MirrorMetrics:
        """The children labelled with one mirror's name."""
        return MirrorMetrics(self, name)


class MirrorMetrics:
    """The children of `JobMetrics` for one mirror."""

    def __init__(self, families: JobMetrics, name: str) -> None:
        self._families = families
        self._name = name
        self.lag = families.lag.labels(name)
        self.rows = families.rows.labels(name)
        self.log = families.log.labels(name)
        self.commits = families.commits.labels(name)
        self.last_sync = families.last_sync.labels(name)
        self.stranded = families.stranded.labels(name)
        self.held = families.held.labels(name)
        self.evicted = families.evicted.labels(name)
        self.unattended = families.unattended.labels(name)
        self.workers = families.workers.labels(name)
        self.workers.set(math.nan)
        for part in ("redis", "sqlite"):
            self.degraded(part, False)
        for result in _CREATIONS:
            families.creations.labels(name, result)
        for reason in _REASONS:
            families.requeued.labels(name, reason)
        for cause in _CAUSES:
            families.restored.labels(name, cause)

    def queue(self) -> QueueMetrics:
        """The mirror's queue metrics; created only if the queue is followed."""
        return QueueMetrics(self._families.queue, self._name)

    def degraded(self, part: str, is_so: bool) -> None:
        """`part` is `redis` or `sqlite`."""
        self._families.degraded.labels(self._name, part).set(is_so)

    def restored(self, cause: str, jobs: int) -> None:
        self._families.restored.labels(self._name, cause).inc(jobs)

    def oddity(self, kind: str) -> None:
        self._families.oddities.labels(self._name, kind).inc()

    def creation(self, result: str) -> None:
        self._families.creations.labels(self._name, result).inc()

    def rescued(self, kind: str, number: int) -> None:
        self._families.rescued.labels(self._name, kind).inc(number)

    def requeued(self, reason: str) -> None:
        """A job was given a message again; `reason` is one of `_REASONS`."""
        self._families.requeued.labels(self._name, reason).inc()
