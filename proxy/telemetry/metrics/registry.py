"""The metrics registry: what is counted, under which names, and how it is written out.

Names without `proxy_` are those of the sprint document. A label is always a name from the config, a
status, a known method or one of our own codes: never what a client sent.

Counts outlive reloads: the same labels give the same tally, and a route that went keeps its last
values, because a counter that vanishes looks like a restart to `rate()`.
"""

from __future__ import annotations

import platform
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, cast

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.samples import Exemplar, Sample

from proxy.config.metric_names import claims
from proxy.core.process.shortage import DETAILS
from proxy.core.vitals import Vitals
from proxy.telemetry.metrics.counters import (
    BUCKETS,
    Distribution,
    ListenerTally,
    RouteTally,
    UpstreamTally,
    merged,
)

#: Types of families to which the library adds the times at which their series began.
_WITH_CREATED = frozenset({"counter", "histogram", "summary"})

_SAMPLES_AT_ONCE = 50  # about half a millisecond
_PAUSE = 0.0001  # seconds

Direction = Literal["ingress", "egress"]

#: Families from elsewhere, given the names that are taken, to which it adds its own.
Guest = Callable[[set[str]], Iterator[Metric]]


class Metrics:
    """One registry per proxy. `registry` is open to other parts, for ordinary metrics; `guests`
    come after all of it, and see which names are taken."""

    def __init__(self, version: str, vitals: Vitals | None = None) -> None:
        self._vitals = vitals or Vitals()
        self.registry = CollectorRegistry()
        self.guests: list[Guest] = []
        self.loop_lag = Distribution(BUCKETS)
        self.upstream_connections: Callable[[], Iterable[tuple[str, int, int]]] = tuple
        self.log_lines_dropped: Callable[[], int] = int
        self._version = version
        self._routes: dict[tuple[str, str, Direction, str], RouteTally] = {}
        self._listeners: dict[str, ListenerTally] = {}
        self._upstreams: dict[str, UpstreamTally] = {}
        self.reload_problem: str | None = None  # why the last reload was refused
        self._reloads = {"ok": 0, "refused": 0}
        self.registry.register(_Collector(self.families))
        ProcessCollector(registry=self.registry)

    # --- what is counted ------------------------------------------------------------------------

    def route(self, listener: str, endpoint: str, direction: Direction, service: str) -> RouteTally:
        """The tally of a route: the same one whenever the labels are the same."""
        key = (listener, endpoint, direction, service)
        tally = self._routes.get(key)
        if tally is None:
            tally = self._routes[key] = RouteTally(
                listener,
                endpoint,
                service,
                egress=direction == "egress",
                upstreams=self._upstreams,
            )
        return tally

    def listener(self, name: str) -> ListenerTally:
        """The tally of a listener's connections."""
        return self._listeners.setdefault(name, ListenerTally(name))

    def upstream(self, name: str) -> UpstreamTally:
        """The tally of an upstream's times; response times are counted only for upstreams that were
        asked for here."""
        return self._upstreams.setdefault(name, UpstreamTally(name))

    def route_tallies(self) -> list[RouteTally]:
        """Of every route there was since the start."""
        return list(self._routes.values())

    def listener_tallies(self) -> list[ListenerTally]:
        """Of every listener there was since the start."""
        return list(self._listeners.values())

    def upstream_tallies(self) -> list[UpstreamTally]:
        """Of every upstream there was since the start."""
        return list(self._upstreams.values())

    def reloaded(self, problem: str | None = None) -> None:
        """A reload of the config was done, or refused for this problem."""
        self._reloads["ok" if problem is None else "refused"] += 1
        self.reload_problem = problem

    # --- how it is written out ------------------------------------------------------------------

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics as text, and its content type: OpenMetrics when `Accept` asks for it, else
        the Prometheus format. Takes milliseconds: call it in a thread. There it gives way to the
        event loop often, because the interpreter alone would do so only every 5 ms."""
        source = cast(CollectorRegistry, _Yielding(self.collect()))
        if wants_openmetrics(accept):
            text: bytes = openmetrics.generate_latest(source)  # type: ignore[no-untyped-call]
            return text, openmetrics.CONTENT_TYPE_LATEST
        return generate_latest(source), CONTENT_TYPE_PLAIN_0_0_4

    def collect(self) -> Iterator[Metric]:
        """All families: the registry's, then those of guests."""
        taken: set[str] = set()
        for metric in self.registry.collect():
            taken |= claims(metric.name, metric.type)
            # A second series for each, which no query of ours reads. The library's own switch is
            # for all of the process, with the metrics of a program that we are embedded in.
            if metric.type in _WITH_CREATED:
                metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric
        for guest in self.guests:
            yield from guest(taken)

    def families(self) -> Iterator[Metric]:
        """Every family that this part of the proxy fills."""
        routes = list(self._routes.values())
        yield from _http(routes)
        yield from _external(routes)
        yield from _routes(routes)
        yield from self._connections()
        yield from self._process()

    def _connections(self) -> Iterator[Metric]:
        listeners = list(self._listeners.values())
        yield _gauge(
            "proxy_client_connections",
            "Open connections of clients",
            ("listener",),
            [((tally.name,), tally.open) for tally in listeners],
        )
        # Not `proxy_client_connections_total`: in OpenMetrics a counter's family is named without
        # the suffix, and that name is the gauge's.
        yield _counter(
            "proxy_client_connections_accepted",
            "Connections of clients accepted",
            ("listener",),
            [((tally.name,), tally.accepted) for tally in listeners],
        )
        yield _gauge(
            "proxy_certificate_expiry_timestamp_seconds",
            "When the first certificate in a listener's chain expires, in Unix seconds",
            ("listener",),
            [
                ((tally.name,), tally.certificate_ends)
                for tally in listeners
                if tally.certificate_ends is not None
            ],
        )
        yield _counter(
            "proxy_tls_handshake_failures",
            "TLS handshakes with clients that failed",
            ("listener", "reason"),
            [
                ((tally.name, reason), count)
                for tally in listeners
                for reason, count in list(tally.handshake_failures.items())
            ],
        )
        states: dict[tuple[str, ...], int] = {}
        for name, idle, active in self.upstream_connections():
            states[name, "idle"] = idle
            states[name, "active"] = active
        yield _gauge(
            "proxy_upstream_connections",
            "Open connections to upstreams",
            ("upstream", "state"),
            states.items(),
        )
        upstreams = list(self._upstreams.values())
        yield _histogram(
            "proxy_upstream_connect_seconds",
            "Time to open a connection to an upstream, TLS included",
            ("upstream",),
            [((tally.name,), tally.connects) for tally in upstreams],
        )
        yield _histogram(
            "proxy_upstream_response_seconds",
            "Time from the request head sent to the response head seen",
            ("upstream",),
            [((tally.name,), tally.responses) for tally in upstreams],
        )
        yield _histogram(
            "proxy_upstream_abandoned_seconds",
            "Silence of an upstream, from its request sent, that ended as the client left",
            ("upstream",),
            [((tally.name,), tally.abandoned) for tally in upstreams],
        )

    def _process(self) -> Iterator[Metric]:
        tasks, skews, shortages = self._vitals.tasks, self._vitals.skews, self._vitals.shortages
        yield _histogram(
            "proxy_event_loop_lag_seconds",
            "Delay of a timer of the event loop, sampled twice a second",
            (),
            [((), self.loop_lag)],
        )
        yield _counter(
            "proxy_log_lines_dropped",
            "Log lines lost because the output was too slow or broken",
            (),
            [((), self.log_lines_dropped())],
        )
        yield _counter(
            "proxy_task_deaths",
            "Deaths of background tasks, each of which was begun anew",
            ("task",),
            [((name,), tasks.deaths[name]) for name in tasks.names()],
        )
        yield _gauge(
            "proxy_clock_skew_seconds",
            "How far the clock of Redis or of an upstream is ahead of ours; behind: negative",
            ("source",),
            [((source,), seconds) for source, seconds in list(skews.seconds.items())],
        )
        yield _counter(
            "proxy_shortages",
            "Times that the process ran out of something of its own",
            ("reason",),
            [((reason,), shortages.episodes[reason]) for reason in DETAILS],
        )
        yield _counter(
            "proxy_shortage_failures",
            "Connections that failed for a shortage of the process or its host",
            ("reason",),
            [((reason,), shortages.failures[reason]) for reason in DETAILS],
        )
        yield _counter(
            "proxy_config_reloads",
            "Reloads of the config",
            ("result",),
            [((result,), count) for result, count in self._reloads.items()],
        )
        yield _gauge(
            "proxy_build_info",
            "Version of the proxy and of what it runs on; always 1",
            ("version", "python", "system"),
            [((self._version, platform.python_version(), platform.system()), 1)],
        )


