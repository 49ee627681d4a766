"""The metrics registry: what is counted, and under which names.

Names without `proxy_` come from the sprint document. A label value is a name from the config, a
status, a known method or one of our own codes, never text that a client sent.

Counts outlive reloads: the same labels give the same tally. A removed route keeps its last values,
because `rate()` takes a counter that vanishes for a restart.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics_core import Metric

from proxy.config.metric_names import claims
from proxy.core.process.shortage import DETAILS
from proxy.core.vitals import Vitals
from proxy.telemetry.metrics.counters import (
    BUCKETS,
    Distribution,
    ListenerTally,
    RouteTally,
    UpstreamTally,
)
from proxy.telemetry.metrics.exposition import write_out
from proxy.telemetry.metrics.families import (
    counter,
    external_families,
    gauge,
    histogram,
    http_families,
    route_families,
)

#: Types of families to which the library adds `_created` series.
_WITH_CREATED = frozenset({"counter", "histogram", "summary"})

Direction = Literal["ingress", "egress"]

#: Yields families from outside the proxy. It gets the names that are taken, and adds its own.
External = Callable[[set[str]], Iterator[Metric]]


class Metrics:
    """One registry per proxy. Other parts register ordinary metrics in `registry`. The `external`
    ones come last and see which names are taken."""

    def __init__(self, version: str, vitals: Vitals | None = None) -> None:
        self._vitals = vitals or Vitals()
        self.registry = CollectorRegistry()
        self.external: list[External] = []
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
        """The tally of an upstream's times. Response times are counted only for upstreams that have
        been requested here."""
        return self._upstreams.setdefault(name, UpstreamTally(name))

    def route_tallies(self) -> list[RouteTally]:
        """The tallies of every route since the start."""
        return list(self._routes.values())

    def listener_tallies(self) -> list[ListenerTally]:
        """The tallies of every listener since the start."""
        return list(self._listeners.values())

    def upstream_tallies(self) -> list[UpstreamTally]:
        """The tallies of every upstream since the start."""
        return list(self._upstreams.values())

    def reloaded(self, problem: str | None = None) -> None:
        """Count a reload of the config, or one that was refused for this problem."""
        self._reloads["ok" if problem is None else "refused"] += 1
        self.reload_problem = problem

    # --- how it is written out ------------------------------------------------------------------

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics as text, and its content type. Takes milliseconds: call it in a thread."""
        return write_out(self.collect(), accept)

    def collect(self) -> Iterator[Metric]:
        """All families: the registry's, then the external ones."""
        taken: set[str] = set()
        for metric in self.registry.collect():
            taken |= claims(metric.name, metric.type)
            # No query of ours reads them. The library's own switch is global, so it would also
            # change the metrics of a program that embeds us.
            if metric.type in _WITH_CREATED:
                metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric
        for external in self.external:
            yield from external(taken)

    def families(self) -> Iterator[Metric]:
        """Every family that is filled here."""
        routes = list(self._routes.values())
        yield from http_families(routes)
        yield from external_families(routes)
        yield from route_families(routes)
        yield from self._connections()
        yield from self._process()

    def _connections(self) -> Iterator[Metric]:
        listeners = list(self._listeners.values())
        yield gauge(
            "proxy_client_connections",
            "Open connections of clients",
            ("listener",),
            [((tally.name,), tally.open) for tally in listeners],
        )
        # Not `proxy_client_connections_total`: in OpenMetrics a counter's family is named without
        # the suffix, and that name is the gauge's.
        yield counter(
            "proxy_client_connections_accepted",
            "Connections of clients accepted",
            ("listener",),
            [((tally.name,), tally.accepted) for tally in listeners],
        )
        yield counter(
            "proxy_client_connections_discarded",
            "Connections of clients closed before they were served",
            ("listener", "reason"),
            [
                ((tally.name, reason), count)
                for tally in listeners
                for reason, count in tally.discarded.items()
            ],
        )
        yield gauge(
            "proxy_certificate_expiry_timestamp_seconds",
            "When the first certificate in a listener's chain expires, in Unix seconds",
            ("listener",),
            [
                ((tally.name,), tally.certificate_ends)
                for tally in listeners
                if tally.certificate_ends is not None
            ],
        )
        yield counter(
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
        yield gauge(
            "proxy_upstream_connections",
            "Open connections to upstreams",
            ("upstream", "state"),
            states.items(),
        )
        upstreams = list(self._upstreams.values())
        yield histogram(
            "proxy_upstream_connect_seconds",
            "Time to open a connection to an upstream, TLS included",
            ("upstream",),
            [((tally.name,), tally.connects) for tally in upstreams],
        )
        yield histogram(
            "proxy_upstream_response_seconds",
            "Time from the request head sent to the response head seen",
            ("upstream",),
            [((tally.name,), tally.responses) for tally in upstreams],
        )
        yield histogram(
            "proxy_upstream_abandoned_seconds",
            "Time from the request sent until the client left, without a response head",
            ("upstream",),
            [((tally.name,), tally.abandoned) for tally in upstreams],
        )

    def _process(self) -> Iterator[Metric]:
        tasks, skews, shortages = self._vitals.tasks, self._vitals.skews, self._vitals.shortages
        yield histogram(
            "proxy_event_loop_lag_seconds",
            "Delay of a timer of the event loop, sampled twice a second",
            (),
            [((), self.loop_lag)],
        )
        yield counter(
            "proxy_log_lines_dropped",
            "Log lines lost because the output was too slow or broken",
            (),
            [((), self.log_lines_dropped())],
        )
        yield counter(
            "proxy_task_deaths",
            "Deaths of background tasks, after each of which the task is restarted",
            ("task",),
            [((name,), tasks.deaths[name]) for name in tasks.names()],
        )
        yield gauge(
            "proxy_clock_skew_seconds",
            "How far the clock of Redis or of an upstream is ahead of ours; negative if behind",
            ("source",),
            [((source,), seconds) for source, seconds in list(skews.seconds.items())],
        )
        yield counter(
            "proxy_shortages",
            "Episodes in which the process or its host ran out of a resource",
            ("reason",),
            [((reason,), shortages.episodes[reason]) for reason in DETAILS],
        )
        yield counter(
            "proxy_shortage_failures",
            "Connections that failed because of a shortage of the process or its host",
            ("reason",),
            [((reason,), shortages.failures[reason]) for reason in DETAILS],
        )
        yield counter(
            "proxy_config_reloads",
            "Reloads of the config",
            ("result",),
            [((result,), count) for result, count in self._reloads.items()],
        )
        yield gauge(
            "proxy_build_info",
            "Version of the proxy and of what it runs on; always 1",
            ("version", "python", "system"),
            [((self._version, platform.python_version(), platform.system()), 1)],
        )


class _Collector:
    """What the registry asks. It has no `describe`: the families depend on the config."""

    def __init__(self, families: Callable[[], Iterator[Metric]]) -> None:
        self.collect = families
