"""The worker that keeps breakers and Redis of one mind, on a store that misbehaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any, cast

import pytest

from proxy.breaker import sync as sync_module
from proxy.breaker.circuit import CircuitBreaker
from proxy.breaker.store import BreakerStore, StoreError
from proxy.breaker.sync import FleetSync
from proxy.clock import SystemClock
from proxy.config.upstreams import Breaker


class Misbehaving:
    """A store whose first calls raise what `first` says, later ones that Redis is away."""

    def __init__(self, first: BaseException) -> None:
        self.first = first
        self.merged = 0
        self.listened = 0
        self.later = asyncio.Event()
        self.missing_rights: dict[str, str] = {}

    async def merge(self, *_: Any) -> None:
        self.merged += 1
        if self.merged == 1:
            raise self.first
        if self.listened > 1:
            self.later.set()
        raise StoreError("away")

    async def listen(self) -> AsyncIterator[None]:
        self.listened += 1
        if self.listened == 1:
            raise self.first
        raise StoreError("away")
        yield

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("first", [asyncio.CancelledError(), ValueError("a fault")], ids=repr)
async def test_both_tasks_outlive_what_the_store_raises(
    first: BaseException, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that ended in silence would leave every breaker waiting for Redis' word."""
    monkeypatch.setattr(sync_module, "RETRY", 0.01)
    clock, store = SystemClock(), Misbehaving(first)
    breaker = CircuitBreaker("app", Breaker(), clock=clock, owner="here", rng=Random(1))
    told: list[bool] = []
    sync = FleetSync(
        {"app": breaker},
        cast(BreakerStore, store),
        clock=clock,
        where="here",
        told_reachable=told.append,
    )
    sync.start()
    async with asyncio.timeout(30):
        await store.later.wait()
    await sync.stop()
    assert told == [False]
    assert caplog.text.count("failed") == 2
