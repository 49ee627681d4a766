"""Breaker registries that share breakers through a real Redis: what their tests have in common."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from proxy.config.schema import Redis
from proxy.config.upstreams import Upstream
from proxy.resilience.circuit.circuit import CircuitBreaker
from proxy.resilience.circuit.fleet.store import BreakerStore, Glance
from proxy.resilience.circuit.registry import BreakerRegistry
from proxy.resilience.circuit.states import State
from tests.http1 import PATIENCE

now = time.monotonic

#: A silent Redis is given up soon. Not where its answer counts: a slow machine takes longer.
HASTY = {"connect_timeout": "300ms", "command_timeout": "300ms"}

#: A silent Redis is waited for, for longer than any test: whoever waits for it stands out.
PATIENT = {"connect_timeout": "1h", "command_timeout": "1h"}


class Sidecar:
    """A breaker registry with its metrics registry."""

    def __init__(
        self, name: str, url: str, settings: dict[str, Any], *, lease: float = 1.0, **rules: Any
    ) -> None:
        self.registry = CollectorRegistry()
        self.upstreams = {
            "svc": Upstream.model_validate(
                {
                    "targets": ["http://h"],
                    # A probe's lease lasts as long as both together.
                    "timeouts": {"connect": "1ms", "response": f"{lease:g}s"},
                    "breaker": {"open_for": "60s", **rules},
                }
            )
        }
        redis = Redis.model_validate({"url": url, **settings})
        self.breakers = BreakerRegistry(
            self.upstreams, registry=self.registry, redis=redis, owner=name
        )

    @property
    def breaker(self) -> CircuitBreaker:
        breaker = self.breakers.get("svc")
        assert breaker is not None
        return breaker

    def fail(self, times: int) -> None:
        for _ in range(times):
            self.breaker.admit(now()).failure(now(), "503", "http://h", f"id-{times}")

    def transitions(self) -> float:
        return sum(
            sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == "circuit_breaker_transitions_total"
        )


@asynccontextmanager
async def fleet(
    url: str, count: int = 2, settings: dict[str, Any] | None = None, **rules: Any
) -> AsyncIterator[list[Sidecar]]:
    """`count` sidecars on one Redis, started."""
    sidecars = [Sidecar("abcdefgh"[n], url, settings or {}, **rules) for n in range(count)]
    for sidecar in sidecars:
        await sidecar.breakers.start()
    try:
        yield sidecars
    finally:
        for sidecar in sidecars:
            await sidecar.breakers.stop()


async def until(true: Callable[[], bool], within: float = PATIENCE) -> None:
    """Wait until `true()`; fails the test when that has not come to pass `within` seconds."""
    began = now()
    while not true():
        if now() - began >= within:
            for task in asyncio.all_tasks():
                task.print_stack()  # who waits for what: the only trace that a hang leaves
            pytest.fail("it did not come to pass")
        await asyncio.sleep(0.002)


async def all_in(sidecars: list[Sidecar], state: State) -> None:
    await until(lambda: all(s.breaker.state is state for s in sidecars))


def polls_under_way(monkeypatch: pytest.MonkeyPatch) -> list[BreakerStore]:
    """The stores of the sidecars to come that have asked Redis and not been answered yet: whoever
    counts commands must not begin in the middle of a poll."""
    under_way: list[BreakerStore] = []
    peek = BreakerStore.peek

    async def counted(store: BreakerStore, breakers: Sequence[CircuitBreaker]) -> list[Glance]:
        under_way.append(store)
        try:
            return await peek(store, breakers)
        finally:
            under_way.remove(store)

    monkeypatch.setattr(BreakerStore, "peek", counted)
    return under_way


def lines(caplog: pytest.LogCaptureFixture, event: str) -> list[Any]:
    return [record for record in caplog.records if getattr(record, "event", "") == event]
