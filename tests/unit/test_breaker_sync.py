"""The worker that keeps breakers and Redis of one mind, on a store that misbehaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any, cast

import pytest

from proxy.config.upstreams import Breaker
from proxy.core.clock import SystemClock
from proxy.resilience.circuit.circuit import CircuitBreaker
from proxy.resilience.circuit.fleet import channel as channel_module
from proxy.resilience.circuit.fleet import sync as sync_module
from proxy.resilience.circuit.fleet.store import BreakerStore, StoreError
from proxy.resilience.circuit.fleet.sync import FleetSync
from proxy.resilience.circuit.messages import ChangeNotice
from tests.jobs_kit import eventually


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
    monkeypatch.setattr(channel_module, "RETRY", 0.01)
    clock, store = SystemClock(), Misbehaving(first)
    breaker = CircuitBreaker("app", Breaker(), clock=clock, owner="here", rng=Random(1))
    notified: list[bool] = []
    sync = FleetSync(
        {"app": breaker},
        cast(BreakerStore, store),
        clock=clock,
        where="here",
        on_reachable=notified.append,
    )
    sync.start()
    async with asyncio.timeout(30):
        await store.later.wait()
    await sync.stop()
    assert notified == [False]
    assert caplog.text.count("failed") == 2


class Mute:
    """A store whose channel is there, and which may not publish, as the first heartbeat finds."""

    def __init__(self) -> None:
        self.missing_rights: dict[str, str] = {}
        self.polls = self.polls_since = 0

    async def listen(self) -> AsyncIterator[ChangeNotice]:
        yield ChangeNotice(published=False)
        await asyncio.Event().wait()

    async def beat(self) -> None:
        self.missing_rights["publish"] = "PUBLISH"

    async def peek(self, breakers: object) -> list[object]:
        self.polls += 1
        self.polls_since += bool(self.missing_rights)
        return []

    async def close(self) -> None:
        pass


async def test_who_may_not_publish_polls_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though a poll was to come much later, as long as the channel seemed to work."""
    monkeypatch.setattr(channel_module, "BEAT", 0.05)
    monkeypatch.setattr(sync_module, "POLL", 0.01)
    monkeypatch.setattr(sync_module, "POLL_QUIET", 3600.0)
    store = Mute()
    sync = FleetSync({}, cast(BreakerStore, store), clock=SystemClock(), where="here")
    sync.start()
    await eventually(lambda: store.polls_since >= 3, "it polls again and again")
    await sync.stop()


async def test_a_subscription_alone_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Perhaps nobody may publish: it polls from the start, before any heartbeat has shown that."""
    monkeypatch.setattr(channel_module, "BEAT", 3600.0)
    monkeypatch.setattr(sync_module, "POLL", 0.01)
    monkeypatch.setattr(sync_module, "POLL_QUIET", 3600.0)
    store = Mute()
    sync = FleetSync({}, cast(BreakerStore, store), clock=SystemClock(), where="here")
    sync.start()
    await eventually(lambda: store.polls >= 5, "it polls again and again")
    assert not store.missing_rights
    await sync.stop()
