"""The spool's metrics, read at a scrape."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from proxy.spool import Spool


class SpoolMetrics:
    """A collector for the registry."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def collect(self) -> Iterable[Metric]:
        """Every family, from the start with a sample for each reason."""
        spool = self._spool
        yield GaugeMetricFamily("proxy_spool_bytes", "Bytes of spooled bodies", value=spool.used)
        yield GaugeMetricFamily(
            "proxy_spool_max_bytes", "Most bytes that spooled bodies may have", value=spool.max_size
        )
        yield GaugeMetricFamily("proxy_spool_files", "Open spool files", value=spool.files)
        yield CounterMetricFamily(
            "proxy_spool_written_bytes", "Bytes ever written to files", value=spool.spooled
        )
        refused = CounterMetricFamily(
            "proxy_spool_refused", "Bodies that could not be spooled", labels=["reason"]
        )
        for reason, count in spool.refused.items():
            refused.add_metric([reason], count)
        yield refused
