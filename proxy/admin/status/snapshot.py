"""One snapshot: everything that the status page shows, as one JSON-ready document.

Reads counts and states that are in memory anyway; waits for nothing. What it takes is measured in
tests/bench/status.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from proxy import __version__
from proxy.admin.backend import AdminBackend
from proxy.admin.status.health_summary import is_slow, judge
from proxy.admin.status.own_usage import OwnUsage
from proxy.core.clock import Clock, iso_utc
from proxy.core.memory.budget import MemoryBudget
from proxy.core.vitals import Vitals
from proxy.forward.watch import UpstreamWatch
from proxy.jobs.service import Mirrors
from proxy.resilience.circuit.registry import BreakerRegistry
from proxy.telemetry.metrics.counters import FINE_BUCKETS, RouteTally
from proxy.telemetry.metrics.history import History
from proxy.telemetry.metrics.rates import (
    CounterReading,
    Summary,
    nothing,
    read_distribution,
    read_routes,
    together,
)
from proxy.telemetry.metrics.registry import Metrics

NO_ROUTE = "-"  #: the name under which is counted what no route matched
_LOOP, _SHED = "process:loop_lag", "process:shed"
#: Checks of `/readyz` that have a place of their own in the document.
_SHOWN_ELSEWHERE = frozenset({"listeners", "tasks", "mirror", "breakers"})
_FINE = ("upstream:", "abandoned:", "unfinished:", "waits:")


@dataclass(frozen=True, slots=True)
class Sources:
    """The sources of the figures."""

    proxy: AdminBackend
    metrics: Metrics
    breakers: BreakerRegistry
    mirrors: Mirrors
    watch: UpstreamWatch
    vitals: Vitals
    #: Name, free bytes and total bytes of each directory that is watched.
    disks: Callable[[], Sequence[tuple[str, int, int]]] = tuple
    memory: MemoryBudget = field(default_factory=MemoryBudget)
    #: Client connections closed for lack of memory since the start.
    shed: Callable[[], int] = int


class Snapshots:
    """Reads the figures, keeps the history, and builds the documents."""

    def __init__(self, sources: Sources, clock: Clock) -> None:
        self._sources = sources
        self._clock = clock
        self._started = clock.monotonic()
        self.history = History()
        self._own_use = OwnUsage()
        self.traces = False  #: whether the admin API has `/api/trace`

    def record(self) -> None:
        """Record one step of the history; call it every `history.STEP` seconds."""
        self._own_use.record(self._clock.monotonic())
        routes = self._routes()
        readings = self._read(routes, self._tallies(routes))
        fine = {name: FINE_BUCKETS for name in readings if name.startswith(_FINE)}
        self.history.record(self._clock.monotonic(), readings, fine)

    def _routes(self) -> list[dict[str, Any]]:
        """The routes in force, and one per listener for requests that no route matched, if any."""
        routes = self._sources.proxy.routes()
        listeners = {route["listener"]: route["direction"] for route in routes}
        unmatched = [
            {
                "listener": tally.listener,
                "direction": listeners[tally.listener],
                "route": NO_ROUTE,
                "methods": None,
                "path": None,
                "upstream": NO_ROUTE,
            }
            for tally in self._sources.metrics.route_tallies()
            if tally.endpoint == NO_ROUTE and tally.methods and tally.listener in listeners
        ]
        return routes + unmatched

    def _tallies(self, routes: Sequence[Mapping[str, Any]]) -> dict[str, list[RouteTally]]:
        """By route."""
        found: dict[tuple[str, str, str], list[RouteTally]] = defaultdict(list)
        for tally in self._sources.metrics.route_tallies():
            found[tally.listener, tally.endpoint, tally.service].append(tally)
        return {
            _name(route): found[route["listener"], route["route"], route["upstream"]]
            for route in routes
        }

    def _read(
        self, routes: Sequence[Mapping[str, Any]], tallies: Mapping[str, Sequence[RouteTally]]
    ) -> dict[str, CounterReading]:
        """The readings of each route, and of each upstream: `service:NAME` its calls,
        `upstream:NAME` its response times, `abandoned:NAME` how long it was silent before clients
        left, `unfinished:NAME` how long it had been sending when clients left, and `waits:NAME`
        long waits of requests for a connection."""
        metrics = self._sources.metrics
        readings = {name: read_routes(mine) for name, mine in tallies.items()}
        names = self._sources.proxy.upstream_names()
        services: dict[str, list[CounterReading]] = {name: [] for name in names}
        for route in routes:
            if route["upstream"] in services:
                services[route["upstream"]].append(readings[_name(route)])
        for name, mine in services.items():
            readings[f"service:{name}"] = together(mine)
        for upstream in metrics.upstream_tallies():
            if upstream.name in services:
                readings[f"upstream:{upstream.name}"] = read_distribution(upstream.responses)
                readings[f"abandoned:{upstream.name}"] = read_distribution(upstream.abandoned)
                readings[f"unfinished:{upstream.name}"] = read_distribution(upstream.unfinished)
                readings[f"waits:{upstream.name}"] = read_distribution(upstream.waits)
        readings[_LOOP] = read_distribution(metrics.loop_lag)
        readings[_SHED] = replace(nothing(), errors=self._sources.shed())
        return readings

    def take(self, jobs: dict[str, Any]) -> dict[str, Any]:
        """A new snapshot; `jobs` comes from `JobWatch.document`."""
        now, moment = self._clock.time(), self._clock.monotonic()
        routes = self._routes()
        tallies = self._tallies(routes)
        readings = self._read(routes, tallies)
        listening = self._sources.proxy.readiness().checks.get("listeners")
        document: dict[str, Any] = {
            "at": iso_utc(now),
            "version": __version__,
            "started": iso_utc(now - (moment - self._started)),
            "uptime": round(moment - self._started, 3),
            "state": listening.detail if listening else "serving",
            "step": self.history.steps,
            "routes": [self._route(route, tallies, readings, moment) for route in routes],
            "upstreams": self._upstreams(readings, moment),
            "mirrors": [mirror.state() for mirror in self._sources.mirrors.by_name.values()],
            "redis": {"breakers": self._sources.breakers.redis_reachable},
            "jobs": jobs,
            "traces": self.traces,
            "process": self._process(readings, moment),
            "checks": [
                {"check": name, "detail": check.detail}
                for name, check in self._sources.proxy.readiness().checks.items()
                if not check.ok and name.partition(":")[0] not in _SHOWN_ELSEWHERE
            ],
            "clocks": [
                {"source": source, "ahead": round(seconds, 1)}
                for source, seconds in sorted(self._sources.vitals.skews.seconds.items())
            ],
            "disks": [
                {"directory": name, "free": free, "size": size}
                for name, free, size in self._sources.disks()
            ],
            "certificates": [
                {
                    "listener": tally.name,
                    "expires": iso_utc(tally.certificate_ends),
                    "days": round((tally.certificate_ends - now) / 86400, 1),
                }
                for tally in self._sources.metrics.listener_tallies()
                if tally.certificate_ends is not None
            ],
        }
        document["health"] = judge(document, now).document()
        return document

    def _route(
        self,
        route: Mapping[str, Any],
        tallies: Mapping[str, Sequence[RouteTally]],
        readings: Mapping[str, CounterReading],
        moment: float,
    ) -> dict[str, Any]:
        name = _name(route)
        summary = self.history.summary(name, moment, readings.get(name, nothing()))
        return {
            "listener": route["listener"],
            "route": route["route"],
            "direction": route["direction"],
            "methods": route["methods"],
            "path": route["path"],
            "upstream": route["upstream"],
            "in_flight": sum(tally.in_flight for tally in tallies.get(name, ())),
            "served": round(summary.served, 3),
            "last_failure": next(
                (one.last_failure for one in tallies.get(name, ()) if one.last_failure), None
            )
            if summary.errors
            else None,
            "limited": summary.limited,
            "unexpected": summary.unexpected,
            "unexpected_type": next(
                (one.unexpected_type for one in tallies.get(name, ()) if one.unexpected_type), None
            ),
            "usual_p50": _rounded(self.history.usual(name)) if is_slow(summary.p50) else None,
            **_figures(summary),
        }

    def _upstreams(
        self, readings: Mapping[str, CounterReading], moment: float
    ) -> list[dict[str, Any]]:
        connections = {
            name: {"idle": idle, "active": active}
            for name, idle, active in self._sources.metrics.upstream_connections()
        }
        breakers = {row["name"]: row for row in self._sources.breakers.list()}
        found = []
        for name in self._sources.proxy.upstream_names():
            calls, times = f"service:{name}", f"upstream:{name}"
            figures = self.history.summary(calls, moment, readings[calls])
            answers = self.history.summary(
                times, moment, readings.get(times, nothing(FINE_BUCKETS))
            )
            reasons = self._sources.watch.reasons(name)
            silences, unfinished, waits = (
                self.history.summary(one, moment, readings.get(one, nothing(FINE_BUCKETS)))
                for one in (f"abandoned:{name}", f"unfinished:{name}", f"waits:{name}")
            )
            found.append(
                {
                    "name": name,
                    "abandoned": silences.count,
                    "silence": _rounded(silences.mean),
                    "unfinished": unfinished.count,
                    "unfinished_after": _rounded(unfinished.mean),
                    "waits": waits.count,
                    "waited": _rounded(waits.mean),
                    **_figures(figures),
                    # The upstream's own times, without our queues and retries.
                    **_percentiles(answers),
                    "connections": connections.get(name, {"idle": 0, "active": 0}),
                    "targets": [
                        {
                            "target": target,
                            "healthy": healthy,
                            "ejected": ejected,
                            "reason": None if healthy else reasons.get(target),
                        }
                        for target, healthy, ejected in self._sources.watch.targets(name)
                    ],
                    "breaker": breakers.get(name),
                }
            )
        return found

    def _process(self, readings: Mapping[str, CounterReading], moment: float) -> dict[str, Any]:
        lag = self.history.summary(_LOOP, moment, readings[_LOOP])
        listeners = self._sources.metrics.listener_tallies()
        memory = self._sources.memory
        return {
            "buffers": {
                "level": memory.level.label,
                "used": memory.used,
                "limit": memory.limit,
                "shed": self.history.summary(_SHED, moment, readings[_SHED]).errors,
            },
            **self._own_use.document(),
            "client_connections": sum(tally.open for tally in listeners),
            "reload_problem": self._sources.metrics.reload_problem,
            "loop_lag_p99": _rounded(lag.p99),
            "log_lines_dropped": self._sources.metrics.log_lines_dropped(),
            "tasks_dying": [
                {"task": task.name, "deaths": task.deaths, "error": task.error}
                for task in self._sources.vitals.tasks.reports()
                if task.troubled
            ],
        }

    def points(self, since: int = 0) -> dict[str, Any]:
        """The data of the charts: for each series the points that are kept after step `since`;
        `last` is the newest step."""
        history = self.history
        return {
            "last": history.steps,
            "series": {
                name: history.points(name, since)
                for name in history.names()
                if name.startswith(("route:", "service:"))
            },
        }


def _name(route: Mapping[str, Any]) -> str:
    return f"route:{route['listener']}/{route['route']}"


def _figures(summary: Summary) -> dict[str, Any]:
    return {
        "seconds": round(summary.seconds, 1),
        "requests": summary.count,
        "rate": round(summary.rate, 3),
        "errors": summary.errors,
        "error_share": round(summary.error_share, 5),
        "refused": summary.refused,
        "refused_share": round(summary.refused_share, 5),
        **_percentiles(summary),
    }


def _percentiles(summary: Summary) -> dict[str, float | None]:
    return {
        "p50": _rounded(summary.p50),
        "p95": _rounded(summary.p95),
        "p99": _rounded(summary.p99),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 5)
