"""Which target of an upstream is asked for a connection."""

from __future__ import annotations

from random import Random
from typing import cast

import pytest

from proxy.clock import ManualClock
from proxy.config.units import TargetAddress
from proxy.config.upstreams import Pool
from proxy.memory_budget import MemoryBudget
from proxy.wire.client import ClientStream
from proxy.wire.deadlines import Sweeper
from proxy.wire.pool import TargetPool, Upstream


def upstream(seed: int, busy: list[int]) -> Upstream:
    """A target for each of `busy`, with so many of its four connections in use, and no queue."""
    clock = ManualClock()
    pools = []
    for number, in_use in enumerate(busy):
        pool = TargetPool(
            TargetAddress("http", "10.0.0.1", 8000 + number),
            Pool(max_connections=4, queue=0),
            1.0,
            clock,
            Sweeper(clock),
            MemoryBudget(),
            lambda _: None,
        )
        pool._in_use = in_use
        pools.append(pool)
    return Upstream("app", pools, Random(seed))


@pytest.mark.parametrize("seed", range(20))
def test_a_free_target_is_found_among_full_ones(seed: int) -> None:
    """Though chance may show two that are full."""
    found = upstream(seed, [4, 4, 4, 3, 4]).choose()
    assert not found.full
    assert found.label.endswith(":8003")


@pytest.mark.parametrize("seed", range(20))
def test_of_two_the_less_busy_is_chosen(seed: int) -> None:
    """And one that failed already only if all have."""
    two = upstream(seed, [3, 1])
    assert two.choose() is two.pools[1]
    assert two.choose(tried=(two.pools[1],)) is two.pools[0]
    assert two.choose(tried=two.pools) is two.pools[1]


@pytest.mark.parametrize("seed", range(20))
def test_a_target_without_kept_connections_keeps_its_turn(seed: int) -> None:
    """It is the next one to be asked, once, unless it has failed or must not be used."""
    three = upstream(seed, [0, 0, 0])
    owner = cast(ClientStream, None)  # nobody is told anything here
    assert three.checkout(owner) is None
    turn = three._turn
    assert turn is not None
    assert three.choose() is turn
    assert three._turn is None
    assert three.checkout(owner) is None
    turn = three._turn
    assert turn is not None
    assert three.choose(tried=(turn,)) is not turn
    assert three.checkout(owner) is None
    turn = three._turn
    assert turn is not None
    others = [pool.label for pool in three.pools if pool is not turn]
    assert three.choose(usable=others).label in others
