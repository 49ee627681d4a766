"""The memory budget as metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from proxy.core.memory.budget import MemoryBudget


class MemoryMetrics:
    """A collector over `budget`; `shed` gives how many connections were ended for memory."""

    def __init__(self, budget: MemoryBudget, shed: Callable[[], int]) -> None:
        self._budget = budget
        self._shed = shed

    def collect(self) -> Iterator[Metric]:
        """Bytes in use by holder, the limit, and the level."""
        budget = self._budget
        used = GaugeMetricFamily(
            "proxy_memory_used_bytes", "Bytes that buffers hold", labels=["holder"]
        )
        for holder, size in budget.accounts().items():
            used.add_metric([holder], size)
        yield used
        yield GaugeMetricFamily(
            "proxy_memory_limit_bytes", "Bytes that buffers may hold", value=budget.limit
        )
        yield GaugeMetricFamily(
            "proxy_memory_level",
            "0 normal, 1 slow: connections get less, 2 shed: those that hold most are ended",
            value=budget.level,
        )
        yield CounterMetricFamily(
            "proxy_memory_shed_connections",
            "Client connections ended because the memory budget was used up",
            value=self._shed(),
        )
