"""One breaker by itself, without Redis: trips, probes, late outcomes, forced states, growth."""

from __future__ import annotations

import random
from typing import Any

import pytest

from proxy.config.upstreams import Breaker as BreakerRules
from proxy.core.clock import ManualClock
from proxy.core.errors import CircuitOpen
from proxy.resilience.circuit.circuit import CircuitBreaker
from proxy.resilience.circuit.messages import LogEntry, SharedState, Transition
from proxy.resilience.circuit.permits import Permit
from proxy.resilience.circuit.states import CircuitEvent, State
from proxy.resilience.circuit.window import SlidingWindow


class Bench:
    """A breaker, its clock and its transitions."""

    def __init__(self, **rules: Any) -> None:
        self.clock = ManualClock()
        self.transitions: list[Transition] = []
        self.breaker = CircuitBreaker(
            "svc",
            BreakerRules.model_validate(rules),
            clock=self.clock,
            owner="me",
            probe_lease=10.0,
            rng=random.Random(7),
            on_transition=lambda _breaker, transition: self.transitions.append(transition),
        )

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def admit(self) -> Permit:
        return self.breaker.admit(self.now)

    def fail(self, times: int = 1) -> None:
        for _ in range(times):
            self.admit().failure(self.now, "503", "http://h", "abc")

    def succeed(self, times: int = 1, duration: float = 0.01) -> None:
        for _ in range(times):
            self.admit().success(self.now, duration)

    def refused(self) -> CircuitOpen:
        with pytest.raises(CircuitOpen) as caught:
            self.admit()
        return caught.value

    def half_open(self) -> None:
        self.fail(self.breaker.rules.failure_threshold)
        self.clock.advance(self.breaker.rules.open_for)

    @property
    def path(self) -> list[str]:
        return [transition.to_state.value for transition in self.transitions]


def test_consecutive_failures_trip_it_and_a_success_between_does_not_count() -> None:
    """Four failures, a success, four failures: closed; the fifth in a row opens."""
    bench = Bench()
    bench.fail(4)
    bench.succeed()
    bench.fail(4)
    assert bench.breaker.state is State.CLOSED
    bench.fail()
    assert bench.breaker.state is State.OPEN
    assert bench.transitions[0].failures[-1].correlation_id == "abc"


def test_an_open_circuit_says_how_long_and_why() -> None:
    """The refusal carries the real remaining time, the upstream and the reason."""
    bench = Bench()
    bench.fail(5)
    bench.clock.advance(20.5)
    error = bench.refused()
    assert error.retry_after == pytest.approx(39.5)
    assert error.facts["upstream"] == "svc"
    assert error.facts["cause"] == "5 consecutive failures, the last: 503"
    assert bench.breaker.rejections == 1


def test_three_probes_and_no_more_then_closed() -> None:
    """Half-open lets three through, refuses the fourth, and closes after three successes."""
    bench = Bench()
    bench.half_open()
    probes = [bench.admit() for _ in range(3)]
    assert bench.refused().retry_after == 1.0
    for probe in probes:
        probe.success(bench.now, 0.1)
    assert bench.breaker.state is State.CLOSED
    assert bench.path == ["open", "half_open", "closed"]


def test_one_failed_probe_opens_it_again() -> None:
    """Two good probes do not outweigh a bad one; the third's outcome comes late."""
    bench = Bench()
    bench.half_open()
    one, two, three = bench.admit(), bench.admit(), bench.admit()
    one.success(bench.now, 0.1)
    two.failure(bench.now, "timeout")
    three.success(bench.now, 0.1)
    assert bench.breaker.state is State.OPEN
    assert bench.breaker.late == 1


def test_a_cancelled_probe_counts_as_neither_and_frees_its_place() -> None:
    """A client that leaves during a probe leaves room for the next."""
    bench = Bench(half_open_max_calls=1)
    bench.half_open()
    bench.admit().cancel()
    bench.admit().success(bench.now, 0.1)
    assert bench.breaker.state is State.CLOSED


def test_a_hung_probe_is_given_back_after_its_lease() -> None:
    """A probe without outcome blocks its place for the lease; its late success is nothing."""
    bench = Bench(half_open_max_calls=1)
    bench.half_open()
    hung = bench.admit()
    bench.refused()
    bench.clock.advance(10.0)
    second = bench.admit()
    hung.success(bench.now, 10.0)
    assert bench.breaker.state is State.HALF_OPEN
    second.success(bench.now, 0.1)
    assert bench.breaker.state is State.CLOSED


def test_late_outcomes_of_an_earlier_state_change_nothing() -> None:
    """Calls admitted while closed that fail after the trip neither count nor reopen later."""
    bench = Bench(half_open_max_calls=1)
    slow = [bench.admit() for _ in range(10)]
    bench.half_open()
    for permit in slow[:5]:
        permit.failure(bench.now, "timeout")
    bench.admit().success(bench.now, 0.1)
    for permit in slow[5:]:
        permit.failure(bench.now, "timeout")
    assert bench.breaker.state is State.CLOSED
    assert bench.breaker.limits.failures == 0
    assert bench.breaker.late == 10


