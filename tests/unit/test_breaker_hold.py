"""Calls held at an open circuit: order, turns, pace, and what ends the open time early."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.config.upstreams import Breaker as BreakerRules
from proxy.core.clock import ManualClock
from proxy.resilience.circuit.circuit import CircuitBreaker
from proxy.resilience.circuit.holding import NEVER, PACE, HoldQueue
from proxy.resilience.circuit.permits import Permit
from proxy.resilience.circuit.states import CircuitEvent, State

PROBES = 3


class Waiters:
    """Calls that wait at one breaker, by name; `woken` has whom it woke, in order."""

    def __init__(self, **rules: Any) -> None:
        self.clock = ManualClock()
        rules = {"hold": "25s", "half_open_max_calls": PROBES, **rules}
        self.breaker = CircuitBreaker(
            "svc",
            BreakerRules.model_validate(rules),
            clock=self.clock,
            owner="me",
            probe_lease=10.0,
        )
        self.woken: list[str] = []

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def trip(self) -> None:
        for _ in range(5):
            self.breaker.admit(self.now).failure(self.now, "503")

    def join(self, *names: str) -> list[Any]:
        return [
            self.breaker.hold(lambda name=name: self.woken.append(name))  # type: ignore[misc]
            for name in names
        ]

    def take(self) -> Permit:
        permit = self.breaker.try_admit(self.now)
        assert permit is not None
        return permit


def test_as_many_are_woken_as_there_are_probes_first_come_first_served() -> None:
    """When the open time is over the first three may go; the fourth sleeps on."""
    waiters = Waiters()
    waiters.trip()
    held = waiters.join("a", "b", "c", "d")
    assert waiters.breaker.next_chance == waiters.breaker.until
    assert waiters.breaker.try_admit(waiters.now) is None
    waiters.clock.advance(60.0)
    waiters.take()
    assert waiters.woken == ["a", "b", "c"]
    assert [one.turn < NEVER for one in held] == [True, True, True, False]


def test_on_closing_they_go_a_few_at_a_time() -> None:
    """Three at once, three more after each pause: nobody is forgotten, nobody runs ahead."""
    waiters = Waiters()
    waiters.trip()
    held = waiters.join(*"abcdefgh")
    waiters.clock.advance(60.0)
    for permit in [waiters.take() for _ in range(PROBES)]:
        permit.success(waiters.now, 0.01)
    assert waiters.breaker.state is State.CLOSED
    turns = [round(one.turn - waiters.now, 6) for one in held]
    assert turns == [0, 0, 0, PACE, PACE, PACE, 2 * PACE, 2 * PACE]


def test_a_turn_that_is_not_used_is_passed_on() -> None:
    """Its client has left: the next one in the queue gets it."""
    waiters = Waiters()
    waiters.trip()
    held = waiters.join("a", "b", "c", "d")
    waiters.clock.advance(60.0)
    waiters.take()
    waiters.breaker.held.leave(held[1])
    waiters.breaker.held.leave(held[1])  # twice does nothing
    assert waiters.woken == ["a", "b", "c", "d"]


def test_the_next_in_line_watches_the_clock_when_the_first_leaves() -> None:
    """Only the first knows when the open time is over; its heir must be woken as one."""
    waiters = Waiters()
    waiters.trip()
    first, second = waiters.join("a", "b")
    waiters.breaker.held.leave(first)
    assert waiters.woken == ["b"]
    assert waiters.breaker.held.is_first(second)


def test_a_probe_that_comes_to_nothing_wakes_the_next() -> None:
    """A cancelled probe gives its slot back to those who wait."""
    waiters = Waiters()
    waiters.trip()
    waiters.clock.advance(60.0)
    permits = [waiters.take() for _ in range(PROBES)]
    waiters.join("a")
    permits[0].cancel()
    assert waiters.woken == ["a"]


def test_a_failed_probe_opens_it_and_they_wait_on() -> None:
    """The queue outlives the opening; nobody of it is let through."""
    waiters = Waiters()
    waiters.trip()
    waiters.clock.advance(60.0)
    probe = waiters.take()
    waiters.join("a", "b")
    probe.failure(waiters.now, "503")
    assert waiters.breaker.state is State.OPEN
    assert len(waiters.breaker.held) == 2
    assert waiters.breaker.try_admit(waiters.now) is None


def test_a_breaker_that_a_reload_removes_holds_nobody() -> None:
    """All may go."""
    waiters = Waiters()
    waiters.trip()
    waiters.join("a", "b")
    waiters.breaker.retire(waiters.now)
    assert waiters.woken == ["a", "b"]
    waiters.take()


def test_a_good_health_answer_ends_the_open_time() -> None:
    """If it was asked after the circuit opened; a forced time is the operator's."""
    waiters = Waiters()
    before = waiters.now
    waiters.clock.advance(1.0)
    waiters.trip()
    waiters.breaker.proven_well(waiters.now, before, "asked before it opened")
    assert waiters.breaker.state is State.OPEN
    waiters.breaker.proven_well(waiters.now, waiters.now, "well")
    assert waiters.breaker.state is State.HALF_OPEN
    assert waiters.breaker.reason == "well"
    waiters.breaker.force(CircuitEvent.FORCE_OPEN, waiters.now, "by hand", 60.0)
    waiters.breaker.proven_well(waiters.now, waiters.now, "well")
    assert waiters.breaker.state is State.FORCED_OPEN


@pytest.mark.parametrize("count", [0, 1, 3])
def test_waking_nobody_does_no_harm(count: int) -> None:
    """An empty queue takes every call."""
    queue = HoldQueue()
    queue.wake(count)
    queue.release(0.0, 3)
    assert len(queue) == 0
