"""The breakers' metrics, and one log line per transition."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy.resilience.circuit.circuit import CircuitBreaker
from proxy.resilience.circuit.messages import Transition
from proxy.resilience.circuit.states import State

_log = logging.getLogger("proxy.resilience")

# Exported from zero on: for an alert, a counter that first appears as 1 has not increased.
_USUAL = (
    (State.CLOSED, State.OPEN),
    (State.OPEN, State.HALF_OPEN),
    (State.HALF_OPEN, State.OPEN),
    (State.HALF_OPEN, State.CLOSED),
)


class BreakerMetrics(Collector):
    """State and counts are read from `breakers` at each scrape; only transitions are counted
    live."""

    def __init__(
        self, breakers: Mapping[str, CircuitBreaker], registry: CollectorRegistry, *, shared: bool
    ) -> None:
        self._breakers = breakers
        self._transitions = Counter(
            "circuit_breaker_transitions_total",
            "State changes, counted by the process of the fleet that made them",
            ["service", "from_state", "to_state"],
            registry=registry,
        )
        self.delay = Histogram(
            "proxy_breaker_propagation_seconds",
            "From a transition in Redis to its arrival here",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
            registry=registry,
        )
        self.redis_up: Gauge | None = None
        if shared:
            self.redis_up = Gauge(
                "proxy_breaker_redis_up",
                "1 while breakers are shared through Redis, 0 while each process decides alone",
                registry=registry,
            )
        registry.register(self)

    def begin(self, service: str) -> None:
        """A breaker was created: export its usual transitions from zero on."""
        for before, after in _USUAL:
            self._transitions.labels(service, before.value, after.value)

    def reachable(self, up: bool) -> None:
        """Redis has become reachable or unreachable."""
        if self.redis_up is not None:
            self.redis_up.set(up)

    def collect(self) -> Iterable[Metric]:
        """The gauges and counters kept in the breakers themselves."""
        state = GaugeMetricFamily(
            "circuit_breaker_state", "0 closed, 1 open, 2 half-open", labels=["service"]
        )
        rejections = CounterMetricFamily(
            "proxy_breaker_rejections", "Calls refused by an open breaker", labels=["service"]
        )
        probes = CounterMetricFamily(
            "proxy_breaker_probes", "Probe calls to the upstream", labels=["service"]
        )
        late = CounterMetricFamily(
            "proxy_breaker_late_outcomes",
            "Outcomes of calls admitted before a state change, not counted",
            labels=["service"],
        )
        flying = GaugeMetricFamily(
            "proxy_breaker_probes_in_flight",
            "Probes of this process in progress",
            labels=["service"],
        )
        waiting = GaugeMetricFamily(
            "proxy_breaker_held", "Calls held at an open circuit now", labels=["service"]
        )
        held = CounterMetricFamily(
            "proxy_breaker_holds",
            "Calls that were held at an open circuit, whatever the outcome",
            labels=["service"],
        )
        for name, breaker in self._breakers.items():
            state.add_metric([name], breaker.state.gauge)
            rejections.add_metric([name], breaker.rejections)
            probes.add_metric([name], breaker.probes_started)
            late.add_metric([name], breaker.late)
            flying.add_metric([name], breaker.probes_in_flight)
            waiting.add_metric([name], len(breaker.held))
            held.add_metric([name], breaker.held.total)
        return state, rejections, probes, late, flying, waiting, held

    def transition(self, breaker: CircuitBreaker, made: Transition) -> None:
        """Count and log `made` if this process made it; others' get only a debug line."""
        facts: dict[str, Any] = {
            "event": "breaker_transition",
            "service": breaker.name,
            "from_state": made.from_state.value,
            "to_state": made.to_state.value,
            "reason": made.reason,
            "generation": made.generation,
            "by": made.by,
        }
        if not made.mine:
            _log.debug(
                "Circuit of %s: %s to %s, by %s: %s",
                breaker.name,
                made.from_state,
                made.to_state,
                made.by,
                made.reason,
                extra=facts,
            )
            return
        if made.from_state is not made.to_state:
            self._transitions.labels(breaker.name, made.from_state.value, made.to_state.value).inc()
        if made.to_state in (State.OPEN, State.FORCED_OPEN):
            facts["open_for"] = round(made.open_for, 3)
            facts["failures"] = [failure.document() for failure in made.failures]
        _log.warning(
            "Circuit of %s: %s to %s: %s",
            breaker.name,
            made.from_state,
            made.to_state,
            made.reason,
            extra=facts,
        )
