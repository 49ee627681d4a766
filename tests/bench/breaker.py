"""`python -m tests.bench.breaker`: what a breaker costs a request, and how fast a trip travels.

Decision costs are the best of five batches. Propagation is measured between boards of one process
on a Redis of its own: from the failure that trips one of them to the refusal in the last of them.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path

import uvloop
from prometheus_client import CollectorRegistry

from proxy.config.schema import Redis
from proxy.config.upstreams import Breaker, Retry, Upstream
from proxy.core.clock import SystemClock
from proxy.core.errors import CircuitOpen
from proxy.demo.redis_server import RedisServer
from proxy.resilience.circuit.circuit import CircuitBreaker
from proxy.resilience.circuit.registry import BreakerRegistry
from proxy.resilience.circuit.states import CircuitEvent, State
from proxy.resilience.retry import Ended, RetryPolicy

_BATCH = 20_000
_SIDECARS = 20
_TRIPS = 30


def _breaker(**rules: object) -> CircuitBreaker:
    return CircuitBreaker("svc", Breaker.model_validate(rules), clock=SystemClock(), owner="bench")


def _microseconds(operation: Callable[[], object]) -> float:
    return min(timeit.repeat(operation, number=_BATCH, repeat=5)) / _BATCH * 1e6


def decisions() -> list[tuple[str, float]]:
    """Each kind of decision and its microseconds."""
    now = time.monotonic
    plain = _breaker()
    watched = _breaker(failure_ratio=0.5, slow_call="1s", slow_ratio=0.5)
    opened = _breaker()
    opened.force(CircuitEvent.FORCE_OPEN, now(), "bench", 3600.0)
    failing = _breaker(failure_threshold=10**9)
    policy = RetryPolicy(Retry())

    def refused() -> None:
        try:
            opened.admit(now())
        except CircuitOpen:
            return

    def retry() -> None:
        moment = now()
        policy.begin("GET", moment, idempotency_key=False).after(Ended("503", True), moment)

    return [
        ("closed: admit + success", _microseconds(lambda: plain.admit(now()).success(now(), 0.1))),
        (
            "closed with ratios: admit + success",
            _microseconds(lambda: watched.admit(now()).success(now(), 0.1)),
        ),
        (
            "closed: admit + failure, kept for the log",
            _microseconds(lambda: failing.admit(now()).failure(now(), "503", "http://h", "id")),
        ),
        ("open: refusal", _microseconds(refused)),
        ("retry: begin + verdict", _microseconds(retry)),
    ]


async def propagation(url: str) -> list[float]:
    """Milliseconds from a trip in one sidecar to open in all, one figure per trip."""
    upstream = Upstream.model_validate(
        {"targets": ["http://h"], "breaker": {"failure_threshold": 1, "open_for": "1h"}}
    )
    registries = [
        BreakerRegistry(
            {"svc": upstream},
            registry=CollectorRegistry(),
            redis=Redis.model_validate({"url": url}),
            owner=f"bench-{number}",
        )
        for number in range(_SIDECARS)
    ]
    for registry in registries:
        await registry.start()
    await asyncio.sleep(0.3)
    breakers = [breaker for registry in registries if (breaker := registry.get("svc")) is not None]

    async def all_in(state: State) -> None:
        # Not an event: it would be part of what is measured.
        while any(breaker.state is not state for breaker in breakers):  # noqa: ASYNC110
            await asyncio.sleep(0)

    times = []
    for number in range(_TRIPS):
        began = time.monotonic()
        breakers[number % _SIDECARS].admit(began).failure(began, "503")
        await all_in(State.OPEN)
        times.append((time.monotonic() - began) * 1000)
        await registries[0].force("svc", "reset", "bench")
        await all_in(State.CLOSED)
    for registry in registries:
        await registry.stop()
    return times


def main() -> None:
    """Print both tables."""
    logging.getLogger("proxy.resilience").setLevel(logging.ERROR)
    print("| decision | µs |\n|---|---|")
    for title, cost in decisions():
        print(f"| {title} | {cost:.2f} |")
    with tempfile.TemporaryDirectory() as directory:
        server = RedisServer(Path(directory))
        server.start()
        try:
            times = uvloop.run(propagation(server.url))
        finally:
            server.kill()
    print(
        f"\n{_TRIPS} trips in a fleet of {_SIDECARS}: open in all after "
        f"median {statistics.median(times):.1f} ms, worst {max(times):.1f} ms"
    )


if __name__ == "__main__":
    main()
