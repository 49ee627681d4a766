"""The registry without Redis: list, force, reload, metrics."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from proxy.config.upstreams import Upstream
from proxy.core.clock import ManualClock
from proxy.core.errors import BadRequest
from proxy.resilience.circuit.registry import BreakerRegistry
from proxy.resilience.circuit.states import State


def upstreams(**rules: Any) -> dict[str, Upstream]:
    """One upstream with a breaker, one without."""
    return {
        "svc": Upstream.model_validate({"targets": ["http://h"], "breaker": rules}),
        "plain": Upstream.model_validate({"targets": ["http://h"]}),
    }


def new_registry(**rules: Any) -> tuple[BreakerRegistry, ManualClock, CollectorRegistry]:
    """A registry with a clock by hand."""
    clock, registry = ManualClock(), CollectorRegistry()
    return BreakerRegistry(upstreams(**rules), registry=registry, clock=clock), clock, registry


def trip(which: BreakerRegistry, clock: ManualClock) -> None:
    """Five failures in a row."""
    breaker = which.get("svc")
    assert breaker is not None
    for _ in range(5):
        breaker.admit(clock.monotonic()).failure(clock.monotonic(), "timeout", "http://h", "id-1")


def test_a_row_has_state_time_and_failures() -> None:
    """What `GET /api/breakers` answers is JSON and says why and until when."""
    subject, clock, _registry = new_registry()
    assert subject.get("plain") is None
    assert [row["state"] for row in subject.list()] == ["closed"]
    trip(subject, clock)
    clock.advance(12.5)
    (row,) = subject.list()
    assert json.loads(json.dumps(row)) == row
    assert (row["name"], row["state"], row["remaining"]) == ("svc", "open", 47.5)
    assert row["until"] == "1970-01-12T13:47:40.000Z"
    assert row["recent_failures"][-1] == {
        "at": "1970-01-12T13:46:40.000Z",
        "kind": "timeout",
        "target": "http://h",
        "correlation_id": "id-1",
    }


async def test_by_hand_without_redis_it_is_local_and_ends() -> None:
    """Open for ten minutes when nothing is said; unknown names and no time are refused."""
    subject, clock, _registry = new_registry()
    row = await subject.force("svc", "open", "quota")
    assert (row["state"], row["remaining"], row["shared"]) == ("forced_open", 600.0, False)
    clock.advance(600.0)
    breaker = subject.get("svc")
    assert breaker is not None
    breaker.admit(clock.monotonic()).cancel()
    assert breaker.state is State.HALF_OPEN
    with pytest.raises(BadRequest):
        await subject.force("svc", "close", "", -1.0)
    with pytest.raises(KeyError):
        await subject.force("plain", "open", "")


def test_a_reload_keeps_adds_and_removes() -> None:
    """The breaker stays the same object with its state; a new one begins closed."""
    subject, clock, _registry = new_registry()
    trip(subject, clock)
    before = subject.get("svc")
    subject.reload({**upstreams(open_for="5s"), "new": upstreams()["svc"]})
    assert subject.get("svc") is before
    assert [row["state"] for row in subject.list()] == ["closed", "open"]
    subject.reload({})
    assert subject.list() == []


def test_metrics_follow() -> None:
    """State, transitions and rejections of the contract's names."""
    subject, clock, registry = new_registry()
    trip(subject, clock)
    labels = {"service": "svc"}
    assert registry.get_sample_value("circuit_breaker_state", labels) == 1
    moved = labels | {"from_state": "closed", "to_state": "open"}
    assert registry.get_sample_value("circuit_breaker_transitions_total", moved) == 1
    assert registry.get_sample_value("proxy_breaker_rejections_total", labels) == 0
