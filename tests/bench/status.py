"""`python -m tests.bench.status`: what the status page costs, looked at and not.

Busy routes with three methods and five statuses each, a quarter of an hour of history.
"""

from __future__ import annotations

import random
import sys
import timeit
import tracemalloc
from dataclasses import replace
from typing import Any

import msgspec

from proxy.admin.backend import Check, Readiness
from proxy.admin.status.snapshot import Snapshots, Sources
from proxy.config.upstreams import Upstream
from proxy.core.clock import ManualClock
from proxy.core.redis.client import AnyRedis
from proxy.core.vitals import Vitals
from proxy.forward.watch import UpstreamWatch
from proxy.jobs.service import Mirrors
from proxy.resilience.circuit.registry import BreakerRegistry
from proxy.telemetry.metrics.history import SPAN, STEP
from proxy.telemetry.metrics.registry import Metrics
from tests.telemetry_facts import Facts


class Operated:
    """A proxy with so many routes, ten to an upstream."""

    starting = False

    def __init__(self, routes: int) -> None:
        self.upstreams = [f"upstream-{number}" for number in range(-(-routes // 10))]
        self._routes = [
            {"listener": "in", "direction": "ingress", "route": f"route-{number}",
             "methods": None, "path": "/x", "upstream": self.upstreams[number // 10]}
            for number in range(routes)
        ]  # fmt: skip

    def readiness(self) -> Readiness:
        return Readiness(True, {"listeners": Check(True, "serving")})

    def routes(self) -> list[dict[str, Any]]:
        return list(self._routes)

    def upstream_names(self) -> list[str]:
        return self.upstreams


def no_redis() -> AnyRedis:
    """There are no mirrors that would ask."""
    raise AssertionError


def measure(routes: int) -> None:
    """Print one table."""
    metrics, clock, proxy = Metrics("1"), ManualClock(), Operated(routes)
    breaker = {"targets": ["http://127.0.0.1:1"], "breaker": {}}
    upstreams = {name: Upstream.model_validate(breaker) for name in proxy.upstreams}
    breakers = BreakerRegistry(upstreams, registry=metrics.registry, clock=clock)
    mirrors = Mirrors({}, no_redis, metrics.registry, clock)
    snapshots = Snapshots(
        Sources(proxy, metrics, breakers, mirrors, UpstreamWatch(clock), Vitals()), clock
    )
    chance = random.Random(1)
    tallies = [
        metrics.route("in", route["route"], "ingress", route["upstream"])
        for route in proxy.routes()
    ]
    for name in proxy.upstreams:
        metrics.upstream(name)

    def traffic() -> None:
        for counters in tallies:
            for method in ("GET", "POST", "DELETE"):
                status = chance.choice((200, 202, 404, 500, 503))
                facts = replace(Facts(), method=method, status=status, duration=chance.random())
                counters.begin()
                counters.record(facts)

    tracemalloc.start()
    for _ in range(int(SPAN / STEP)):
        traffic()
        clock.advance(STEP)
        snapshots.record()
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    jobs: dict[str, Any] = {"problem": None, "list": []}
    encode = msgspec.json.encode
    size, all_points = len(encode(snapshots.take(jobs))), len(encode(snapshots.points()))

    def best(operation: Any) -> float:
        return min(timeit.repeat(operation, number=20, repeat=5)) / 20 * 1000

    def step() -> None:
        clock.advance(STEP)
        snapshots.record()

    print(f"{routes} routes, {len(proxy.upstreams)} upstreams")
    print(f"  a step of the history, every 5 s     {best(step):8.3f} ms")
    snapshot = best(lambda: encode(snapshots.take(jobs)))
    print(f"  a snapshot, every 1 s if looked at   {snapshot:8.3f} ms")
    print(f"  its size                             {size / 1000:8.1f} kB")
    print(f"  all points, once for each viewer     {all_points / 1000:8.1f} kB")
    print(f"  memory of a quarter of an hour       {kept / 1000:8.0f} kB")


if __name__ == "__main__":
    for argument in sys.argv[1:] or ("12", "100"):
        measure(int(argument))
