"""No connection stops the loop: heads and time per turn, order of the queue, reading and output."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from unittest.mock import patch

import pytest

from proxy.core.clock import ManualClock
from proxy.core.memory.budget import MemoryBudget
from proxy.http1 import shedding
from proxy.http1 import stream as stream_module
from proxy.http1.bodies import ChunkedBody
from proxy.http1.heads import find_head_end
from proxy.http1.pace import GRACE, Pace
from proxy.http1.shedding import Shedding
from proxy.http1.stream import _CUT, Stream
from proxy.http1.turns import GREEDY, HEADS_PER_TURN, SHARE, Turns
from tests.fast_path_kit import Rig

TRACE = b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"
EMPTY_POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"


@contextmanager
def rig(**upstream: object) -> Iterator[Rig]:
    """A proxy without sockets whose turns are measured."""
    made = Rig(**upstream)
    made.sweeper.turns.start()
    yield made
    made.close()


async def turns_of_the_loop(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def answers(of: Rig) -> int:
    return of.answer.written.count(b"HTTP/1.1 ")


@pytest.mark.parametrize("request_", [TRACE, b"\r\n" + TRACE])
async def test_pipelined_requests_take_turns(request_: bytes) -> None:
    """However many lie ready, so many are answered in one turn of the loop, and all in the end."""
    with rig() as flooded:
        flooded.client.data_received(request_ * 10 * HEADS_PER_TURN)
        seen = [answers(flooded)]
        for _ in range(25):
            await asyncio.sleep(0)
            seen.append(answers(flooded))
        steps = [after - before for before, after in pairwise(seen)]
        assert seen[0] == HEADS_PER_TURN
        assert max(steps) <= HEADS_PER_TURN
        assert seen[-1] == 10 * HEADS_PER_TURN
        assert flooded.memory.used == 0


async def test_a_slice_ends_by_time_too() -> None:
    """Answers that take long end a turn before their number does."""
    with rig() as flooded:
        write = flooded.answer.write

        def slow_write(data: bytes) -> None:
            flooded.clock.advance(0.0015)
            write(data)

        with patch.object(flooded.answer, "write", slow_write):
            flooded.client.data_received(TRACE * 20)
            assert answers(flooded) == 1
            await turns_of_the_loop(100)
        assert answers(flooded) == 20


async def test_what_comes_meanwhile_does_not_jump_the_queue() -> None:
    """A connection that queues is not carried on by more bytes, nor by its deadline."""
    with rig() as flooded:
        flooded.client.data_received(TRACE * (HEADS_PER_TURN + 5))
        for _ in range(3):
            flooded.client.data_received(TRACE)
            flooded.client.on_deadline()
        assert answers(flooded) == HEADS_PER_TURN
        await turns_of_the_loop(5)
        assert answers(flooded) == HEADS_PER_TURN + 8


async def test_the_queue_is_served_in_order_and_within_its_share() -> None:
    """Each turn of the loop serves as many as its share allows, first come, first served; one that
    fails stops nobody."""
    clock, served = ManualClock(), list[int]()
    turns = Turns(clock)
    turns.start()
    failures = list[dict[str, object]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, facts: failures.append(facts))

    def serve(number: int) -> None:
        clock.advance(SHARE / 4)
        served.append(number)
        if number == 2:
            raise RuntimeError("broken on purpose")

    for number in range(20):
        turns.later(lambda number=number: serve(number))  # type: ignore[misc]
    seen = []
    while len(turns):
        before = len(served)
        await asyncio.sleep(0)
        seen.append(len(served) - before)
    assert served == list(range(20))
    assert max(seen) == 4
    assert len(failures) == 1


async def test_who_asks_for_little_comes_before_the_greedy() -> None:
    """New arrivals pass a queue of floods, of which one goes on in each turn all the same."""
    clock, served = ManualClock(), list[str]()
    turns = Turns(clock)
    turns.start()

    def serve(name: str) -> None:
        clock.advance(SHARE / 2)
        served.append(name)

    for name in ("flood 1", "flood 2", "flood 3"):
        turns.later(lambda name=name: serve(name))  # type: ignore[misc]
    for name in ("guest 1", "guest 2"):
        turns.later(lambda name=name: serve(name), greedy=False)  # type: ignore[misc]
    await turns_of_the_loop(10)
    assert served == ["flood 1", "guest 1", "flood 2", "guest 2", "flood 3"]


async def test_a_flood_stays_greedy_for_a_while() -> None:
    """One that has been cut short waits behind others with its next bytes, and no longer later."""
    with rig() as flooded:
        queued = list[bool]()
        turns, later = flooded.sweeper.turns, flooded.sweeper.turns.later

        def noted(go_on: Callable[[], None], *, greedy: bool = True) -> None:
            queued.append(greedy)
            later(go_on, greedy=greedy)

        with patch.object(
            Turns, "later", lambda _, go_on, greedy=True: noted(go_on, greedy=greedy)
        ):
            flooded.client.data_received(TRACE * (HEADS_PER_TURN + 1))
            await turns_of_the_loop(5)
            for wait in (GREEDY / 2, GREEDY):
                flooded.clock.advance(wait)
                turns.begin()
                flooded.clock.advance(2 * SHARE)
                flooded.client.data_received(TRACE)
                await turns_of_the_loop(5)
        assert queued == [True, True, False]
        assert answers(flooded) == HEADS_PER_TURN + 3


async def test_a_turn_that_is_used_up_lets_nobody_begin() -> None:
    """Whoever gets more data after the share is spent goes on in a later turn."""
    clock = ManualClock()
    turns = Turns(clock)
    assert turns.begin(), "nothing is measured before the start"
    turns.start()
    assert turns.begin()
    clock.advance(SHARE / 2)
    assert turns.begin()
    clock.advance(SHARE)
    assert not turns.begin()
    await turns_of_the_loop(2)
    assert turns.begin()


@pytest.mark.parametrize("request_", [TRACE, EMPTY_POST, b"\r\n" + TRACE])
async def test_taking_a_head_does_not_copy_the_rest(request_: bytes) -> None:
    """A read of 256 KB of heads is cut once, not copied for each of them."""
    with rig() as flooded:
        flooded.client.data_received(request_ * (250_000 // len(request_)))
        assert max(map(len, flooded.client.inbox)) <= _CUT
        flooded.client.abort()


async def test_a_body_behind_its_head_stays_whole() -> None:
    """Cutting is for heads: the body that came in the same read is one piece."""

    class Quiet(Stream):
        def notify(self) -> None:
            """Nobody waits."""

    quiet = Quiet(MemoryBudget(), Turns(ManualClock()))
    quiet.data_received(b"x" * 10 + b"\r\n\r\n" + b"b" * 100_000 + b"n" * 40_000)
    quiet.take_head(10, 100_000)
    assert [len(piece) for piece in quiet.inbox] == [100_000, _CUT, _CUT, 40_000 - 2 * _CUT]
    quiet.drop()
    assert quiet.memory.used == 0


async def test_tiny_chunks_do_not_copy_the_rest() -> None:
    """A read of 150 KB of one-byte chunks is cut once, and given back when it is read."""

    class Quiet(Stream):
        def notify(self) -> None:
            """Nobody waits."""

    quiet = Quiet(MemoryBudget(), Turns(ManualClock()))
    body = ChunkedBody()
    quiet.data_received(b"1\r\nx\r\n" * 25_000)
    content = b"".join(quiet.read_body(body))
    assert max(map(len, quiet.inbox)) <= _CUT
    while quiet.inbox:
        content += b"".join(quiet.read_body(body))
    assert content == b"x" * 25_000
    assert quiet.memory.used == 0


async def test_what_comes_behind_a_refusal_is_not_kept() -> None:
    """A client that sends on after its 400 costs no memory, and has its time to read the answer."""
    with rig() as flooded:
        flooded.client.data_received(b"NO\r\n\r\n")
        assert answers(flooded) == 1
        for _ in range(5):
            flooded.client.data_received(b"x" * 100_000)
            assert flooded.memory.used == 0
        assert not flooded.answer.closing
        for _ in range(3):
            flooded.clock.advance(5.1)
            flooded.client.on_deadline()
            await turns_of_the_loop(3)
        assert flooded.answer.closing


async def test_an_unfinished_head_is_searched_once() -> None:
    """A head that comes byte by byte costs its length, not its square."""
    searched = 0

    def counted(data: bytes, line: int, head: int, scanned: int = 0) -> int:
        nonlocal searched
        searched += len(data) - scanned
        return find_head_end(data, line, head, scanned)

    head = b"TRACE / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 4_000 + b"\r\n\r\n"
    with rig() as flooded, patch.object(stream_module, "find_head_end", counted):
        for byte in head:
            flooded.client.data_received(bytes([byte]))
            await asyncio.sleep(0)
        await turns_of_the_loop(3)
        assert answers(flooded) == 1
    assert searched < 3 * len(head)


async def test_nothing_is_answered_to_a_client_that_takes_nothing() -> None:
    """Its next request waits until the answers before have been taken."""
    with rig() as flooded:
        flooded.client.pause_writing()
        flooded.client.data_received(TRACE * 3)
        await turns_of_the_loop(3)
        assert answers(flooded) == 0
        flooded.client.resume_writing()
        await turns_of_the_loop(3)
        assert answers(flooded) == 3


async def test_reading_stops_at_the_allowance() -> None:
    """The fuller the budget, the sooner a connection is no longer read."""
    with rig() as flooded:
        flooded.client.pause_writing()
        flooded.client.data_received(b"x" * 20_000)
        assert not flooded.client._read_paused
        flooded.memory.reserve(int(flooded.memory.limit * 0.99))
        flooded.client.data_received(b"x" * 100)
        assert flooded.client._read_paused


UPLOAD = b"POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n"


async def test_the_greediest_is_shed_with_503() -> None:
    """Where memory is short, who holds the most gets 503 `overloaded`, and gives it back."""
    with rig() as flooded:
        shedding = Shedding(flooded.memory, flooded.sweeper)
        flooded.memory.resize(2 * 1024 * 1024)
        flooded.client.data_received(UPLOAD)
        await turns_of_the_loop(3)
        stream, _ = flooded.connections[0]
        stream.pause_writing()
        for _ in range(9):
            flooded.client.data_received(b"x" * 200_000)
        assert answers(flooded) == 0
        assert flooded.memory.used > 1_700_000
        assert shedding.round() == 1
        assert shedding.round() == 0, "once"
        await turns_of_the_loop(5)
        assert flooded.answer.written.startswith(b"HTTP/1.1 503 ")
        assert b'"code":"overloaded"' in flooded.answer.written
        flooded.client.connection_lost(None)
        await turns_of_the_loop(5)
        assert flooded.memory.used == 0
        assert shedding.shed == 1
        shedding.stop()


async def test_who_holds_little_is_spared() -> None:
    """A full budget is no reason to end a connection that holds what a request needs."""
    with rig() as flooded:
        shedding = Shedding(flooded.memory, flooded.sweeper)
        flooded.client.data_received(b"GET / HTTP/1.1\r\nX: ")
        flooded.memory.reserve(flooded.memory.limit)
        await turns_of_the_loop(3)
        assert shedding.round() == 0
        assert not flooded.client.shed
        shedding.stop()


async def test_what_nobody_accounts_for_counts_as_well() -> None:
    """Resident memory beyond the accounts and a margin fills the budget, up to its half."""
    resident = 50_000_000
    with rig() as flooded:
        shedding = Shedding(flooded.memory, flooded.sweeper, lambda: resident)
        shedding.start()
        for now, unaccounted in (
            (40_000_000, 0),
            (48 * 1024 * 1024 + 5_000, 5_000),
            (10**10, flooded.memory.limit // 2),
            (40_000_000, 0),
        ):
            resident = now
            shedding._look()
            assert flooded.memory.accounts()["unaccounted"] == unaccounted
        shedding.stop()


async def test_freed_memory_is_given_back_at_once_beyond_the_limit() -> None:
    """The allocator is asked at the next look where the process grows beyond its limit, and every
    so often while it stays there; below the limit only after a while."""
    asked = list[int]()
    with (
        rig() as flooded,
        patch.object(shedding, "give_back_freed_memory", lambda: asked.append(1)),
    ):
        resident = 0
        memory = MemoryBudget(128 * 1024 * 1024)
        shed = Shedding(memory, flooded.sweeper, lambda: resident)

        # One thread: what it was asked last comes last.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))

        async def looks(count: int) -> int:
            asked.clear()
            for _ in range(count):
                shed._look()
            await asyncio.get_running_loop().run_in_executor(None, lambda: None)
            return len(asked)

        for size, count, expected in (
            (60, 1, 0),  # the lowest that is seen
            (100, 19, 0),
            (100, 1, 1),
            (130, 1, 1),
            (130, 20, 1),
            (60, 30, 0),
        ):
            resident = size * 1024 * 1024
            assert await looks(count) == expected, (size, count)
        shed.stop()


async def test_a_head_may_end_however_full_the_budget_is() -> None:
    """An unfinished head is read on beyond the allowance: its own limits bound it."""
    with rig() as flooded:
        flooded.memory.reserve(flooded.memory.limit)
        flooded.client.data_received(TRACE[:-2] + b"X: " + b"y" * 20_000)
        assert not flooded.client._read_paused
        flooded.client.data_received(b"y" * 5_000 + b"\r\n\r\n")
        await turns_of_the_loop(3)
        assert answers(flooded) == 1


async def test_very_many_who_hold_little_are_shed_too() -> None:
    """A fair share of the budget is what counts when thousands hold the beginning of a head."""
    with rig() as flooded:
        shedding = Shedding(flooded.memory, flooded.sweeper)
        flooded.memory.resize(16 * 1024 * 1024)
        others = [flooded.another_client() for _ in range(1_000)]
        for other in others:
            other.data_received(TRACE[:-2] + b"X: " + b"y" * 15_000)
        flooded.client.data_received(TRACE[:-2])
        assert flooded.memory.used > 14_000_000
        assert [shedding.round() for _ in range(3)] == [100, 67, 0], "what goes already counts"
        assert not flooded.client.shed
        shedding.stop()
        for other in others:
            other.connection_lost(None)
        await turns_of_the_loop(20)
        assert flooded.memory.used < 1_000


def test_a_client_is_given_a_grace_and_then_a_rate() -> None:
    """Waiting uses the credit up, bytes earn more, and waiting for others is free."""
    pace = Pace(1000.0)
    assert pace.waits(0, 100.0) == 100.0 + GRACE
    assert pace.waits(3_000, 105.0) == pytest.approx(105.0 + GRACE - 5 + 3)
    pace.rests(3_000, 105.0)
    assert pace.waits(3_000, 500.0) == pytest.approx(500.0 + GRACE - 2)
    assert pace.waits(3_100, 507.0) == pytest.approx(507.0 + GRACE - 2 - 7 + 0.1)
    assert pace.waits(3_100, 520.0) == 520.0
    fast = Pace(1000.0)
    assert fast.waits(10**9, 0.0) == 60.0


@pytest.mark.parametrize(("every", "status"), [(0.5, b"408"), (0.05, b"")])
async def test_a_body_must_come_fast_enough(every: float, status: bytes) -> None:
    """A client that sends a byte now and then is never silent for long, and yet too slow."""
    with rig() as slow:
        plan = slow.listener.table.match("POST", "/up")[0]
        object.__setattr__(plan, "min_rate", 10)
        slow.client.data_received(UPLOAD)
        await turns_of_the_loop(3)
        for _ in range(int(30 / every)):
            slow.client.data_received(b"x")
            await turns_of_the_loop(2)
            slow.pass_time(every)
        assert slow.answer.written[9:12] == status


@pytest.mark.parametrize(("every", "status"), [(0.5, b"408"), (0.05, b"")])
async def test_a_head_must_come_fast_enough(every: float, status: bytes) -> None:
    """However long `timeouts.header` lets it take."""
    with rig() as slow:
        object.__setattr__(slow.listener, "header_timeout", 600.0)
        slow.listener.limits.min_rate = 10
        slow.client.data_received(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        await turns_of_the_loop(3)
        for _ in range(int(30 / every)):
            slow.client.data_received(b"x")
            await turns_of_the_loop(2)
            slow.pass_time(every)
        assert slow.answer.written[9:12] == status


@pytest.mark.parametrize(("taken", "cut"), [(100, True), (1000, False)])
async def test_an_answer_must_be_taken_fast_enough(taken: int, cut: bool) -> None:
    """A client that takes a little now and then is never still for long, and yet too slow."""
    with rig() as slow:
        plan = slow.listener.table.match("GET", "/")[0]
        object.__setattr__(plan, "min_rate", 1000)
        slow.client.data_received(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await turns_of_the_loop(3)
        upstream, _ = slow.connections[0]
        left = 100_000

        def waiting() -> int:
            return left

        take = slow.answer.write

        def write(data: bytes) -> None:
            take(data)
            slow.client.pause_writing()

        slow.answer.get_write_buffer_size = waiting  # type: ignore[method-assign]
        slow.answer.write = write  # type: ignore[method-assign, assignment]
        upstream.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + bytes(left))
        await turns_of_the_loop(3)
        for _ in range(60):
            left -= taken
            await turns_of_the_loop(2)
            slow.pass_time(0.5)
        assert slow.answer.closing is cut
        assert slow.answer.written.startswith(b"HTTP/1.1 200")