def _http(routes: list[RouteTally]) -> Iterator[Metric]:
    """Ingress, per route and method. Routes of the same name on two listeners are one endpoint."""
    counts: dict[tuple[str, ...], int] = defaultdict(int)
    durations: dict[tuple[str, ...], list[Distribution]] = defaultdict(list)
    for tally in routes:
        if not tally.egress:
            for name, method in list(tally.methods.items()):
                durations[name, tally.endpoint].append(method)
                for status, count in list(method.statuses.items()):
                    counts[name, tally.endpoint, str(status)] += count
    yield _counter(
        "http_requests",
        "Requests from callers to the service",
        ("method", "endpoint", "status"),
        counts.items(),
    )
    yield _histogram(
        "http_request_duration_seconds",
        "Time from a request's head to the end of its answer",
        ("method", "endpoint"),
        _merged(durations),
    )


def _external(routes: list[RouteTally]) -> Iterator[Metric]:
    """Egress, per upstream and route."""
    counts: dict[tuple[str, ...], int] = defaultdict(int)
    retries: dict[tuple[str, ...], int] = defaultdict(int)
    durations: dict[tuple[str, ...], list[Distribution]] = defaultdict(list)
    for tally in routes:
        if tally.egress:
            key = (tally.service, tally.endpoint)
            retries[key] += tally.retries
            for method in list(tally.methods.values()):
                durations[key].append(method)
                for status, count in list(method.statuses.items()):
                    counts[*key, str(status)] += count
    yield _counter(
        "external_api_calls",
        "Calls of the service to other services",
        ("service", "endpoint", "status"),
        counts.items(),
    )
    yield _histogram(
        "external_api_duration_seconds",
        "Time of a call, all its attempts included",
        ("service", "endpoint"),
        _merged(durations),
    )
    yield _counter(
        "external_api_retries",
        "Attempts beyond the first of each call",
        ("service", "endpoint"),
        retries.items(),
    )


