"""A fleet of three against a simple model, as a hypothesis state machine.

Real circuits and the real Lua texts in a real Redis; only the clock is by hand, for the scripts
too (their call of TIME is replaced). The sidecars exchange with Redis when hypothesis says so, hear
of others when it says so, and lose answers when it says so.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from proxy.config.upstreams import Breaker as BreakerRules
from proxy.core.clock import ManualClock
from proxy.core.errors import CircuitOpen
from proxy.demo.redis_server import RedisServer
from proxy.resilience.circuit.circuit import CircuitBreaker
from proxy.resilience.circuit.fleet.store import BreakerStore, parse_snapshot
from proxy.resilience.circuit.messages import Report, SharedState, Transition
from proxy.resilience.circuit.permits import NeutralPermit, Permit, ProbePermit
from proxy.resilience.circuit.states import State

THRESHOLD, OPEN_FOR, PROBES, LEASE = 3, 10.0, 2, 5.0
RULES = BreakerRules(failure_threshold=THRESHOLD, open_for="10s", half_open_max_calls=PROBES)


class HandClockStore(BreakerStore):
    """The real store's messages, sent by a blocking client, with the time given to the scripts."""

    def __init__(self, client: redis.Redis, clock: ManualClock, owner: str) -> None:
        self._client = client  # type: ignore[assignment]
        self._clock = clock
        self._owner = owner
        self._prefix = ""
        self._channel = "cb:events"

    async def _run(self, script: str, breaker: CircuitBreaker, **more: Any) -> SharedState:
        script = script.replace("redis.call('TIME')", "{tonumber(ARGV[2]), tonumber(ARGV[3])}")
        seconds, rest = divmod(self._clock.time(), 1.0)
        keys = self.keys(breaker.name)
        packed = self._arguments(breaker, more)
        client: Any = self._client
        micros = round(rest * 1e6)
        return parse_snapshot(client.eval(script, len(keys), *keys, packed, int(seconds), micros))


def now_(coroutine: Any) -> SharedState:
    """The result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: SharedState = done.value
        return result
    raise AssertionError("the coroutine waited")


@dataclass
class Model:
    """The fleet's breaker as one would explain it on a whiteboard: one machine, one clock."""

    state: State = State.CLOSED
    failures: int = 0
    successes: int = 0
    until: float = 0.0
    leases: dict[str, float] = field(default_factory=dict)
    transitions: int = 0

    def go(self, state: State, until: float = 0.0) -> None:
        self.state, self.until = state, until
        self.failures = self.successes = 0
        self.leases = {}
        self.transitions += 1

    def report(self, report: Report, fresh: bool, now: float) -> None:
        if not fresh:
            return
        if self.state is State.CLOSED:
            self.failures = report.failures + (0 if report.reset else self.failures)
            if report.trip or self.failures >= THRESHOLD:
                self.go(State.OPEN, now + OPEN_FOR)
        elif self.state is State.HALF_OPEN:
            for lease, outcome in report.probes:
                if self.leases.pop(lease, 0.0) <= now:
                    continue
                if outcome == "failure":
                    self.go(State.OPEN, now + OPEN_FOR)
                    break
                self.successes += outcome == "success"
                if self.successes >= PROBES:
                    self.go(State.CLOSED)
                    break

    def acquire(self, granted: tuple[str, ...], want: int, now: float) -> int:
        """How many leases should be given."""
        if self.state in (State.OPEN, State.FORCED_OPEN) and now >= self.until:
            self.go(State.HALF_OPEN)
        if self.state is State.FORCED_CLOSED and now >= self.until:
            self.go(State.CLOSED)
        if self.state is not State.HALF_OPEN:
            return 0
        self.leases = {name: over for name, over in self.leases.items() if over > now}
        free = min(want, PROBES - self.successes - len(self.leases))
        self.leases |= dict.fromkeys(granted, now + LEASE)
        return max(0, free)


@dataclass
class Sidecar:
    """One process: its breaker, its store, the calls it has under way, what it counted."""

    breaker: CircuitBreaker
    store: HandClockStore
    calls: list[Permit] = field(default_factory=list)
    counted: list[Transition] = field(default_factory=list)


