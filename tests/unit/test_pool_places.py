"""Whom a target's connections are for when they are scarce."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from proxy.config.units import TargetAddress
from proxy.config.upstreams import Pool
from proxy.core.clock import ManualClock
from proxy.core.errors import Overloaded
from proxy.core.memory.budget import MemoryBudget
from proxy.http1.client import ClientStream
from proxy.http1.deadlines import NEVER, Sweeper
from proxy.http1.upstream.connection import UpstreamStream
from proxy.http1.upstream.places import HELD_UP, LATELY, SLOW, Places
from proxy.http1.upstream.pool import ConnectionRequest, TargetPool
from proxy.http1.upstream.target import Target
from tests.unit.test_pool_abandoned import WHOLE, Client, Socket


class Case:
    """A pool of some connections, and clients by their addresses. Dials succeed at once."""

    def __init__(self, most: int = 4, queue: int = 20) -> None:
        self.clock = ManualClock()
        self.sweeper = Sweeper(self.clock)
        self.pool = TargetPool(
            Target(TargetAddress("http", "10.0.0.1", 8000), 1.0),
            Pool(max_connections=most, queue=queue, keep_abandoned=True, keepalive="1h"),
            self.clock,
            self.sweeper,
            MemoryBudget(),
            lambda _: None,
        )
        self.pool._dial = self._dial  # type: ignore[method-assign]
        self.dials = 0

    async def _dial(self) -> None:
        self.dials += 1
        assert self.dials < 100, "it dials for ever"
        stream = UpstreamStream(self.pool)
        stream.transport = Socket()  # type: ignore[assignment]
        self.pool.adopt(stream)

    async def settle(self) -> None:
        """Until all dials have come to their ends."""
        for _ in range(10):
            await asyncio.sleep(0)

    async def ask(self, host: str, route: str = "r", *, fresh: bool = False) -> ConnectionRequest:
        """Somebody wants a connection."""
        ticket = self.pool.ask(cast(ClientStream, Client(host)), route=route, fresh=fresh)
        await self.settle()
        return ticket

    async def use(self, host: str) -> UpstreamStream:
        """Somebody gets one."""
        client = cast(ClientStream, Client(host))
        stream = self.pool.checkout(client) or (await self.ask(host)).stream
        assert stream is not None
        return stream

    async def free(self, stream: UpstreamStream, *, reusable: bool = True) -> None:
        """It is not needed any more."""
        self.pool.release(stream, reusable=reusable)
        await self.settle()


@asynccontextmanager
async def opened(most: int = 4, queue: int = 20) -> AsyncIterator[Case]:
    """A case, whose pool is closed afterwards."""
    case = Case(most, queue)
    try:
        yield case
    finally:
        case.pool.close()
        await case.pool.wait_closed()


async def test_a_client_that_is_alone_has_all_connections() -> None:
    """A gateway that nobody has named makes all requests: it loses nothing."""
    async with opened() as case:
        for _ in range(4):
            await case.use("gateway")
        assert case.pool.active_connections == 4
        assert (await case.ask("gateway")).pending


@pytest.mark.parametrize("reusable", [False, True])
async def test_the_last_connection_is_for_others_while_there_are_any(reusable: bool) -> None:
    """Slow requests of one client do not shut the target for those who were there lately; it waits
    for its own to end, and has the last one when others have stayed away."""
    async with opened() as case:
        await case.free(await case.use("neighbour"))
        used = [await case.use("slow") for _ in range(3)]
        waits = await case.ask("slow")
        assert waits.pending
        assert (await case.use("neighbour")).owner is not None
        full = await case.ask("neighbour")
        assert full.pending
        await case.free(used[0], reusable=reusable)
        assert waits.stream is not None, "the neighbour has one: the slow one may have three"
        assert (await case.ask("slow")).pending
        await case.free(used[1], reusable=reusable)
        assert full.stream is not None
        assert case.pool.active_connections == 4
        assert case.dials < 10


@pytest.mark.parametrize("fresh", [False, True])
async def test_the_last_connection_is_for_anybody_again(fresh: bool) -> None:
    """The others have not come back for a while."""
    async with opened() as case:
        for _ in range(3):
            await case.use("slow")
        await case.free(await case.use("neighbour"))
        assert case.pool.checkout(cast(ClientStream, Client("slow"))) is None
        waits = await case.ask("slow", fresh=fresh)
        case.clock.advance(LATELY - 1)
        case.pool._check_again()
        await case.settle()
        assert waits.pending
        case.clock.advance(1)
        case.pool._check_again()
        await case.settle()
        assert waits.stream is not None
        assert waits.stream.reused is (not fresh)
        assert case.pool.active_connections == 4


async def test_slow_requests_leave_the_last_connection_to_others() -> None:
    """Of several clients as well: those that have been slow lately wait for one another, and what
    is quick goes at once. Who has not been slow for a while is as good as anybody."""
    async with opened() as case:
        for host in ("a", "b", "c"):
            used = await case.use(host)
            case.clock.advance(SLOW + 0.1)
            await case.free(used)
        three = [await case.use(host) for host in ("a", "b", "newcomer")]
        waits = await case.ask("c")
        assert waits.pending
        for _ in range(3):
            await case.free(await case.use("quick"))
        assert waits.pending
        await case.free(three[0])
        assert waits.stream is not None
        case.clock.advance(LATELY)
        await case.use("a")
        assert case.pool.active_connections == 4


async def test_a_slow_request_under_way_counts() -> None:
    """Its client has not been slow before."""
    async with opened() as case:
        used = [await case.use(host) for host in ("a", "b", "c")]
        assert (await case.use("a")).owner is not None, "it is not slow yet"
        await case.free(used[1])
        case.clock.advance(SLOW + 0.1)
        waits = await case.ask("a")
        assert waits.pending
        await case.use("d")
        assert waits.pending


async def test_slow_requests_of_a_client_that_is_alone() -> None:
    """There is nobody to leave anything to."""
    async with opened() as case:
        for _ in range(3):
            used = await case.use("a")
            case.clock.advance(SLOW + 0.1)
            await case.free(used)
        for _ in range(4):
            await case.use("a")
        assert case.pool.active_connections == 4


def test_slow_clients_are_forgotten() -> None:
    """A flood of addresses takes no memory for long, nor without end."""
    places = Places(4)
    for number in range(3):
        places.was_slow(number, 0.0)
    places.was_slow(0, 5.0)
    places.was_slow("late", LATELY + 1)
    assert list(places._slow) == [0, "late"]
    for number in range(10_000):
        places.was_slow(number, LATELY + 2)
    assert len(places._slow) <= 4096


async def test_what_a_client_leaves_behind_counts_as_its_own() -> None:
    """Requests followed by resets hold no more than slow ones."""
    async with opened() as case:
        await case.free(await case.use("neighbour"))
        slow = cast(ClientStream, Client("slow"))
        left = [await case.use("slow") for _ in range(3)]
        for stream in left:
            case.pool.abandon(stream, slow, NEVER)
        waits = await case.ask("slow")
        assert waits.pending
        for _ in range(3):
            await case.free(await case.use("neighbour"))
        left[1].data_received(WHOLE)
        await case.settle()
        assert waits.pending, "what it has left is half of all"
        left[2].data_received(WHOLE)
        await case.settle()
        assert waits.stream is not None


def leave(case: Case, streams: dict[str, UpstreamStream]) -> None:
    """Those clients go, whose requests may last for a minute."""
    for host, stream in streams.items():
        client = cast(ClientStream, Client(host))
        case.pool.abandon(stream, client, case.clock.monotonic() + 60)


async def look(case: Case) -> None:
    """What is due happens."""
    case.sweeper.sweep()
    await case.settle()


async def test_what_clients_leave_behind_has_half_while_somebody_waits() -> None:
    """Slow requests of many clients, each followed by a reset: the two that were left first lose
    their places, after a moment and one at a time."""
    async with opened() as case:
        leave(case, {f"slow {n}": await case.use(f"slow {n}") for n in range(4)})
        await look(case)
        waits = [await case.ask("one"), await case.ask("other")]
        case.clock.advance(HELD_UP)
        assert all(ticket.pending for ticket in waits), "a moment is nothing"
        await look(case)
        assert all(ticket.stream is not None for ticket in waits)
        third = await case.ask("third")
        case.clock.advance(30)
        await look(case)
        assert third.pending, "two are half"
        assert case.pool.active_connections == 4


async def test_nobody_waits_for_what_was_left_behind() -> None:
    """It keeps its places until somebody comes, who then gets one at once."""
    async with opened() as case:
        leave(case, {f"slow {n}": await case.use(f"slow {n}") for n in range(4)})
        case.clock.advance(HELD_UP)
        await look(case)
        case.clock.advance(5)
        await look(case)
        assert case.pool.active_connections == 4
        assert (await case.ask("one")).stream is not None


async def test_who_leaves_slow_requests_behind_has_half() -> None:
    """Whose request was given up waits while the places of such clients are half of all, though it
    comes first; when that request must be over, it is one as all others."""
    async with opened() as case:
        leave(case, {f"slow {n}": await case.use(f"slow {n}") for n in range(4)})
        case.clock.advance(HELD_UP)
        one = await case.ask("one")
        other = await case.ask("other")
        assert one.stream is not None
        await look(case)
        assert other.stream is not None
        again = [await case.ask(f"slow {n}") for n in (0, 1)]
        await case.free(one.stream, reusable=True)
        await case.free(other.stream, reusable=False)
        assert all(ticket.pending for ticket in again)
        assert (await case.use("one")).owner is not None
        assert case.pool.checkout(cast(ClientStream, Client("slow 0"))) is None
        case.clock.advance(60)
        case.pool._check_again()
        await look(case)
        assert all(ticket.stream is not None for ticket in again)


async def test_no_more_is_given_up_than_the_upstream_has_connections() -> None:
    """It may still work on all that: twice its connections is the most that it has at a time."""
    async with opened() as case:
        given_up, number = 0, 0
        waits = await case.ask("honest 0")
        while waits.stream is not None:
            case.pool.release(waits.stream, reusable=False)
            await case.settle()
            while case.pool.active_connections < 4:
                number += 1
                leave(case, {f"slow {number}": await case.use(f"slow {number}")})
            case.clock.advance(HELD_UP)
            await look(case)
            before = case.dials
            waits = await case.ask(f"honest {number}")
            given_up += case.dials - before
            assert given_up < 20
        assert given_up == 4
        case.clock.advance(60)
        await look(case)
        assert waits.stream is not None


@pytest.mark.parametrize("most", [3, 65])
async def test_other_targets_have_no_last_connection(most: int) -> None:
    """With very few each counts, with many nobody has all of them."""
    async with opened(most) as case:
        await case.free(await case.use("neighbour"))
        for _ in range(most):
            assert (await case.use("slow")).owner is not None


async def test_routes_take_turns() -> None:
    """Many who ask for something slow keep those of another route waiting for one of them."""
    async with opened(1) as case:
        used = await case.use("one")
        lists = [await case.ask(f"client {number}", "list") for number in range(9)]
        jobs = [await case.ask(f"other {number}", "job") for number in range(2)]
        order: list[ConnectionRequest] = []
        for _ in range(5):
            await case.free(used)
            (served,) = [one for one in (*lists, *jobs) if not one.pending and one not in order]
            order.append(served)
            assert served.stream is not None
            used = served.stream
        assert order == [lists[0], jobs[0], lists[1], jobs[1], lists[2]]
        late = await case.ask("late", "job")
        await case.free(used)
        assert not late.pending, "who comes later does not wait for what others had before"


async def test_the_fullest_route_gives_way() -> None:
    """A queue that one route has filled has room for another, and for no more of its own."""
    async with opened(1, queue=4) as case:
        await case.use("one")
        lists = [await case.ask(f"client {number}", "list") for number in range(4)]
        with pytest.raises(Overloaded):
            await case.ask("client 5", "list")
        jobs = [await case.ask(f"other {number}", "job") for number in range(2)]
        assert [one.pending for one in lists] == [True, True, False, False]
        with pytest.raises(Overloaded):
            await case.ask("other 3", "job")
        assert all(one.pending for one in jobs)


def test_slow_takers_of_answers_have_half() -> None:
    """While somebody waits, the slowest of those who were held up for a moment makes way."""
    places = Places(4)
    streams = [cast(UpstreamStream, object()) for _ in range(4)]
    for number, stream in enumerate(streams[:3]):
        places.hold_up(stream, 1000 * number, 0.0)
    assert places.unwanted(HELD_UP / 2) is None, "a moment is nothing"
    places.hold_up(streams[0], 50_000, 1.0)
    places.hold_up(streams[1], 2_000, 1.0)
    places.hold_up(streams[2], 60_000, 1.0)
    assert places.unwanted(1.0) is streams[1]
    assert places.unwanted(1.0) is None, "half of them may be held up"
    places.hold_up(streams[3], 0, 1.0)
    assert places.unwanted(1.0) is streams[0], "one that has only begun is not judged yet"
    places.hold_up(streams[0], 0, 2.0)
    places.flows(streams[2])
    assert places.unwanted(9.0) is None


async def test_who_waits_makes_the_slowest_unwanted() -> None:
    """At once if it comes later, in a moment if it waits already."""
    async with opened() as case:
        used = [await case.use(f"client {number}") for number in range(4)]
        for taken, stream in enumerate(used[:3]):
            assert case.pool.hold_up(stream, taken) == NEVER
        case.clock.advance(HELD_UP)
        assert not any(stream.unwanted for stream in used), "nobody waits"
        for stream in used[:2]:
            case.pool.hold_up(stream, 9_000)
        ticket = await case.ask("waits")
        assert [stream.unwanted for stream in used] == [False, False, True, False]
        assert case.pool.hold_up(used[3], 0) == case.clock.monotonic() + HELD_UP
        await case.free(used[2], reusable=False)
        assert ticket.stream is not None