def _routes(routes: list[RouteTally]) -> Iterator[Metric]:
    """Both directions. `listener` is a label too: egress routes are often all named alike."""
    in_flight: dict[tuple[str, ...], int] = defaultdict(int)
    bytes_in: dict[tuple[str, ...], int] = defaultdict(int)
    bytes_out: dict[tuple[str, ...], int] = defaultdict(int)
    errors: dict[tuple[str, ...], int] = defaultdict(int)
    gone: dict[tuple[str, ...], int] = defaultdict(int)
    unexpected: dict[tuple[str, ...], int] = defaultdict(int)
    added: dict[tuple[str, ...], list[Distribution]] = defaultdict(list)
    streams: dict[tuple[str, ...], list[Distribution]] = defaultdict(list)
    for tally in routes:
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
    yield _gauge("proxy_requests_in_flight", "Exchanges in progress", labels, in_flight.items())
    yield _counter("proxy_request_body_bytes", "Bytes of request content", labels, bytes_in.items())
    yield _counter(
        "proxy_response_body_bytes", "Bytes of response content", labels, bytes_out.items()
    )
    yield _histogram(
        "proxy_added_seconds",
        "Duration of an exchange less its upstream's response time: queueing, connecting, the "
        "proxy's own work, and the transfer of the response body",
        labels,
        _merged(added),
    )
    yield _counter(
        "proxy_errors",
        "Exchanges that ended with an error of the proxy's own, or without their client",
        ("listener", "endpoint", "code"),
        errors.items(),
    )
    yield _counter(
        "proxy_client_gone",
        "Exchanges whose client left, by what was under way",
        ("listener", "endpoint", "phase"),
        gone.items(),
    )
    yield _counter(
        "proxy_unexpected_answers",
        "Answers with 2xx whose media type cannot be what the route is for",
        labels,
        unexpected.items(),
    )
    yield _histogram(
        "proxy_stream_seconds",
        "How long WebSockets and event streams lasted",
        labels,
        _merged(streams),
    )


