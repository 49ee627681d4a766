"""Builds metric families from tallies: counters, gauges and histograms, and those of the routes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.samples import Exemplar

from proxy.telemetry.metrics.counters import Distribution, RouteTally, merged

Labels = tuple[str, ...]


def counter(
    name: str, about: str, labels: Labels, values: Iterable[tuple[Labels, float]]
) -> Metric:
    """A counter; its series end in `_total`, `name` does not."""
    family = CounterMetricFamily(name, about, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def gauge(name: str, about: str, labels: Labels, values: Iterable[tuple[Labels, float]]) -> Metric:
    """A gauge."""
    family = GaugeMetricFamily(name, about, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def histogram(
    name: str, about: str, labels: Labels, values: Iterable[tuple[Labels, Distribution]]
) -> Metric:
    """A histogram, with the exemplars of its distributions."""
    family = HistogramMetricFamily(name, about, labels=labels)
    for label_values, distribution in values:
        buckets: list[Any] = list(distribution.cumulative())
        for place, (value, trace_id, at) in list((distribution.examples or {}).items()):
            exemplar = Exemplar({"trace_id": trace_id}, value, round(at, 3))
            buckets[place] = (*buckets[place], exemplar)
        family.add_metric(label_values, buckets, sum_value=distribution.total)
    return family


def http_families(tallies: list[RouteTally]) -> Iterator[Metric]:
    """Ingress, per route and method. Routes of the same name on two listeners are one endpoint."""
    counts: dict[tuple[str, ...], int] = defaultdict(int)
    durations: dict[tuple[str, ...], list[Distribution]] = defaultdict(list)
    for tally in tallies:
        if not tally.egress:
            for name, method in list(tally.methods.items()):
                durations[name, tally.endpoint].append(method)
                for status, count in list(method.statuses.items()):
                    counts[name, tally.endpoint, str(status)] += count
    yield counter(
        "http_requests",
        "Requests from callers to the service",
        ("method", "endpoint", "status"),
        counts.items(),
    )
    yield histogram(
        "http_request_duration_seconds",
        "Time from a request's head to the end of its response",
        ("method", "endpoint"),
        _merged(durations),
    )


def external_families(tallies: list[RouteTally]) -> Iterator[Metric]:
    """Egress, per upstream and route."""
    counts: dict[tuple[str, ...], int] = defaultdict(int)
    retries: dict[tuple[str, ...], int] = defaultdict(int)
    durations: dict[tuple[str, ...], list[Distribution]] = defaultdict(list)
    for tally in tallies:
        if tally.egress:
            key = (tally.service, tally.endpoint)
            retries[key] += tally.retries
            for method in list(tally.methods.values()):
                durations[key].append(method)
                for status, count in list(method.statuses.items()):
                    counts[*key, str(status)] += count
    yield counter(
        "external_api_calls",
        "Calls of the service to other services",
        ("service", "endpoint", "status"),
        counts.items(),
    )
    yield histogram(
        "external_api_duration_seconds",
        "Time of a call, all its attempts included",
        ("service", "endpoint"),
        _merged(durations),
    )
    yield counter(
        "external_api_retries",
        "Attempts beyond the first of each call",
        ("service", "endpoint"),
        retries.items(),
    )


def route_families(tallies: list[RouteTally]) -> Iterator[Metric]:
    """Both directions. `listener` is a label too, because egress routes often share a name."""
    in_flight: dict[tuple[str, ...], int] = defaultdict(int)
    bytes_in: dict[tuple[str, ...], int] = defaultdict(int)
    bytes_out: dict[tuple[str, ...], int] = defaultdict(int)
    errors: dict[tuple[str, ...], int] = defaultdict(int)
    gone: dict[tuple[str, ...], int] = defaultdict(int)
    unexpected: dict[tuple[str, ...], int] = defaultdict(int)
    added: dict[tuple[str, ...], list[Distribution]] = defaultdict(list)
    streams: dict[tuple[str, ...], list[Distribution]] = defaultdict(list)
    for tally in tallies:
        key = (tally.listener, tally.endpoint)
        in_flight[key] += tally.in_flight
        bytes_in[key] += tally.bytes_in
        bytes_out[key] += tally.bytes_out
        added[key].append(tally.added)
        unexpected[key] += tally.unexpected
        for code, count in list(tally.errors.items()):
            errors[*key, code] += count
        for phase, count in list(tally.gone.items()):
            gone[*key, phase] += count
        if any(tally.streams.counts):
            streams[key].append(tally.streams)
    labels = ("listener", "endpoint")
    yield gauge("proxy_requests_in_flight", "Exchanges in progress", labels, in_flight.items())
    yield counter("proxy_request_body_bytes", "Bytes of request content", labels, bytes_in.items())
    yield counter(
        "proxy_response_body_bytes", "Bytes of response content", labels, bytes_out.items()
    )
    yield histogram(
        "proxy_added_seconds",
        "Duration of an exchange less its upstream's response time: queueing, connecting, the "
        "proxy's own work, and the transfer of the response body",
        labels,
        _merged(added),
    )
    yield counter(
        "proxy_errors",
        "Exchanges that ended with one of the proxy's own errors, or whose client left",
        ("listener", "endpoint", "code"),
        errors.items(),
    )
    yield counter(
        "proxy_client_gone",
        "Exchanges whose client left, by what was in progress",
        ("listener", "endpoint", "phase"),
        gone.items(),
    )
    yield counter(
        "proxy_unexpected_answers",
        "2xx responses whose media type is not what the route is for",
        labels,
        unexpected.items(),
    )
    yield histogram(
        "proxy_stream_seconds",
        "How long WebSockets and event streams lasted",
        labels,
        _merged(streams),
    )


def _merged(
    groups: dict[Labels, list[Distribution]],
) -> Iterator[tuple[Labels, Distribution]]:
    for key, distributions in groups.items():
        yield key, merged(distributions)
