"""The app's metrics that are shown on our page, and metrics about the app's page itself.

The app's families come last in a scrape: our names are taken by then, and a family of the app that
would clash is left out. Old values are no longer shown, because a value that never changes looks
like a healthy app.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from copy import copy
from enum import StrEnum

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from proxy.config.metric_names import claims, reserved
from proxy.core.clock import Clock
from proxy.telemetry.metrics.counters import Distribution

_log = logging.getLogger(__name__)

_MOST_LOGGED = 20  # families in a log line


class Fetched(StrEnum):
    """The outcome of a fetch; each is a value of the label `result`."""

    OK = "ok"
    EMPTY = "empty"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    STATUS = "status"
    TOO_LARGE = "too_large"
    TOO_MANY_SERIES = "too_many_series"
    MALFORMED = "malformed"
    FAULT = "fault"


class ExternalMetrics:
    """The app's families as last fetched. The event loop replaces them, scrapes read them."""

    def __init__(self, clock: Clock, stale_after: float) -> None:
        self._clock = clock
        self._stale_after = stale_after
        self._page: tuple[float, list[Metric], list[str]] | None = (
            None  # when, families, names of unsound ones
        )
        self._logged: list[str] = []
        self._last_good: float | None = None
        self._up = False
        self.fetches = dict.fromkeys(Fetched, 0)
        self.durations = Distribution()

    def fetched(
        self,
        result: Fetched,
        seconds: float,
        families: Sequence[Metric] = (),
        unsound: Sequence[str] = (),
    ) -> None:
        """Record a fetch. An empty page replaces the previous one, a failed fetch does not."""
        self.fetches[result] += 1
        self.durations.observe(seconds)
        self._up = result in (Fetched.OK, Fetched.EMPTY)
        if self._up:
            self._page = (self._clock.monotonic(), list(families), list(unsound))
            self._last_good = self._clock.time()

    def families(self, taken: set[str]) -> Iterator[Metric]:
        """The families whose names are not in `taken`, which they are added to."""
        page = self._page
        shown: list[Metric] = []
        clashing: list[str] = []
        unsound: list[str] = []
        if page is not None and self._clock.monotonic() - page[0] <= self._stale_after:
            unsound = page[2]
            for family in page[1]:
                names = claims(family.name, family.type)
                if reserved(family.name) or names & taken:
                    clashing.append(family.name)
                    continue
                taken |= names
                shown.append(family)
            self._log_left_out([*clashing, *unsound])
        # Copies, because the exposition may replace their lists of samples.
        yield from map(copy, shown)
        yield from self._about(
            sum(len(family.samples) for family in shown), len(clashing), len(unsound)
        )

    def _log_left_out(self, left_out: list[str]) -> None:
        """Log the families that are left out, once per change."""
        if left_out != self._logged:
            self._logged = left_out
            if left_out:
                names = [name[:100] for name in left_out[:_MOST_LOGGED]]
                facts = {"families": names, "number": len(left_out)}
                _log.warning("app metrics left out", extra=facts)

    def _about(self, series: int, clashing: int, unsound: int) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "proxy_app_metrics_up", "1 while the last fetch of the app's page was good", self._up
        )
        fetches = CounterMetricFamily(
            "proxy_app_metrics_fetches", "Fetches of the app's page", labels=["result"]
        )
        for result, number in self.fetches.items():
            fetches.add_metric([result.value], number)
        yield fetches
        seconds = HistogramMetricFamily("proxy_app_metrics_fetch_seconds", "Time of a fetch")
        seconds.add_metric([], self.durations.cumulative(), self.durations.total)
        yield seconds
        yield GaugeMetricFamily("proxy_app_metrics_series", "Series of the app shown here", series)
        left_out = GaugeMetricFamily(
            "proxy_app_metrics_left_out",
            "Families of the app's page that are not shown: their names clash, or they are unsound",
            labels=["reason"],
        )
        left_out.add_metric(["collision"], clashing)
        left_out.add_metric(["unsound"], unsound)
        yield left_out
        last = GaugeMetricFamily(
            "proxy_app_metrics_last_success_timestamp_seconds",
            "When the app's page was last fetched well, Unix time; 0: never",
            self._last_good or 0,
        )
        yield last