Labels = tuple[str, ...]


def _counter(
    name: str, about: str, labels: Labels, values: Iterable[tuple[Labels, float]]
) -> Metric:
    family = CounterMetricFamily(name, about, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def _gauge(name: str, about: str, labels: Labels, values: Iterable[tuple[Labels, float]]) -> Metric:
    family = GaugeMetricFamily(name, about, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def _histogram(
    name: str, about: str, labels: Labels, values: Iterable[tuple[Labels, Distribution]]
) -> Metric:
    family = HistogramMetricFamily(name, about, labels=labels)
    for label_values, distribution in values:
        buckets: list[Any] = list(distribution.cumulative())
        for place, (value, trace_id, at) in list((distribution.examples or {}).items()):
            exemplar = Exemplar({"trace_id": trace_id}, value, round(at, 3))
            buckets[place] = (*buckets[place], exemplar)
        family.add_metric(label_values, buckets, sum_value=distribution.total)
    return family


def _merged(
    groups: dict[Labels, list[Distribution]],
) -> Iterator[tuple[Labels, Distribution]]:
    for key, distributions in groups.items():
        yield key, merged(distributions)


_QUALITY = re.compile(r";\s*q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)\s*(?:;|$)", re.IGNORECASE)


def wants_openmetrics(accept: str) -> bool:
    """Whether an `Accept` field puts OpenMetrics, in any version, at or above plain text.

    prometheus_client's own choice fails on versions that are not numbers, and repeats the client's
    version in the answer's type.
    """
    quality = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for member in accept.split(","):
        kind = member.partition(";")[0].strip().lower()
        if kind in quality:
            match = _QUALITY.search(member)
            quality[kind] = max(quality[kind], float(match[1]) if match else 1.0)
    best = quality["application/openmetrics-text"]
    return best > 0 and best >= quality["text/plain"]


class _Collector:
    """What the registry asks. It has no `describe`: the families depend on the config."""

    def __init__(self, families: Callable[[], Iterator[Metric]]) -> None:
        self.collect = families


class _Yielding:
    """A registry that lets other threads run while it is written out."""

    def __init__(self, families: Iterator[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for metric in self._families:
            if len(metric.samples) > _SAMPLES_AT_ONCE:  # making it has taken its time, too
                time.sleep(_PAUSE)
            metric.samples = _YieldingList(metric.samples)
            yield metric


class _YieldingList(list[Sample]):
    """Samples that pause after every few. The pause has a length, because a thread that gives the
    interpreter's lock away for no time at all has it back before another one wakes up."""

    def __iter__(self) -> Iterator[Sample]:
        for position, sample in enumerate(super().__iter__(), 1):
            yield sample
            if position % _SAMPLES_AT_ONCE == 0:
                time.sleep(_PAUSE)
