"""The trace's metrics, on a registry that the caller provides."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

DROPS = ("queue", "rate", "refused")


class TraceMetrics:
    """The metric families of the trace; one instance per process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._written = Counter(
            "proxy_trace_events", "Events written to the trace", registry=registry
        )
        self._dropped = Counter(
            "proxy_trace_dropped",
            "Events lost: queue full, more than a route may keep, or refused by SQLite",
            ["reason"],
            registry=registry,
        )
        for reason in DROPS:
            self._dropped.labels(reason)
        self.size = Gauge("proxy_trace_bytes", "Size of the trace's file", registry=registry)
        self.log = Gauge(
            "proxy_trace_wal_bytes", "Size of SQLite's write-ahead log", registry=registry
        )
        self.degraded = Gauge(
            "proxy_trace_degraded", "1 while the trace cannot be written", registry=registry
        )

    def written(self, events: int) -> None:
        """Count committed events."""
        self._written.inc(events)

    def dropped(self, reason: str) -> None:
        """Count a lost event; `reason` is one of `DROPS`."""
        self._dropped.labels(reason).inc()
