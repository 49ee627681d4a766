"""What the proxy tells about the app beyond its requests, as far as the config asks for it."""

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
    """The statsd listener, the app's page and the resources of `config`; what it does not name is
    absent. A reload that changes any of them stops all and starts them as a whole."""

    def __init__(self, config: Config, metrics: Metrics, clock: Clock, vitals: Vitals) -> None:
        self._metrics = metrics
        self._guest: ExternalMetrics | None = None
        self.series: StatsdSeries | None = None
        self.resources: ResourceSampler | None = None
        self._statsd: StatsdListener | None = None
        self._page: AppScrape | None = None
        if config.statsd is not None:
            self.series = StatsdSeries(config.statsd)
            metrics.registry.register(self.series)
            self._statsd = StatsdListener(config.statsd, self.series)
        if config.app_metrics is not None:
            guest = self._guest = ExternalMetrics(clock, config.app_metrics.stale_after)
            metrics.external.append(guest.families)
            self._page = AppScrape(config.app_metrics, guest, vitals)
        if config.resources is not None:
            self.resources = ResourceSampler(config.resources, clock)
            metrics.registry.register(self.resources)

    def start(self) -> None:
        """Open sockets, begin to fetch and to measure. Raises `OSError`."""
        if self._statsd is not None:
            self._statsd.start()
        if self._page is not None:
            self._page.start()
        if self.resources is not None:
            self.resources.start()

    async def stop(self) -> None:
        """End all of it."""
        if self._statsd is not None:
            self._statsd.stop()
        if self._page is not None:
            await self._page.stop()
        if self.resources is not None:
            await self.resources.stop()

    def disks(self) -> list[tuple[str, int, int]]:
        """Name, bytes free and bytes in all of each directory of `resources`."""
        return [] if self.resources is None else self.resources.disks()

    def forget(self) -> None:
        """Take its metrics off ours, so that another one may take their names."""
        for collector in (self.series, self.resources):
            if collector is not None:
                self._metrics.registry.unregister(collector)
        if self._guest is not None:
            self._metrics.external.remove(self._guest.families)