def test_open_time_doubles_up_to_its_limit_with_jitter_and_starts_anew_after_closing() -> None:
    """10 s, about 20 s, about 40 s, never shorter and at most a tenth longer; then 10 s again."""
    bench = Bench(open_for="10s", max_open_for="40s", half_open_max_calls=1, failure_threshold=1)
    bench.fail()
    lengths = [bench.breaker.until - bench.now]
    for _ in range(3):
        bench.clock.advance(bench.breaker.until - bench.now)
        bench.admit().failure(bench.now, "503")
        lengths.append(bench.breaker.until - bench.now)
    assert lengths[0] == pytest.approx(10.0)
    for length, base in zip(lengths[1:], (20.0, 40.0, 40.0), strict=True):
        assert base <= length <= base * 1.1 + 1e-6
    bench.clock.advance(50.0)
    bench.succeed()
    bench.fail()
    assert bench.breaker.until - bench.now == pytest.approx(10.0)


def test_failure_ratio_needs_enough_calls() -> None:
    """Half of nine calls failing says nothing, half of ten opens."""
    bench = Bench(failure_ratio="50%", minimum_calls=10, failure_threshold=100)
    for _ in range(4):
        bench.succeed()
        bench.fail()
    bench.succeed()
    assert bench.breaker.state is State.CLOSED
    bench.fail()
    assert bench.breaker.state is State.OPEN
    assert bench.breaker.reason == "5 of 10 calls failed within 30s"


def test_failures_older_than_the_window_are_forgotten() -> None:
    """Nine failures half a minute ago and one now are one failure of one call."""
    bench = Bench(failure_ratio="50%", minimum_calls=10, failure_threshold=100)
    bench.fail(9)
    bench.clock.advance(31.0)
    bench.fail()
    assert bench.breaker.state is State.CLOSED


def test_slow_calls_trip_it_and_slow_probes_open_it_again() -> None:
    """Slow successes count where slow_ratio is set: closed they open it, as probes too."""
    bench = Bench(slow_call="1s", slow_ratio="60%", minimum_calls=5)
    bench.succeed(2)
    bench.succeed(3, duration=1.5)
    assert bench.breaker.state is State.OPEN
    bench.clock.advance(60.0)
    bench.succeed(duration=1.5)
    assert bench.breaker.state is State.OPEN
    assert bench.breaker.reason == "a probe failed: slow"


def test_forced_open_refuses_until_its_time_is_over_then_probes() -> None:
    """By hand: refused for ten minutes, then half-open, whatever calls did."""
    bench = Bench()
    bench.breaker.force(CircuitEvent.FORCE_OPEN, bench.now, "quota used up", 600.0)
    assert bench.refused().retry_after == pytest.approx(600.0)
    bench.clock.advance(600.0)
    bench.admit().cancel()
    assert bench.breaker.state is State.HALF_OPEN


def test_forced_closed_counts_nothing_until_its_time_is_over() -> None:
    """By hand: a hundred failures pass; afterwards five are enough again."""
    bench = Bench()
    bench.breaker.force(CircuitEvent.FORCE_CLOSE, bench.now, "we know", 60.0)
    bench.fail(100)
    assert bench.breaker.state is State.FORCED_CLOSED
    bench.clock.advance(60.0)
    bench.fail(5)
    assert bench.breaker.state is State.OPEN


def test_reset_closes_and_forgets() -> None:
    """Reset of an open one closes it; of a closed one it clears the counts."""
    bench = Bench()
    bench.fail(5)
    bench.breaker.force(CircuitEvent.RESET, bench.now, "fixed", 0.0)
    bench.fail(4)
    bench.breaker.force(CircuitEvent.RESET, bench.now, "fixed", 0.0)
    bench.fail(4)
    assert bench.breaker.state is State.CLOSED


def test_a_reload_keeps_the_state() -> None:
    """New rules apply to an open breaker that stays open."""
    bench = Bench()
    bench.fail(5)
    bench.breaker.configure(BreakerRules(failure_threshold=2), 10.0)
    assert bench.breaker.state is State.OPEN


def test_healthy_traffic_has_nothing_to_report() -> None:
    """While closed and well, no outcome makes work for Redis, shared or not."""
    bench = Bench()
    woken: list[bool] = []
    bench.breaker.wake = lambda _breaker, urgent: woken.append(urgent)
    bench.breaker.shared = True
    bench.succeed(1000)
    assert not woken
    assert bench.breaker.reports.pending is None


def fleet_state(state: State, generation: int, failures: int, tid: str) -> SharedState:
    """A reply of Redis; its log has our own transition `tid`, if there is one."""
    entry = LogEntry(generation, State.CLOSED, State.OPEN, "five", "me", tid, False)
    return SharedState(
        name="svc",
        generation=generation,
        state=state,
        server_time=0.0,
        remaining=60.0 if state is State.OPEN else 0.0,
        age=0.0,
        failures=failures,
        successes=0,
        opens=int(state is State.OPEN),
        reason="five" if tid else "",
        by="me",
        log=(entry,) if tid else (),
        recent=(),
        granted=(),
    )