class Fleet(RuleBasedStateMachine):
    """Three sidecars, one Redis, one model."""

    client: redis.Redis

    @initialize()
    def begin(self) -> None:
        self.client.flushall()
        self.clock = ManualClock()
        self.model = Model()
        self.current = 0
        self.answer_lost = False
        self.probes: dict[str, tuple[float, int]] = {}
        self.sidecars = []
        for owner in ("a", "b", "c"):
            sidecar = Sidecar(
                CircuitBreaker(
                    "svc",
                    RULES,
                    clock=self.clock,
                    owner=owner,
                    probe_lease=LEASE,
                    rng=random.Random(1),
                ),
                HandClockStore(self.client, self.clock, owner),
            )
            sidecar.breaker._on_transition = lambda _breaker, transition, who=sidecar: (
                who.counted.append(transition) if transition.mine else None
            )
            self.sidecars.append(sidecar)
            self.merge(sidecar)

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def merge(self, sidecar: Sidecar) -> None:
        breaker = sidecar.breaker
        merged = now_(sidecar.store.merge(breaker, self.now, breaker.reports.new_tid()))
        breaker.shared = True
        breaker.adopt(merged, self.now)
        self.current = merged.generation

    def agree(self, merged: SharedState) -> None:
        """Redis and the model say the same."""
        assert merged.state is self.model.state
        assert merged.failures == self.model.failures
        assert merged.successes == self.model.successes
        self.current = merged.generation

    # --- the callers ----------------------------------------------------------------------------

    @rule(who=st.integers(0, 2), times=st.integers(1, 4))
    def call(self, who: int, times: int) -> None:
        sidecar = self.sidecars[who]
        for _ in range(times):
            before = sidecar.breaker.state
            try:
                permit = sidecar.breaker.admit(self.now)
            except CircuitOpen as error:
                refused = error
            else:
                refused = None
            if refused is not None:
                assert before not in (State.CLOSED, State.FORCED_CLOSED)
                assert (refused.retry_after or 0) > 0
                return
            assert before in (State.CLOSED, State.FORCED_CLOSED, State.HALF_OPEN)
            if isinstance(permit, ProbePermit):
                over = dict(sidecar.breaker.leases.in_use)[permit.lease]
                self.probes[permit.lease] = (over, sidecar.breaker.generation)
            sidecar.calls.append(permit)

    @rule(
        who=st.integers(0, 2),
        how=st.sampled_from(["success", "failure", "failure", "cancel"]),
        pick=st.integers(0, 50),
    )
    def end(self, who: int, how: str, pick: int) -> None:
        sidecar = self.sidecars[who]
        if not sidecar.calls:
            return
        permit = sidecar.calls.pop(pick % len(sidecar.calls))
        breaker = sidecar.breaker
        late = permit._epoch != breaker.epoch
        before = (
            breaker.state,
            breaker.limits.failures,
            breaker.successes,
            breaker.reports.pending is not None,
        )
        if isinstance(permit, ProbePermit):
            self.probes.pop(permit.lease, None)
        if how == "success":
            permit.success(self.now, 0.1)
        elif how == "failure":
            permit.failure(self.now, "503")
        else:
            permit.cancel()
        if late or isinstance(permit, NeutralPermit):
            after = (
                breaker.state,
                breaker.limits.failures,
                breaker.successes,
                breaker.reports.pending is not None,
            )
            assert before == after, "a late outcome changed something"

    @rule(seconds=st.sampled_from([0.05, 1.0, 3.5, 5.0, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    # Chance alone seldom finds its way to half-open: these two lead there.

    @rule(who=st.integers(0, 2), published=st.booleans())
    def outage(self, who: int, published: bool) -> None:
        for _ in range(THRESHOLD):
            self.call(who=who, times=1)
            self.end(who=who, how="failure", pick=-1)
        if published:
            self.exchange(who=who, lost=False)
            for other in range(3):
                self.receive(who=other)

    @rule(who=st.integers(0, 2), more=st.integers(0, 2), well=st.booleans())
    def recovery(self, who: int, more: int, well: bool) -> None:
        numbers = {who, (who + more) % 3}
        for number in numbers:
            self.exchange(who=number, lost=False)
            self.receive(who=number)
        self.clock.advance(OPEN_FOR)
        for number in numbers:
            for _ in range(PROBES):
                self.call(who=number, times=1)  # refused, but now a lease is wanted
                self.exchange(who=number, lost=False)
                self.call(who=number, times=1)
                if well:
                    self.end(who=number, how="success", pick=-1)
                    self.exchange(who=number, lost=False)

    # --- the exchange with Redis ----------------------------------------------------------------

    @rule(who=st.integers(0, 2), lost=st.sampled_from([False, False, False, True]))
    def exchange(self, who: int, lost: bool) -> None:
        sidecar = self.sidecars[who]
        breaker, store = sidecar.breaker, sidecar.store
        breaker.give_back(self.now)
        report = breaker.reports.take()
        if report is not None:
            merged = now_(store.report(breaker, report))
            self.model.report(report, report.generation == self.current, self.now)
            self.agree(merged)
            if lost:
                self.answer_lost = True
                breaker.report_lost(report, self.now)
                breaker.unreachable(self.now)
                before = self.model.state
                self.merge(sidecar)
                self.follow_merge(before)
                return
            breaker.adopt(merged, self.now, report)
        want = breaker.leases_wanted
        over = breaker.next_time is not None and breaker.next_time <= self.now
        if want or over:
            before = self.now
            merged = now_(store.acquire(breaker, want, breaker.reports.new_tid()))
            assert len(merged.granted) == self.model.acquire(merged.granted, want, self.now)
            self.agree(merged)
            breaker.adopt(merged, self.now)
            breaker.grant(merged.granted, merged.generation, self.now, before)

    def follow_merge(self, before: State) -> None:
        """A merge may reopen what was decided open here: the model takes that from Redis."""
        merged = now_(self.sidecars[0].store.look(self.sidecars[0].breaker))
        self.current = merged.generation
        if merged.state is not before:
            assert merged.state in (State.OPEN, State.FORCED_OPEN, State.FORCED_CLOSED)
            self.model.go(merged.state, self.now + merged.remaining)
        assert merged.state is self.model.state

    @rule(who=st.integers(0, 2))
    def receive(self, who: int) -> None:
        sidecar = self.sidecars[who]
        sidecar.breaker.adopt(now_(sidecar.store.look(sidecar.breaker)), self.now)

    @rule(
        who=st.integers(0, 2),
        to=st.sampled_from([State.FORCED_OPEN, State.FORCED_CLOSED, State.CLOSED]),
    )
    @precondition(lambda self: self.model.transitions > 1)
    def by_hand(self, who: int, to: State) -> None:
        sidecar = self.sidecars[who]
        breaker = sidecar.breaker
        seconds = 0.0 if to is State.CLOSED else 20.0
        merged = now_(
            sidecar.store.force(breaker, to, "by hand", seconds, breaker.reports.new_tid())
        )
        if to is State.CLOSED and self.model.state is State.CLOSED:
            self.model.failures = 0
        else:
            self.model.go(to, self.now + seconds)
        self.agree(merged)
        breaker.adopt(merged, self.now)

    # --- what must always hold ------------------------------------------------------------------

    @invariant()
    def never_more_probes_than_allowed(self) -> None:
        if getattr(self, "answer_lost", True):
            return  # an outage ends in local decisions: three probes in each process
        flying = [
            lease
            for lease, (over, generation) in self.probes.items()
            if over > self.now and generation == self.current
        ]
        assert len(flying) <= PROBES

    def teardown(self) -> None:
        if not hasattr(self, "sidecars"):
            return
        for _round in range(2):
            for number in range(3):
                self.exchange(who=number, lost=False)
        for number in range(3):
            self.receive(who=number)
        assert {sidecar.breaker.state for sidecar in self.sidecars} == {self.model.state}
        assert {sidecar.breaker.generation for sidecar in self.sidecars} == {self.current}
        counted = [transition for sidecar in self.sidecars for transition in sidecar.counted]
        if not self.answer_lost:
            assert len(counted) == self.model.transitions
            generations = [transition.generation for transition in counted]
            assert len(set(generations)) == len(generations)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    """A blocking client of a Redis for this module alone."""
    directory: Path = tmp_path_factory.mktemp("redis")
    server = RedisServer(directory)
    server.start()
    with redis.Redis(port=server.port, protocol=2) as connection:
        yield connection
    server.kill()


def test_the_fleet_behaves_like_one_breaker(client: redis.Redis) -> None:
    """Whatever order calls, exchanges, losses and time come in, fleet and model agree."""
    Fleet.client = client
    run_state_machine_as_test(
        Fleet,
        settings=settings(
            max_examples=100,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
