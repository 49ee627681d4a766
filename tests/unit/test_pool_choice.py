"""Which target of an upstream is asked for a connection."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import cast

import pytest

from proxy.config.units import TargetAddress
from proxy.config.upstreams import Pool
from proxy.core.clock import ManualClock
from proxy.core.errors import Overloaded
from proxy.core.memory.budget import MemoryBudget
from proxy.http1.client import ClientStream
from proxy.http1.deadlines import Sweeper
from proxy.http1.upstream.balancer import Upstream
from proxy.http1.upstream.pool import TargetPool
from proxy.http1.upstream.target import Target


def upstream(seed: int, busy: list[int]) -> Upstream:
    """A target for each of `busy`, with so many of its four connections in use, and no queue."""
    clock = ManualClock()
    pools = []
    for number, in_use in enumerate(busy):
        pool = TargetPool(
            Target(TargetAddress("http", "10.0.0.1", 8000 + number), 1.0),
            Pool(max_connections=4, queue=0),
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


def test_if_no_target_is_usable_any_may_be_chosen() -> None:
    """One that has not been tried, before one that is usable but failed."""
    three = upstream(1, [2, 1, 3])
    assert three.choose(usable=()) in three.pools
    tried = (three.pools[0], three.pools[1])
    assert three.choose(tried, usable=(three.pools[0].label,)) is three.pools[2]


@pytest.mark.parametrize("seed", range(20))
def test_a_target_without_kept_connections_keeps_its_turn(seed: int) -> None:
    """It is the next one to be asked, once, unless it has failed or must not be used."""
    three = upstream(seed, [0, 0, 0])
    owner = cast(ClientStream, Caller("a"))
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


@dataclass
class Caller:
    """Of a client connection, what the queue looks at."""

    host_ip: str
    share: object = None

    @property
    def who(self) -> object:
        """As of a connection."""
        return self.share or self.host_ip

    def wake(self) -> None:
        """Nobody sleeps."""


def test_clients_take_turns_in_the_queue() -> None:
    """One that has many waiting does not keep others waiting behind them, nor they it."""
    pool = upstream(1, [4]).pools[0]
    pool._settings = Pool(max_connections=4, queue=20)

    def ask(name: str, number: int, share: object = None) -> None:
        for _ in range(number):
            pool.ask(cast(ClientStream, Caller(name, share)))

    def served(number: int) -> list[str]:
        names = []
        for _ in range(number):
            names.append(pool._waiting[0].owner.host_ip)
            pool._refuse(OSError())
        return names

    ask("a", 4)
    ask("b", 2)
    ask("c", 1)
    assert served(3) == ["a", "b", "c"]
    ask("d", 2)
    assert served(6) == ["a", "b", "d", "a", "d", "a"]
    ask("e", 2, share := object())
    ask("f", 1, share)
    ask("g", 1)
    assert served(4) == ["e", "g", "e", "f"]


def test_a_full_queue_has_room_for_who_has_nothing_waiting() -> None:
    """The last of who has most gives way; who has as much as anybody is refused."""
    pool = upstream(1, [4]).pools[0]
    pool._settings = Pool(max_connections=4, queue=3)
    many = [pool.ask(cast(ClientStream, Caller("a"))) for _ in range(3)]
    with pytest.raises(Overloaded):
        pool.ask(cast(ClientStream, Caller("a")))
    one = pool.ask(cast(ClientStream, Caller("b")))
    assert [ticket.pending for ticket in many] == [True, True, False]
    assert isinstance(many[2].error, Overloaded)
    assert list(pool._waiting) == [many[0], one, many[1]]
    pool.ask(cast(ClientStream, Caller("c")))
    with pytest.raises(Overloaded):
        pool.ask(cast(ClientStream, Caller("d")))
    assert [ticket.pending for ticket in many] == [True, False, False]
