"""What is measured of a mirror's queue of jobs, on a registry that the caller gives."""

from __future__ import annotations

import math
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_WAITS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400)
_ERRORS = (0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5)


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue as an operator is shown it. Seconds; None: not known."""

    waiting: int
    working: int
    oldest: float
    slots: int | None
    typical: float | None
    drained_in: float | None

    def facts(self) -> dict[str, float | int | None]:
        """The same for `/api/jobs`."""
        return {
            "waiting": self.waiting,
            "working": self.working,
            "oldest_seconds": round(self.oldest, 1),
            "slots": self.slots,
            "typical_seconds": None if self.typical is None else round(self.typical, 1),
            "drained_in_seconds": None if self.drained_in is None else round(self.drained_in, 1),
        }


class QueueFamilies:
    """The families of all queues."""

    def __init__(self, registry: CollectorRegistry) -> None:
        one = ("mirror",)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"proxy_jobs_queue_{name}", text, one, registry=registry)

        self.length = gauge("length", "Jobs that wait for a worker")
        self.working = gauge("working", "Jobs that are worked on")
        self.oldest = gauge("oldest_seconds", "How long the oldest waiting job has waited")
        self.slots = gauge(
            "slots", "Jobs that the workers can work on at a time; NaN where that is not known"
        )
        self.busy = gauge(
            "busy_ratio", "Share of the workers that have a job; NaN where that is not known"
        )
        self.capacity = gauge(
            "capacity_per_minute",
            "Jobs a minute that the workers can complete; NaN while that is not known",
        )
        self.drain = gauge(
            "drain_seconds",
            "In how long all jobs of now will be done; NaN while that is not known",
        )
        self.wait = Histogram(
            "proxy_jobs_queue_wait_seconds",
            "From a job's creation to the beginning of its first stage",
            one,
            buckets=_WAITS,
            registry=registry,
        )
        self.arrivals = Counter(
            "proxy_jobs_queue_arrivals", "Jobs that were created", one, registry=registry
        )
        self.completions = Counter(
            "proxy_jobs_queue_completions",
            "Jobs that left the queue finished, well or not",
            one,
            registry=registry,
        )
        self.error = Histogram(
            "proxy_jobs_queue_estimate_error_ratio",
            "How far the time estimated at a job's first stage was off, as a share of what it took",
            one,
            buckets=_ERRORS,
            registry=registry,
        )


class QueueMetrics:
    """One mirror's children of them."""

    def __init__(self, families: QueueFamilies, name: str) -> None:
        self.wait = families.wait.labels(name)
        self.arrivals = families.arrivals.labels(name)
        self.completions = families.completions.labels(name)
        self.error = families.error.labels(name)
        self._length = families.length.labels(name)
        self._working = families.working.labels(name)
        self._oldest = families.oldest.labels(name)
        self._slots = families.slots.labels(name)
        self._busy = families.busy.labels(name)
        self._capacity = families.capacity.labels(name)
        self._drain = families.drain.labels(name)
        self.show(QueueState(0, 0, 0.0, None, None, None))

    def show(self, state: QueueState) -> None:
        """Set every gauge."""
        slots, typical = state.slots, state.typical
        self._length.set(state.waiting)
        self._working.set(state.working)
        self._oldest.set(state.oldest)
        self._slots.set(math.nan if slots is None else slots)
        self._busy.set(min(1.0, state.working / slots) if slots else math.nan)
        rate = 60 * slots / typical if slots is not None and typical else math.nan
        self._capacity.set(rate)
        self._drain.set(math.nan if state.drained_in is None else state.drained_in)
