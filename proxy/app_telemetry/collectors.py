"""The collectors of the app's metrics, as far as the config enables them."""

from __future__ import annotations

from proxy.app_telemetry.resources.sampler import ResourceSampler
from proxy.app_telemetry.scrape.external_metrics import ExternalMetrics
from proxy.app_telemetry.scrape.fetch import AppScrape
from proxy.app_telemetry.statsd.listener import StatsdListener
from proxy.app_telemetry.statsd.series import StatsdSeries
from proxy.config.schema import Config
from proxy.core.clock import Clock
from proxy.core.vitals import Vitals
from proxy.telemetry.metrics.registry import Metrics


class AppTelemetry:
    """The statsd listener, the scrape of the app's page, and the resource sampler. A reload that
    changes any of them stops and starts all of them."""

    def __init__(self, config: Config, metrics: Metrics, clock: Clock, vitals: Vitals) -> None:
        self._metrics = metrics
        self._external: ExternalMetrics | None = None
        self.series: StatsdSeries | None = None
        self.resources: ResourceSampler | None = None
        self._statsd: StatsdListener | None = None
        self._scrape: AppScrape | None = None
        if config.statsd is not None:
            self.series = StatsdSeries(config.statsd)
            metrics.registry.register(self.series)
            self._statsd = StatsdListener(config.statsd, self.series)
        if config.app_metrics is not None:
            page = config.app_metrics
            external = self._external = ExternalMetrics(clock, 4 * (page.every + page.timeout))
            metrics.external.append(external.families)
            self._scrape = AppScrape(page, external, vitals)
        if config.resources is not None:
            self.resources = ResourceSampler(config.resources, clock)
            metrics.registry.register(self.resources)

    def start(self) -> None:
        """Start all collectors. Raises `OSError`."""
        if self._statsd is not None:
            self._statsd.start()
        if self._scrape is not None:
            self._scrape.start()
        if self.resources is not None:
            self.resources.start()

    async def stop(self) -> None:
        """Stop all collectors."""
        if self._statsd is not None:
            self._statsd.stop()
        if self._scrape is not None:
            await self._scrape.stop()
        if self.resources is not None:
            await self.resources.stop()

    def disks(self) -> list[tuple[str, int, int]]:
        """Name, free bytes and total bytes of each directory of `resources`."""
        return [] if self.resources is None else self.resources.disks()

    def forget(self) -> None:
        """Unregister the metrics, so that a successor can use their names."""
        for collector in (self.series, self.resources):
            if collector is not None:
                self._metrics.registry.unregister(collector)
        if self._external is not None:
            self._metrics.external.remove(self._external.families)
