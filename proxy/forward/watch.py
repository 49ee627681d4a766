"""Health checks of targets, and the metrics of targets and bulkheads.

Both follow the plans in force. After a reload, upstreams that did not change keep their checks and
the results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy.config.upstreams import Upstream
from proxy.core.clock import Clock
from proxy.core.vitals import Vitals
from proxy.forward.routing.plan import UpstreamPlan
from proxy.resilience.health_checks import HealthProber


class UpstreamWatch(Collector):
    """Runs the health checks of all upstreams and collects their metrics. `follow` starts it,
    `stop` ends it."""

    def __init__(self, clock: Clock, vitals: Vitals | None = None) -> None:
        self._clock = clock
        self._vitals = vitals or Vitals()
        self._plans: Mapping[str, UpstreamPlan] = {}
        self._probers: dict[str, tuple[UpstreamPlan, HealthProber]] = {}

    def show(self, plans: Mapping[str, UpstreamPlan]) -> None:
        """Set the plans to collect metrics from."""
        self._plans = plans

    async def follow(
        self, upstreams: Mapping[str, Upstream], plans: Mapping[str, UpstreamPlan]
    ) -> None:
        """Check these upstreams and no others. Raises nothing, because the plans were compiled."""
        self.show(plans)
        for name, (plan, prober) in list(self._probers.items()):
            if plans.get(name) is not plan:
                del self._probers[name]
                await prober.stop()
        for name, plan in plans.items():
            rules = upstreams[name].health
            if rules is None or plan.health is None or name in self._probers:
                continue
            prober = HealthProber(
                name,
                rules,
                {pool.label: pool.target for pool in plan.upstream.pools},
                plan.health,
                clock=self._clock,
                vitals=self._vitals,
                on_answer=self._recovery(plan),
            )
            self._probers[name] = (plan, prober)
            prober.start()

    def _recovery(self, plan: UpstreamPlan) -> Callable[[str, int | None, float], None] | None:
        """A callback by which a good health check ends the open time of the upstream's circuit."""
        breaker = plan.breaker
        if breaker is None:
            return None

        def on_answer(label: str, status: int | None, asked_at: float) -> None:
            if status is not None and status not in plan.failing:
                why = f"the health check of {label} is good: {status}"
                breaker.proven_well(self._clock.monotonic(), asked_at, why)

        return on_answer

    async def stop(self) -> None:
        """End all health checks."""
        await self.follow({}, {})

    def targets(self, upstream: str) -> list[tuple[str, bool, bool]]:
        """(label, healthy, ejected) of an upstream's targets; none for an unknown one."""
        plan = self._plans.get(upstream)
        if plan is None:
            return []
        labels = [pool.label for pool in plan.upstream.pools]
        if plan.health is None:
            return [(label, True, False) for label in labels]
        unwell, out = plan.health.unhealthy(), plan.health.ejected(self._clock.monotonic())
        return [(label, label not in unwell, label in out) for label in labels]

    def reasons(self, upstream: str) -> dict[str, str]:
        """Why the last health check failed, by target."""
        watched = self._probers.get(upstream)
        return {} if watched is None else dict(watched[1].unwell)

    def collect(self) -> Iterable[Metric]:
        """The gauges, read at a scrape."""
        target = ["upstream", "target"]
        healthy = GaugeMetricFamily(
            "proxy_target_healthy", "1 unless the target's health checks fail", labels=target
        )
        ejected = GaugeMetricFamily(
            "proxy_target_ejected", "1 while the target is ejected for failed calls", labels=target
        )
        running = GaugeMetricFamily(
            "proxy_bulkhead_in_flight", "Requests in the bulkhead", labels=["upstream"]
        )
        waiting = GaugeMetricFamily(
            "proxy_bulkhead_waiting", "Requests waiting for the bulkhead", labels=["upstream"]
        )
        rejections = CounterMetricFamily(
            "proxy_bulkhead_rejections", "Requests refused by the bulkhead", labels=["upstream"]
        )
        unbuffered = GaugeMetricFamily(
            "proxy_unbuffered_in_flight",
            "Requests in progress whose body the spool did not take",
            labels=["upstream"],
        )
        queued = GaugeMetricFamily(
            "proxy_unbuffered_waiting",
            "Requests waiting for a connection whose body the spool did not take",
            labels=["upstream"],
        )
        now = self._clock.monotonic()
        for name, plan in self._plans.items():
            if plan.health is not None:
                unwell, out = plan.health.unhealthy(), plan.health.ejected(now)
                for pool in plan.upstream.pools:
                    healthy.add_metric([name, pool.label], pool.label not in unwell)
                    ejected.add_metric([name, pool.label], pool.label in out)
            if plan.bulkhead is not None:
                running.add_metric([name], plan.bulkhead.running)
                waiting.add_metric([name], plan.bulkhead.waiting)
                rejections.add_metric([name], plan.bulkhead.rejections)
            if plan.unbuffered is not None:
                unbuffered.add_metric([name], plan.unbuffered.running)
                queued.add_metric([name], plan.unbuffered.waiting)
        return healthy, ejected, running, waiting, rejections, unbuffered, queued
