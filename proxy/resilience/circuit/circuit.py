"""One circuit breaker as one process sees it. Pure: takes `now`, sends nothing, waits for nothing.

Rules
1. `admit` decides at once, in local memory. Each permit ends in exactly one of `success`, `failure`
   and `cancel`; a cancelled permit counts as neither.
2. Every change of state starts a new epoch. A permit knows its epoch; an outcome from an earlier
   epoch is late and changes nothing.
3. Consecutive failures in this process trip the breaker at once. Every outcome that the fleet must
   know (a failure, the success that ends a run of failures, a probe's result) goes into one
   `Report`, which sync.py sends. While calls succeed there is nothing to report.
4. `shared` means that Redis is reachable. Then probes need a lease from Redis (`grant`), and only
   Redis ends the open time or closes the circuit; a caller may wait for its reply (`ask`). Without
   Redis, all of that is decided here, with the same table and the same limits.
5. Redis' state wins (`adopt`), by generation; older states are ignored. A trip decided here stands
   until Redis has replied to the report that contains it, not to an earlier one.
6. A transition is counted once in the fleet, by the process that made it (reports.py).
7. A call without a permit may be held instead of refused (`held`, holding.py). It wants a lease
   like any caller, is woken when one arrives, and proceeds when the circuit closes.
8. A good health check (`proven_well`) ends the open time early, but never a state that an operator
   has set.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable

from proxy.config.upstreams import Breaker as BreakerRules
from proxy.core.clock import Clock
from proxy.core.errors import CircuitOpen
from proxy.resilience.circuit.holding import NEVER, Held, HoldQueue
from proxy.resilience.circuit.leases import PROBE_RETRY_AFTER, Caller, Callers, ProbeLeases
from proxy.resilience.circuit.messages import Failure, ProbeOutcome, Report, SharedState, Transition
from proxy.resilience.circuit.open_time import OpenTime
from proxy.resilience.circuit.permits import NeutralPermit, Permit, ProbePermit
from proxy.resilience.circuit.reports import Reports
from proxy.resilience.circuit.states import CircuitEvent, State, next_state
from proxy.resilience.circuit.window import TripLimits

#: Failures kept to show why the circuit opened.
RECENT = 10


class CircuitBreaker:
    """The breaker of the upstream `name`.

    `owner` is the unique name of this process. `wake(breaker, urgent)` is called when there
    is something to send; `on_transition(breaker, transition)` for every transition. Times are
    monotonic seconds of `clock` unless said otherwise. `probe_lease` is in seconds.
    """

    def __init__(
        self,
        name: str,
        rules: BreakerRules,
        *,
        clock: Clock,
        owner: str,
        probe_lease: float = 62.0,
        rng: random.Random | None = None,
        on_transition: Callable[
            [CircuitBreaker, Transition], None
        ] = lambda _breaker, _transition: None,
    ) -> None:
        self.name = name
        self.owner = owner
        self.clock = clock
        self.wake: Callable[[CircuitBreaker, bool], None] = lambda _breaker, _urgent: None
        self._on_transition = on_transition
        self.open_time = OpenTime(rules, rng or random.Random())  # noqa: S311 (jitter)
        self.state = State.CLOSED
        self.epoch = 0
        self.generation = 0
        self.shared = False
        self.since = clock.monotonic()
        self.until = 0.0
        self.opens = 0
        self.fleet_failures = 0
        self.successes = 0
        self.reason = ""
        self.by = ""
        self.recent: deque[Failure] = deque(maxlen=RECENT)
        self.rejections = 0
        self.late = 0
        self.probes_started = 0
        self.wanted = 0  # leases that callers would use
        self.awaited = False  # a call was refused while the circuit was open
        self.callers = Callers()
        self.held = HoldQueue()
        self._well: str | None = None  # why the open time may end early; Redis decides
        self.leases = ProbeLeases(owner)
        self.reports = Reports(owner, lambda transition: self._on_transition(self, transition))
        self.limits = TripLimits()
        self.configure(rules, probe_lease)
        self._permit = Permit(self, 0)

    def configure(self, rules: BreakerRules, probe_lease: float) -> None:
        """Apply rules, also at a reload; state and counts stay."""
        self.rules = self.open_time.rules = rules
        self.probe_lease = probe_lease
        self.limits.configure(rules)

    # --- the request path -----------------------------------------------------------------------

    def admit(self, now: float) -> Permit:
        """A permit for one call. Raises `CircuitOpen` at once if there is none."""
        if self.state is State.CLOSED:
            return self._permit
        return self._admit_slowly(now)

    def ask(self, now: float, ready: Callable[[], None]) -> Caller | None:
        """Wait for Redis' reply if a call now only lacks a lease to be a probe; `ready` is called
        when `admit` may decide differently. None if waiting would change nothing."""
        probing = self.state is State.HALF_OPEN
        over = self.state in (State.OPEN, State.FORCED_OPEN) and now >= self.until
        if not self.shared or self.leases.at_hand(now) or not (probing or over):
            return None
        self.wanted += 1
        self.wake(self, True)
        return self.callers.join(ready)

    def hold(self, ready: Callable[[], None]) -> Held:
        """Hold a call; `ready` is called when it should ask again. The caller owes a
        `held.leave`."""
        held = self.held.join(ready)
        if self.shared:
            self.wake(self, True)
        return held

    def _admit_slowly(self, now: float) -> Permit:
        permit = self.try_admit(now)
        if permit is not None:
            return permit
        if self.shared:
            if self.state is State.HALF_OPEN or (self.state is State.OPEN and now >= self.until):
                self.wanted += 1
                self.wake(self, True)
            else:
                # sync.py ends the open time when it is over, but takes no lease: this caller may
                # never return, and the lease would be missing in other processes.
                self.awaited = True
        raise self.refuse(now)

    def try_admit(self, now: float) -> Permit | None:
        """A permit for one call; None if there is none at this moment."""
        if now >= self.until and not self.shared and self.state is not State.HALF_OPEN:
            self._decide(CircuitEvent.TIME_OVER, now, "open time is over")
        state = self.state
        if state is State.CLOSED or state is State.FORCED_CLOSED:
            return self._permit
        if state is State.HALF_OPEN or (state is State.OPEN and now >= self.until):
            lease = self._lease(now)
            if lease is not None:
                self.probes_started += 1
                return ProbePermit(self, self.epoch, lease)
        return None

    def refuse(self, now: float) -> CircuitOpen:
        """Count a refusal and return its error."""
        self.rejections += 1
        remaining = 0.0
        why = "recovery is being probed"
        if self.state is not State.HALF_OPEN:
            remaining = self.until - now
            why = self.reason
        return CircuitOpen(
            f"Calls to {self.name} are suspended: {why}",
            retry_after=remaining if remaining > 0 else PROBE_RETRY_AFTER,
            upstream=self.name,
            cause=why,
        )

    @property
    def next_chance(self) -> float:
        """When the first held call should ask again unwoken, in monotonic seconds."""
        if self.shared:
            return NEVER  # sync.py watches the clock
        if self.state is State.HALF_OPEN:
            return min(self.leases.in_use.values(), default=NEVER)
        return self.until

    def proven_well(self, now: float, asked_at: float, why: str) -> None:
        """A health check that began at `asked_at` (monotonic) has succeeded."""
        if self.state is not State.OPEN or asked_at < self.since:
            return
        if self.shared:
            self._well = why
            self.wake(self, True)
        else:
            self._decide(CircuitEvent.TIME_OVER, now, why)

    def take_proof(self) -> str:
        """The reason passed to `proven_well`, to be sent to Redis once; empty if there is none."""
        well, self._well = self._well, None
        return well or ""

    def _lease(self, now: float) -> str | None:
        if self.shared:
            return self.leases.take(now) if self.state is State.HALF_OPEN else None
        most = self.rules.half_open_max_calls - self.successes
        return self.leases.make(now, self.probe_lease, most)

    # --- outcomes -------------------------------------------------------------------------------

    def failed_call(self, kind: str, target: str | None, correlation_id: str | None) -> Failure:
        """The record of a failure at this moment."""
        return Failure(self.clock.time(), kind, target, correlation_id)

    def succeeded(self, now: float, duration: float) -> None:
        """Record a call's result, from a permit of the current epoch."""
        if self.fleet_failures:
            self.fleet_failures = 0
            if self.shared:
                report = self._reporting()
                report.reset = True
                report.failures = 0
                self.wake(self, False)
        why = self.limits.succeeded(now, duration)
        if why is not None:
            self._trip(now, why)

    def failed(
        self,
        now: float,
        kind: str,
        target: str | None,
        correlation_id: str | None,
        duration: float,
    ) -> None:
        """Record a call's result, from a permit of the current epoch."""
        failure = self.failed_call(kind, target, correlation_id)
        self.recent.append(failure)
        self.fleet_failures += 1
        if self.shared:
            report = self._reporting()
            report.failures += 1
            report.recent.append(failure)
            if len(report.recent) > RECENT:
                del report.recent[0]
            self.wake(self, self.fleet_failures >= self.rules.failure_threshold)
        why = self.limits.failed(now, kind, duration)
        if why is not None:
            self._trip(now, why)

    def _trip(self, now: float, reason: str) -> None:
        report = self._reporting() if self.shared else None
        if report is not None:
            report.trip = reason
        self._decide(CircuitEvent.TRIP, now, reason)

    def probed(
        self, now: float, lease: str, epoch: int, outcome: ProbeOutcome, failure: Failure | None
    ) -> None:
        """Record a probe's result, from a permit of any epoch."""
        over = self.leases.end(lease)
        if epoch != self.epoch or over is None or (outcome != "cancel" and now >= over):
            self.late += 1
            return
        if self.shared:
            report = self._reporting()
            report.probes.append((lease, outcome))
            if failure is not None:
                report.recent.append(failure)
        if failure is not None:
            self.recent.append(failure)
            self._decide(CircuitEvent.PROBE_FAILURE, now, f"a probe failed: {failure.kind}")
        elif outcome == "success" and not self.shared:
            self._probe_passed(now)
        elif outcome == "success":
            self.wanted += 1  # get the lease for the next call in advance
        if self.shared:
            self.wake(self, True)
        elif self.state is State.HALF_OPEN:
            self.held.wake(1)  # a slot is free

    def _probe_passed(self, now: float) -> None:
        self.successes += 1
        if self.successes >= self.rules.half_open_max_calls:
            self._decide(CircuitEvent.PROBES_PASSED, now, f"{self.successes} probes succeeded")

    # --- local decisions ------------------------------------------------------------------------

    def force(self, event: CircuitEvent, now: float, reason: str, seconds: float) -> None:
        """Open, close or reset by hand in this process, when there is no Redis to do it in."""
        self._decide(event, now, reason, seconds)
        if event is CircuitEvent.RESET:
            self._forget()

    def tick(self, now: float) -> None:
        """Without Redis, end a forced state whose time is over."""
        forced = self.state in (State.FORCED_OPEN, State.FORCED_CLOSED)
        if forced and now >= self.until and not self.shared:
            self._decide(CircuitEvent.TIME_OVER, now, "forced time is over")

    def _decide(self, event: CircuitEvent, now: float, reason: str, seconds: float = 0.0) -> None:
        before = self.state
        after = next_state(before, event)
        if after is before and event not in (CircuitEvent.FORCE_OPEN, CircuitEvent.FORCE_CLOSE):
            return
        if after is State.OPEN:
            self.opens += 1
            seconds = self.open_time.of(self.opens)
        elif after is State.CLOSED:
            self.opens = 0
        pending = self.reports.pending
        tid = pending.tid if pending else self.reports.new_tid()
        transition = Transition(
            before,
            after,
            reason,
            self.generation,
            True,
            self.owner,
            tid,
            open_for=seconds,
            failures=tuple(self.recent),
        )
        self._enter(after, now, now + seconds, reason, self.owner)
        if after is before:
            return
        if self.shared:
            self.reports.provisional = transition
            self.wake(self, True)
        else:
            self.reports.made(transition)

    def _enter(self, state: State, now: float, until: float, reason: str, by: str) -> None:
        self.state = state
        self.epoch += 1
        self.since = now
        self.until = until
        self.reason = reason
        self.by = by
        self.awaited = False
        self._well = None
        self.leases.clear()
        self._forget()
        if state is not State.HALF_OPEN:  # half open, Redis' reply is still to come
            self.callers.answer()
        self.wanted = len(self.callers)
        if state in (State.CLOSED, State.FORCED_CLOSED):
            self.held.release(now, self.rules.half_open_max_calls)
        elif self.held:
            self._serve_held()
        self._permit = (
            NeutralPermit(self, self.epoch)
            if state is State.FORCED_CLOSED
            else Permit(self, self.epoch)
        )

    def _serve_held(self) -> None:
        """The state has changed while calls are held: wake whoever must act on it."""
        if self.shared:
            self.wake(self, True)
        else:
            self.held.wake(self.rules.half_open_max_calls if self.state is State.HALF_OPEN else 1)

    def _forget(self) -> None:
        self.fleet_failures = self.successes = 0
        self.limits.clear()

    # --- to the fleet ---------------------------------------------------------------------------

    def _reporting(self) -> Report:
        """The report that collects what the fleet must know. Once taken (`reports.take`), it must
        end in `adopt(..., answers=report)` or `report_lost`."""
        return self.reports.open(self.generation, self.epoch)

    def report_lost(self, report: Report, now: float) -> None:
        """Redis did not reply and may not have got the report: decide here in its place."""
        self.reports.settle(report.tid)
        if self.state is State.HALF_OPEN and report.epoch == self.epoch:
            for _lease, outcome in report.probes:
                if outcome == "success" and self.state is State.HALF_OPEN:
                    self._probe_passed(now)

    def unreachable(self, now: float) -> None:
        """Redis is unreachable: decide everything locally from now on."""
        if not self.shared:
            return
        report = self.reports.take()
        self.shared = False
        if report is not None:
            self.report_lost(report, now)
        self.leases.drop_granted()
        self.callers.answer()
        if self.held:
            self._serve_held()

    def retire(self, now: float) -> None:
        """The breaker was removed from the config: release held calls and send nothing more."""
        self.wake = lambda _breaker, _urgent: None
        self.shared = False
        self._enter(State.CLOSED, now, now, "", self.owner)

    # --- from the fleet -------------------------------------------------------------------------

    def adopt(self, seen: SharedState, now: float, answers: Report | None = None) -> None:
        """Adopt Redis' state unless it is outdated. `answers` is the report that it replies to."""
        if seen.generation < self.generation or seen.generation == 0:
            return
        if self.reports.outdated(seen, self.generation, answers):
            return  # rule 5: the reply is older than our trip
        known = self.generation
        newer = seen.generation > known
        if seen.recent and (newer or answers is None):
            self.recent.clear()
            self.recent.extend(seen.recent[-RECENT:])
        self.generation = seen.generation
        remaining = seen.remaining
        if seen.state is State.OPEN:
            remaining = min(remaining, self.open_time.longest)
        if newer or seen.state is not self.state:
            self._enter(seen.state, now, now + remaining, seen.reason, seen.by)
            self.since = now - seen.age
        elif self.state is not State.CLOSED:
            # Never later than before: Redis' clock may have stepped back.
            self.until = min(self.until, now + remaining)
        self.opens = seen.opens
        self.successes = seen.successes
        self.fleet_failures = seen.failures
        pending = self.reports.pending
        if pending is not None:
            before = 0 if pending.reset else seen.failures
            self.fleet_failures = before + pending.failures
        self.reports.announce(seen, known, tuple(self.recent))

    def grant(self, leases: Iterable[str], generation: int, now: float, asked_at: float) -> None:
        """Add leases from Redis. They expire `probe_lease` after they were requested, at
        `asked_at`."""
        if generation != self.generation or self.state is not State.HALF_OPEN:
            return
        self.leases.grant(leases, now, asked_at + self.probe_lease)
        self.wanted = 0
        self.held.wake(self.leases.granted)

    def give_back(self, now: float) -> None:
        """Return leases that no call has used in time, and take back those of calls that hang."""
        for lease in self.leases.give_back(now):
            self._reporting().probes.append((lease, "cancel"))
        self.leases.expire(now)

    @property
    def leases_wanted(self) -> int:
        """The number of probe leases that callers would use at this moment."""
        wanted = max(self.wanted, len(self.held))
        return min(wanted, self.rules.half_open_max_calls) if not self.leases.granted else 0

    @property
    def next_time(self) -> float | None:
        """When sync.py should check this breaker again unwoken, in monotonic seconds."""
        if self.leases.granted:
            return self.leases.give_back_at
        forced = self.state in (State.FORCED_OPEN, State.FORCED_CLOSED)
        if forced or (self.state is State.OPEN and (self.wanted or self.awaited or self.held)):
            return self.until
        return None

    @property
    def probes_in_flight(self) -> int:
        """The number of probes of this process in progress."""
        return len(self.leases.in_use)