def test_a_trip_holds_while_the_answer_to_an_earlier_report_comes() -> None:
    """The report on its way when the circuit trips is answered "closed": that lets nobody in."""
    bench = Bench()
    bench.breaker.adopt(fleet_state(State.CLOSED, 100, 0, ""), bench.now)
    bench.breaker.shared = True
    bench.fail(4)
    earlier = bench.breaker.reports.take()
    bench.fail()
    assert bench.breaker.state is State.OPEN
    bench.breaker.adopt(fleet_state(State.CLOSED, 100, 4, ""), bench.now, earlier)
    bench.refused()
    assert bench.transitions == []
    trip = bench.breaker.reports.take()
    assert trip is not None
    assert trip.trip
    bench.breaker.adopt(fleet_state(State.OPEN, 101, 0, trip.tid), bench.now, trip)
    bench.refused()
    assert bench.path == ["open"]


def test_a_caller_learns_when_the_fleet_has_decided() -> None:
    """Once the open time is over a caller may wait: for a lease, a loss of Redis, another state."""
    bench = Bench()
    bench.breaker.adopt(fleet_state(State.OPEN, 100, 0, ""), bench.now)
    bench.breaker.shared = True
    called: list[str] = []
    assert bench.breaker.ask(bench.now, lambda: called.append("early")) is None
    bench.clock.advance(60.0)
    granted = bench.breaker.ask(bench.now, lambda: called.append("granted"))
    assert granted is not None
    assert bench.breaker.leases_wanted == 1
    bench.breaker.adopt(fleet_state(State.HALF_OPEN, 101, 0, ""), bench.now)
    assert granted.waiting
    bench.breaker.grant(["lease"], 101, bench.now, bench.now)
    bench.breaker.callers.answer()
    assert called == ["granted"]
    assert bench.breaker.ask(bench.now, lambda: called.append("late")) is None
    bench.admit().cancel()
    left = bench.breaker.ask(bench.now, lambda: called.append("left"))
    lost = bench.breaker.ask(bench.now, lambda: called.append("lost"))
    assert left is not None
    bench.breaker.callers.leave(left)
    bench.breaker.unreachable(bench.now)
    assert lost is not None
    assert not lost.waiting
    assert called == ["granted", "lost"]


def test_who_waits_still_waits_for_a_lease_when_another_ends_the_open_time() -> None:
    """A half-open state pushed by another process does not take the waiting caller's place."""
    bench = Bench()
    bench.breaker.adopt(fleet_state(State.OPEN, 100, 0, ""), bench.now)
    bench.breaker.shared = True
    bench.clock.advance(60.0)
    caller = bench.breaker.ask(bench.now, lambda: None)
    assert caller is not None
    bench.breaker.adopt(fleet_state(State.HALF_OPEN, 101, 0, ""), bench.now)
    assert caller.waiting
    assert bench.breaker.leases_wanted == 1


def test_an_unused_lease_is_kept_as_long_as_a_refused_caller_was_told_to_wait() -> None:
    """Who comes again after `Retry-After` finds it; when nobody does, the fleet has it back."""
    bench = Bench()
    bench.breaker.adopt(fleet_state(State.HALF_OPEN, 100, 0, ""), bench.now)
    bench.breaker.shared = True
    transitions = bench.refused().retry_after
    assert transitions == 1.0
    bench.breaker.grant(["one", "two"], 100, bench.now, bench.now)
    bench.clock.advance(transitions + 0.1)
    bench.breaker.give_back(bench.now)
    assert bench.breaker.reports.pending is None
    assert bench.admit() is not None
    bench.clock.advance(0.2)
    bench.breaker.give_back(bench.now)
    report = bench.breaker.reports.take()
    assert report is not None
    assert report.probes == [("two", "cancel")]


def test_an_expiring_window_never_counts_below_zero() -> None:
    """Buckets that turn take exactly what they added."""
    window = SlidingWindow(10.0)
    rng = random.Random(1)
    now = 100.0
    for _ in range(2000):
        now += rng.choice((0.0, 0.1, 0.9, 3.0, 12.0))
        window.add(now, failed=rng.random() < 0.5, slow=rng.random() < 0.2)
        assert window.calls > 0
        assert 0 <= window.failed <= window.calls
        assert 0 <= window.slow <= window.calls


@pytest.mark.parametrize(
    ("state", "ahead", "lease"),
    [
        (State.HALF_OPEN, 10.0, True),
        (State.OPEN, -0.001, True),
        (State.OPEN, 0.0, True),
        (State.OPEN, 0.001, False),
        (State.FORCED_OPEN, 10.0, False),
    ],
)
def test_a_refused_call_wants_a_lease_only_where_one_would_help(
    state: State, ahead: float, lease: bool
) -> None:
    """In a fleet, a lease makes a probe of a call once the open time is over, not before."""
    bench = Bench()
    bench.breaker.shared = True
    bench.breaker._enter(state, bench.now, bench.now + ahead, "a test", "another")
    with pytest.raises(CircuitOpen):
        bench.breaker.admit(bench.now)
    assert bench.breaker.wanted == (1 if lease else 0)
    assert bench.breaker.awaited == (not lease)
