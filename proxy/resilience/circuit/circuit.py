"""One circuit breaker as one process sees it. Pure: takes `now`, sends nothing, waits for nothing.

Rules
1. `admit` decides in local memory and at once. Each permit it gives ends in exactly one of
   `success`, `failure`, `cancel`; a cancelled one counts as neither.
2. Every change of state makes a new epoch. A permit knows its epoch; an outcome of an earlier one
   is late and changes nothing.
3. Consecutive failures here trip it here, at once. Every outcome that the fleet must know (a
   failure; the success that ends a run of failures; a probe's) goes into one `Report`, which
   sync.py sends. While all is well there is nothing to report.
4. `shared` says that Redis is within reach. Then probes need a lease from Redis (`grant`), and
   only Redis ends the open time or closes. A caller may wait for that answer (`ask`). Without Redis
   all of that is decided here, with the same table and the same limits.
5. What Redis says wins (`adopt`), by generation: older news is ignored. A trip decided here holds
   until Redis has answered the very report that tells of it, not one that left before.
6. A transition is counted once in the fleet: by the process that made it. `_mine` remembers which
   were counted here, because the answer that told of one may have been lost.
7. A call without leave may be held instead of refused (`held`, holding.py). It wants a lease like
   any caller, is woken when one is here, and goes when the circuit closes.
8. A health check that finds the upstream well (`proven_well`) ends the open time early, never a
   time that an operator has set.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable

from proxy.config.upstreams import Breaker as BreakerRules
from proxy.core.clock import Clock
from proxy.core.errors import CircuitOpen
from proxy.resilience.circuit.holding import NEVER, Held, HoldQueue
from proxy.resilience.circuit.leases import Caller, Callers
from proxy.resilience.circuit.messages import Failure, ProbeOutcome, Report, SharedState, Transition
from proxy.resilience.circuit.permits import NeutralPermit, Permit, ProbePermit
from proxy.resilience.circuit.states import CircuitEvent, State, next_state
from proxy.resilience.circuit.window import SlidingWindow

#: Failures kept to tell why it opened.
RECENT = 10
#: What a caller is told to wait, in seconds, when probes are under way but none is free.
_PROBE_RETRY_AFTER = 1.0
#: Seconds an unused probe lease is kept before it is given back to the fleet. Whoever was refused
#: and comes again when told (`Retry-After`, in whole seconds) finds it; kept longer, it would only
#: keep the callers of other processes from probing.
HOLD = _PROBE_RETRY_AFTER + 0.25


class CircuitBreaker:
    """The breaker of the upstream `name`.

    `owner` is this process' name in the fleet, unique. `wake(breaker, urgent)` is called when there
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
        self._random = rng or random.Random()  # noqa: S311 (jitter)
        self.state = State.CLOSED
        self.epoch = 0
        self.generation = 0
        self.shared = False
        self.since = clock.monotonic()
        self.until = 0.0
        self.opens = 0
        self.failures = 0
        self.fleet_failures = 0
        self.successes = 0
        self.reason = ""
        self.by = ""
        self.recent: deque[Failure] = deque(maxlen=RECENT)
        self.rejections = 0
        self.late = 0
        self.probes_started = 0
        self.wanted = 0  # leases that callers would use
        self.awaited = False  # somebody was refused while it was open
        self.callers = Callers()
        self.held = HoldQueue()
        self._well: str | None = None  # why the open time may end early; Redis has the last word
        self._probes: dict[str, float] = {}  # leases in use here, and when each is over
        self._grants: deque[tuple[str, float, float]] = deque()  # lease, hold until, over at
        self._provisional: Transition | None = None  # decided here, not yet answered
        self._mine: deque[str] = deque(maxlen=64)
        self._serial = 0
        self._report: Report | None = None
        self._window: SlidingWindow | None = None
        self.configure(rules, probe_lease)
        self._permit = Permit(self, 0)

    def configure(self, rules: BreakerRules, probe_lease: float) -> None:
        """Take new rules, also at a reload; state and counts stay. A window of another length is
        another window: it begins empty."""
        self.rules = rules
        self.probe_lease = rules.probe_lease or probe_lease
        if rules.failure_ratio is None and rules.slow_ratio is None:
            self._window = None
        elif self._window is None or self._window.span != rules.window:
            self._window = SlidingWindow(rules.window)

    # --- the request path -----------------------------------------------------------------------

    def admit(self, now: float) -> Permit:
        """A permit for one call. Raises `CircuitOpen` at once where there is none."""
        if self.state is State.CLOSED:
            return self._permit
        return self._admit_slowly(now)

    def ask(self, now: float, ready: Callable[[], None]) -> Caller | None:
        """Wait for the fleet's answer where a call now would be a probe but for its lease; `ready`
        is called when `admit` knows more. None where it knows all already."""
        probing = self.state is State.HALF_OPEN
        over = self.state in (State.OPEN, State.FORCED_OPEN) and now >= self.until
        at_hand = any(lease_over > now for _lease, _hold, lease_over in self._grants)
        if not self.shared or at_hand or not (probing or over):
            return None
        self.wanted += 1
        self.wake(self, True)
        return self.callers.join(ready)

    def hold(self, ready: Callable[[], None]) -> Held:
        """Wait for leave; `ready` is called when it is worth asking again. Owes a `held.leave`."""
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
                # never come again, and another process' callers would be kept from probing.
                self.awaited = True
        raise self.refuse(now)

    def try_admit(self, now: float) -> Permit | None:
        """A permit for one call; None where there is none at this moment."""
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
        """The error for a call that gets no permit. Counts it."""
        self.rejections += 1
        remaining = 0.0
        why = "recovery is being probed"
        if self.state is not State.HALF_OPEN:
            remaining = self.until - now
            why = self.reason
        return CircuitOpen(
            f"Calls to {self.name} are suspended: {why}",
            retry_after=remaining if remaining > 0 else _PROBE_RETRY_AFTER,
            upstream=self.name,
            cause=why,
        )

    @property
    def next_chance(self) -> float:
        """When the first held call should ask again without being woken: a monotonic second."""
        if self.shared:
            return NEVER  # sync.py watches the clock
        if self.state is State.HALF_OPEN:
            return min(self._probes.values(), default=NEVER)
        return self.until

    def proven_well(self, now: float, asked_at: float, why: str) -> None:
        """A health check that was begun at `asked_at` (monotonic) has found the upstream well."""
        if self.state is not State.OPEN or asked_at < self.since:
            return
        if self.shared:
            self._well = why
            self.wake(self, True)
        else:
            self._decide(CircuitEvent.TIME_OVER, now, why)

    def take_proof(self) -> str:
        """What `proven_well` was given, to be sent to Redis; empty where there is nothing."""
        well, self._well = self._well, None
        return well or ""

    def _lease(self, now: float) -> str | None:
        if self.shared:
            if self.state is not State.HALF_OPEN:
                return None
            while self._grants:
                lease, _hold, over = self._grants.popleft()
                if over > now:
                    self._probes[lease] = over
                    return lease
            return None
        for lease, over in list(self._probes.items()):
            if over <= now:
                del self._probes[lease]
        if self.successes + len(self._probes) >= self.rules.half_open_max_calls:
            return None
        self._serial += 1
        lease = f"{self.owner}:local:{self._serial}"
        self._probes[lease] = now + self.probe_lease
        return lease

    # --- outcomes -------------------------------------------------------------------------------

    def is_slow(self, duration: float) -> bool:
        """Whether a call of `duration` seconds counts as slow."""
        return self.rules.slow_call is not None and duration > self.rules.slow_call

    def failed_call(self, kind: str, target: str | None, correlation_id: str | None) -> Failure:
        """The record of a failure now."""
        return Failure(self.clock.time(), kind, target, correlation_id)

    def succeeded(self, now: float, duration: float) -> None:
        """From a permit of this epoch."""
        if self.failures:
            self.failures = 0
        if self.fleet_failures:
            self.fleet_failures = 0
            if self.shared:
                report = self._reporting()
                report.reset = True
                report.failures = 0
                self.wake(self, False)
        if self._window is not None:
            slow = self.is_slow(duration)
            self._window.add(now, failed=False, slow=slow)
            if slow:
                self._check_window(now)

    def failed(
        self,
        now: float,
        kind: str,
        target: str | None,
        correlation_id: str | None,
        duration: float,
    ) -> None:
        """From a permit of this epoch."""
        failure = self.failed_call(kind, target, correlation_id)
        self.recent.append(failure)
        self.failures += 1
        self.fleet_failures += 1
        if self.shared:
            report = self._reporting()
            report.failures += 1
            report.recent.append(failure)
            if len(report.recent) > RECENT:
                del report.recent[0]
            self.wake(self, self.fleet_failures >= self.rules.failure_threshold)
        if self.failures >= self.rules.failure_threshold:
            told = "failure" if self.failures == 1 else "consecutive failures"
            self._trip(now, f"{self.failures} {told}, the last: {kind}")
            return
        if self._window is not None:
            self._window.add(now, failed=True, slow=self.is_slow(duration))
            self._check_window(now)

    def _check_window(self, now: float) -> None:
        assert self._window is not None
        rules = self.rules
        why = self._window.exceeded(rules.minimum_calls, rules.failure_ratio, rules.slow_ratio)
        if why is not None:
            self._trip(now, f"{why} within {rules.window:g}s")

    def _trip(self, now: float, reason: str) -> None:
        report = self._reporting() if self.shared else None
        if report is not None:
            report.trip = reason
        self._decide(CircuitEvent.TRIP, now, reason)

    def probed(
        self, now: float, lease: str, epoch: int, outcome: ProbeOutcome, failure: Failure | None
    ) -> None:
        """From the permit of a probe, of any epoch."""
        over = self._probes.pop(lease, None)
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
            self.wanted += 1  # the next call should find its lease here already
        if self.shared:
            self.wake(self, True)
        elif self.state is State.HALF_OPEN:
            self.held.wake(1)  # a slot is free

    def _probe_passed(self, now: float) -> None:
        self.successes += 1
        if self.successes >= self.rules.half_open_max_calls:
            self._decide(CircuitEvent.PROBES_PASSED, now, f"{self.successes} probes succeeded")

    # --- decisions of our own -------------------------------------------------------------------

    def force(self, event: CircuitEvent, now: float, reason: str, seconds: float) -> None:
        """Open, close or reset by hand, here: for when there is no Redis to do it in."""
        self._decide(event, now, reason, seconds)
        if event is CircuitEvent.RESET:
            self._forget()

    def tick(self, now: float) -> None:
        """End a forced state whose time is over, where nobody else will."""
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
            seconds = self.open_time(self.opens)
        elif after is State.CLOSED:
            self.opens = 0
        tid = self._report.tid if self._report else self.new_tid()
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
            self._provisional = transition
            self.wake(self, True)
        else:
            self._mine.append(tid)
            self._on_transition(self, transition)

    def open_time(self, opens: int) -> float:
        """Seconds of the `opens`-th opening in a row: doubled each time, bounded, jittered."""
        rules = self.rules
        longest = max(rules.open_for, rules.max_open_for or 0.0)
        grown = min(rules.open_for * 2.0 ** min(opens - 1, 30), longest)
        return grown * self.jitter() if grown > rules.open_for else grown

    @property
    def longest_open(self) -> float:
        """Seconds beyond which no open time goes, whatever anybody says."""
        rules = self.rules
        return max(rules.open_for, rules.max_open_for or 0.0) * (1.0 + rules.jitter)

    def jitter(self) -> float:
        """The factor for one grown open time, from 1 to 1 + `jitter`."""
        return 1.0 + self.rules.jitter * self._random.random()

    def _enter(self, state: State, now: float, until: float, reason: str, by: str) -> None:
        self.state = state
        self.epoch += 1
        self.since = now
        self.until = until
        self.reason = reason
        self.by = by
        self.awaited = False
        self._well = None
        self._probes.clear()
        self._grants.clear()
        self._forget()
        if state is not State.HALF_OPEN:  # there, the answer is still to come
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
        """Calls are held and the state has changed: see to it that somebody acts on it."""
        if self.shared:
            self.wake(self, True)
        else:
            self.held.wake(self.rules.half_open_max_calls if self.state is State.HALF_OPEN else 1)

    def _forget(self) -> None:
        self.failures = self.fleet_failures = self.successes = 0
        if self._window is not None:
            self._window.clear()

    # --- what the fleet hears -------------------------------------------------------------------

    def new_tid(self) -> str:
        """A name for one message to Redis and the transition that it may make."""
        self._serial += 1
        return f"{self.owner}:{self._serial}"

    def _reporting(self) -> Report:
        if self._report is None or self._report.generation != self.generation:
            self._report = Report(self.generation, self.new_tid(), self.epoch)
        return self._report

    def take_report(self) -> Report | None:
        """What is to be sent now. Ends in `adopt(..., answers=report)` or `report_lost`."""
        report, self._report = self._report, None
        return report

    def report_lost(self, report: Report, now: float) -> None:
        """Redis did not answer, perhaps did not hear: decide here what it would have decided."""
        self._settle(report.tid)
        if self.state is State.HALF_OPEN and report.epoch == self.epoch:
            for _lease, outcome in report.probes:
                if outcome == "success" and self.state is State.HALF_OPEN:
                    self._probe_passed(now)

    def decided_here(self, tid: str) -> None:
        """What the message `tid` asked of Redis is done and counted here, its answer being lost:
        it is not counted again should Redis do it later."""
        self._mine.append(tid)

    def _settle(self, tid: str) -> None:
        """A transition decided here stands, whether Redis knows of it or not: count it now."""
        if self._provisional is not None:
            transition, self._provisional = self._provisional, None
            self._mine.append(tid)
            self._on_transition(self, transition)

    def unreachable(self, now: float) -> None:
        """Redis is gone: from here on everything is decided here."""
        if not self.shared:
            return
        report = self.take_report()
        self.shared = False
        if report is not None:
            self.report_lost(report, now)
        self._grants.clear()
        self.callers.answer()
        if self.held:
            self._serve_held()

    def retire(self, now: float) -> None:
        """The config has no such breaker any more: nobody is held, nothing is sent."""
        self.wake = lambda _breaker, _urgent: None
        self.shared = False
        self._enter(State.CLOSED, now, now, "", self.owner)

    # --- what the fleet says --------------------------------------------------------------------

    def adopt(self, news: SharedState, now: float, answers: Report | None = None) -> None:
        """Take over what Redis says, unless it is old. `answers` is the report it replies to."""
        if news.generation < self.generation or news.generation == 0:
            return
        if self._provisional is not None:
            told = answers is not None and answers.tid == self._provisional.tid
            if not told and news.generation == self.generation:
                return  # rule 5: what it answers was said before our trip
            self._provisional = None  # Redis has made it, and says so in its log, or refused it
        known = self.generation
        newer = news.generation > known
        if news.recent and (newer or answers is None):
            self.recent.clear()
            self.recent.extend(news.recent[-RECENT:])
        self.generation = news.generation
        remaining = news.remaining
        if news.state is State.OPEN:
            remaining = min(remaining, self.longest_open)
        if newer or news.state is not self.state:
            self._enter(news.state, now, now + remaining, news.reason, news.by)
            self.since = now - news.age
        elif self.state is not State.CLOSED:
            # Never later than it was said before: Redis' clock may have stepped back.
            self.until = min(self.until, now + remaining)
        self.opens = news.opens
        self.successes = news.successes
        self.fleet_failures = news.failures
        if self._report is not None:
            before = 0 if self._report.reset else news.failures
            self.fleet_failures = before + self._report.failures
        self._announce(news, known)

    def _announce(self, news: SharedState, known: int) -> None:
        for entry in news.log:
            mine = entry.by == self.owner and not entry.restored and entry.tid not in self._mine
            if mine:
                self._mine.append(entry.tid)
            elif entry.generation <= known:
                continue
            self._on_transition(
                self,
                Transition(
                    entry.from_state,
                    entry.to_state,
                    entry.reason,
                    entry.generation,
                    mine,
                    entry.by,
                    entry.tid,
                    entry.restored,
                    news.remaining if entry.generation == news.generation else 0.0,
                    tuple(self.recent),
                ),
            )

    def grant(self, leases: Iterable[str], generation: int, now: float, asked_at: float) -> None:
        """Leases from Redis, asked for at `asked_at`: from then on they run out."""
        if generation != self.generation or self.state is not State.HALF_OPEN:
            return
        for lease in leases:
            self._grants.append((lease, now + HOLD, asked_at + self.probe_lease))
        self.wanted = 0
        self.held.wake(len(self._grants))

    def give_back(self, now: float) -> None:
        """Report leases that no call came for within `HOLD` seconds."""
        while self._grants and self._grants[0][1] <= now:
            lease, _hold, over = self._grants.popleft()
            if over > now:
                self._reporting().probes.append((lease, "cancel"))
        for lease in [lease for lease, over in self._probes.items() if over <= now]:
            del self._probes[lease]  # hung: the fleet has it back already

    @property
    def leases_wanted(self) -> int:
        """How many probe leases callers would use at this moment."""
        wanted = max(self.wanted, len(self.held))
        return min(wanted, self.rules.half_open_max_calls) if not self._grants else 0

    @property
    def next_time(self) -> float | None:
        """When `sync.py` should look here again without being woken: a monotonic second."""
        if self._grants:
            return self._grants[0][1]
        forced = self.state in (State.FORCED_OPEN, State.FORCED_CLOSED)
        if forced or (self.state is State.OPEN and (self.wanted or self.awaited or self.held)):
            return self.until
        return None

    @property
    def has_report(self) -> bool:
        """Whether `take_report` has something."""
        return self._report is not None

    @property
    def probes_in_flight(self) -> int:
        """Probes that this process has under way."""
        return len(self._probes)
