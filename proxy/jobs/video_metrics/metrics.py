"""The pipeline's metrics as a scrape sees them: the totals of all mirrors in one.

Their names are those of the sprint document, which knows no label `mirror`; so the series of
several mirrors are added up. The ID of a job goes with a value as an exemplar, never as a label:
OpenMetrics scrapes see it, others do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.samples import Exemplar

from proxy.jobs.video_metrics.totals import (
    FAMILIES,
    Example,
    Key,
    Total,
    TotalFamily,
    Totals,
    merged,
)


class Counted:
    """What one mirror exposes. `active` is None while another sidecar or none counts."""

    def __init__(self, totals: Totals) -> None:
        self.totals = totals
        self.counting = False
        self.active: int | None = None
        self.pending = 0


class PipelineMetrics:
    """A collector on the registry that it is given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._mirrors: dict[str, Counted] = {}
        registry.register(self)

    def show(self, mirror: str, counted: Counted) -> None:
        """Show this mirror's totals from now on."""
        self._mirrors[mirror] = counted

    def collect(self) -> Iterator[Metric]:
        """Every family; nothing at all where no mirror counts."""
        mirrors = dict(self._mirrors)
        if not mirrors:
            return
        series: dict[Key, list[Total]] = {}
        for counted in mirrors.values():
            for key, total in counted.totals.series.items():
                series.setdefault(key, []).append(total)
        for family in FAMILIES.values():
            mine = [
                (key[1], merged(family, totals))
                for key, totals in series.items()
                if key[0] == family.name
            ]
            yield (_histogram if family.buckets else _counter)(family, mine)
        active = GaugeMetricFamily(
            "pipeline_jobs_active", "Jobs without a final status; shown by the sidecar that counts"
        )
        known = [counted.active for counted in mirrors.values() if counted.active is not None]
        if known:
            active.add_metric((), sum(known))
        yield active
        counting = GaugeMetricFamily(
            "proxy_pipeline_counting",
            "1 while this sidecar holds the counting lease",
            labels=("mirror",),
        )
        pending = GaugeMetricFamily(
            "proxy_pipeline_pending",
            "Pipeline events that are not settled yet",
            labels=("mirror",),
        )
        for name, counted in mirrors.items():
            counting.add_metric((name,), float(counted.counting))
            pending.add_metric((name,), counted.pending)
        yield counting
        yield pending


def _counter(family: TotalFamily, series: list[tuple[tuple[str, ...], Total]]) -> Metric:
    metric = CounterMetricFamily(family.name, family.about, labels=family.labels)
    for labels, total in series:
        examples = dict(total.examples)
        metric.add_metric(labels, total.value, exemplar=_exemplar(examples.get(0)))
    return metric


def _histogram(family: TotalFamily, series: list[tuple[tuple[str, ...], Total]]) -> Metric:
    metric = HistogramMetricFamily(family.name, family.about, labels=family.labels)
    bounds = [*map(repr, family.buckets), "+Inf"]
    for labels, total in series:
        examples = dict(total.examples)
        buckets = [
            (bound, float(count), example)
            if (example := _exemplar(examples.get(place))) is not None
            else (bound, float(count))
            for place, (bound, count) in enumerate(
                zip(bounds, accumulate(total.counts), strict=True)
            )
        ]
        metric.add_metric(labels, buckets, sum_value=total.value)
    return metric


def _exemplar(example: Example | None) -> Exemplar | None:
    if example is None:
        return None
    return Exemplar({"job_id": example.job_id}, example.value, round(example.at, 3))
