"""A caller of a half-open circuit waits briefly for a probe lease from Redis, no longer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from proxy.forward import admission
from proxy.resilience.circuit.circuit import CircuitBreaker
from proxy.resilience.circuit.states import State
from tests.bench.exchange import REQUEST
from tests.fast_path_kit import Rig

PATIENCE = 0.25


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    """A proxy whose client has asked an upstream that only other processes may probe."""
    made = Rig(breaker={"failure_threshold": 1, "open_for": "60s", "half_open_max_calls": 1})
    breaker = made.breaker
    assert breaker is not None
    breaker.shared = True
    breaker._enter(State.HALF_OPEN, made.clock.monotonic(), 0.0, "a test", "another")
    made.client.data_received(REQUEST)
    yield made
    made.close()


def breaker_of(rig: Rig) -> CircuitBreaker:
    """The upstream's."""
    assert rig.breaker is not None
    return rig.breaker


async def test_the_wait_is_bounded(rig: Rig) -> None:
    """Without a reply from Redis, the caller gets 503 after a quarter of a second."""
    assert admission._LEASE_PATIENCE == PATIENCE
    assert len(breaker_of(rig).callers) == 1
    assert breaker_of(rig).wanted == 1
    rig.pass_time(PATIENCE - 0.01)
    assert rig.answer.written == b""
    rig.pass_time(0.01)
    assert rig.answer.written.startswith(b"HTTP/1.1 503 ")
    assert len(breaker_of(rig).callers) == 0


async def test_a_granted_lease_ends_the_wait(rig: Rig) -> None:
    """The caller becomes the probe as soon as Redis has granted it a lease."""
    rig.pass_time(PATIENCE / 2)
    now = rig.clock.monotonic()
    breaker_of(rig).grant(("lease",), breaker_of(rig).generation, now, now)
    breaker_of(rig).callers.answer()
    await asyncio.sleep(0)
    assert rig.answer.written == b""
    assert breaker_of(rig).probes_in_flight == 1
    assert b"GET " in rig.connections[0][1].written


async def test_a_refusal_ends_the_wait(rig: Rig) -> None:
    """Redis had no lease left: 503 at once, not after a quarter of a second."""
    breaker_of(rig).callers.answer()
    await asyncio.sleep(0)
    assert rig.answer.written.startswith(b"HTTP/1.1 503 ")


async def test_a_caller_that_leaves_waits_no_more(rig: Rig) -> None:
    """Its client is gone, so a lease would be wasted on it."""
    rig.client.connection_lost(None)
    assert len(breaker_of(rig).callers) == 0
