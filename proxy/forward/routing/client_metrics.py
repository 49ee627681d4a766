"""Metrics of the limits per client (`limits.per_client`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy.forward.routing.client_shares import ClientShares

_REASONS = ("client_connections", "client_requests", "client_uploads")


class ClientMetrics(Collector):
    """Collects the metrics of all listeners that limit clients."""

    def __init__(self, shares: Mapping[str, ClientShares]) -> None:
        self._shares = shares

    def collect(self) -> Iterable[Metric]:
        """The metric families, read at a scrape."""
        refused = CounterMetricFamily(
            "proxy_clients_refused",
            "Connections and requests refused by the limits per client",
            labels=["listener", "reason"],
        )
        tracked = GaugeMetricFamily(
            "proxy_clients_tracked", "Clients tracked for the limits", labels=["listener"]
        )
        crowded = CounterMetricFamily(
            "proxy_clients_crowded",
            "Clients counted by network because there were too many",
            labels=["listener"],
        )
        for name, shares in list(self._shares.items()):
            for reason in _REASONS:
                refused.add_metric([name, reason], shares.refused[reason])
            tracked.add_metric([name], len(shares))
            crowded.add_metric([name], shares.crowded)
        return refused, tracked, crowded
