"""Synchronizes the breakers of this process with Redis, in the background.

One task sends outcomes, requests probe leases, polls, and merges when Redis comes back. It is woken
by the breakers, by their timers, and by the channel (channel.py) for breakers that other processes
have changed, and sends everything of one round at once.

The poll is the safety net for lost messages. Its interval depends on whether the channel is known
to work: then an idle sidecar polls once in `POLL_QUIET` seconds, while one whose channel is broken
polls every second until it works again.

Redis is `reachable` from a successful merge (which writes) until any command fails. Each change is
logged once. While Redis is unreachable, every breaker decides locally.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from proxy.core.clock import Clock
from proxy.core.tasks import Supervised, Tasks, is_cancelled
from proxy.core.waiting import happened
from proxy.resilience.circuit.circuit import CircuitBreaker
from proxy.resilience.circuit.fleet.channel import Channel
from proxy.resilience.circuit.fleet.store import BreakerStore, StoreError
from proxy.resilience.circuit.messages import Report, SharedState
from proxy.resilience.circuit.states import State

#: Seconds for which ordinary outcomes are batched. Trips and probes are sent at once.
GATHER = 0.05
#: Seconds between two polls, plus or minus a quarter: while the channel is not known to work; while
#: it works and some circuit is not closed; while it works and all circuits are closed.
POLL, POLL_TROUBLED, POLL_QUIET = 1.0, 5.0, 30.0
#: Seconds between two reads caused by messages, so that a flood of them is cheap.
LOOK_PAUSE = 0.02
#: Seconds between two attempts to reach an unreachable Redis.
RETRY = 0.5
#: Seconds after which a process that was refused a probe lease asks again.
DENIED = 0.1

_log = logging.getLogger("proxy.resilience")


class FleetSync:
    """Synchronizes `breakers` (by name, may change at a reload) through `store`.

    `on_reachable(bool)` and `on_delay(seconds)` feed the metrics; the delay is the time from a
    transition in Redis to its arrival here, by Redis' clock.
    """

    def __init__(
        self,
        breakers: Mapping[str, CircuitBreaker],
        store: BreakerStore,
        *,
        clock: Clock,
        where: str,
        tasks: Tasks | None = None,
        on_reachable: Callable[[bool], None] = lambda _up: None,
        on_delay: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self._breakers = breakers
        self._store = store
        self._clock = clock
        self._where = where
        self._on_reachable = on_reachable
        self._on_delay = on_delay
        self.reachable = False
        self._was_reachable: bool | None = None
        self._wake = asyncio.Event()
        self._batch_timer: asyncio.TimerHandle | None = None
        self._dirty: set[str] = set()
        self._ask_after: dict[str, float] = {}
        self._poll_at = 0.0
        self._noticed: set[str] = set()  # breakers that others report as changed
        self._look_at = 0.0
        self._stopping = False
        tasks = tasks or Tasks()
        self._worker = Supervised("breaker-sync", self._work, tasks, ends=True)
        self._channel = Channel(breakers, store, clock, tasks, self._changed, self._poll_soon)
        self.first_try = asyncio.Event()

    def start(self) -> None:
        """Start; returns at once. `first_try` is set after the first attempt to reach Redis."""
        self._worker.start()
        self._channel.start()

    async def stop(self) -> None:
        """Send what is pending (above all, return probe leases) within a second; end both tasks."""
        self._stopping = True
        self._wake.set()
        await self._channel.stop()
        await self._worker.stop(patience=1.0)
        if self._batch_timer is not None:
            self._batch_timer.cancel()
        await self._store.close()

    def woken(self, breaker: CircuitBreaker, urgent: bool) -> None:
        """A breaker has something to send: now if `urgent`, else within `GATHER` seconds. Cheap."""
        self._dirty.add(breaker.name)
        if urgent:
            self._wake.set()
        elif self._batch_timer is None:
            self._batch_timer = asyncio.get_running_loop().call_later(GATHER, self._batch_due)

    def _batch_due(self) -> None:
        self._batch_timer = None
        self._wake.set()

    async def force(self, breaker: CircuitBreaker, to: State, reason: str, seconds: float) -> bool:
        """Set the state in the whole fleet. False if Redis did not confirm it: then the caller sets
        it in this process. A Redis that hung may still apply it later."""
        if not self.reachable:
            return False
        tid = breaker.reports.new_tid()
        try:
            seen = await self._store.force(breaker, to, reason, seconds, tid)
        except StoreError as error:
            self._lost(error)
            breaker.reports.remember(tid)  # not counted again if Redis makes it later
            return False
        breaker.adopt(seen, self._clock.monotonic())
        return True

    # --- the worker -----------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            try:
                if self.reachable:
                    await self._round()
                else:
                    await self._come_back()
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and is_cancelled():
                    raise
                # A bug of our own, or a command cancelled although this task was not. The breakers
                # must not wait for a dead worker: they decide locally, and the worker starts again.
                _log.exception("The exchange of breaker states failed", extra={"event": "fault"})
                self._lost(StoreError(f"a fault of ours: {error!r}"))
            self.first_try.set()
            if self._stopping:
                return
            await self._sleep()

    async def _sleep(self) -> None:
        if not self.reachable:
            self._wake.clear()
            timeout = RETRY * random.uniform(0.75, 1.25)  # noqa: S311 (spreads the fleet)
        else:
            now = self._clock.monotonic()
            timeout = min(self._next_time(now) - now, POLL_QUIET * 1.5)
        # Always pause: work that is due again at once must not starve the requests.
        await happened(self._wake, max(timeout, 0.001))
        self._wake.clear()

    def _next_time(self, now: float) -> float:
        due = (self._due(breaker, now) for breaker in self._breakers.values())
        moments = [moment for moment in due if moment is not None]
        if self._noticed:
            moments.append(self._look_at)
        return min((self._poll_at, self._channel.beat_at, *moments))

    def _due(self, breaker: CircuitBreaker, now: float) -> float | None:
        """When `breaker` needs a round without a wake-up, in monotonic seconds."""
        moment = breaker.next_time
        if moment is None and breaker.state is State.HALF_OPEN and breaker.leases_wanted:
            moment = now
        if moment is None:
            return None
        return max(moment, self._ask_after.get(breaker.name, 0.0))

    async def _round(self) -> None:
        """Synchronize every breaker that needs it, once."""
        now = self._clock.monotonic()
        dirty, self._dirty = self._dirty, set()
        looks: set[str] = set()
        if self._noticed and now >= self._look_at:
            looks, self._noticed = self._noticed, set()
            self._look_at = now + LOOK_PAUSE
        due: list[Coroutine[Any, Any, None]] = []
        if now >= self._poll_at:
            due.append(self._poll(now))
        if now >= self._channel.beat_at:
            due.append(self._channel.beat(now))
        for breaker in self._breakers.values():
            if not breaker.shared:
                due.append(self._merge(breaker))  # new since a reload
                continue
            timed = self._due(breaker, now)
            noticed = breaker.name in looks
            if noticed or breaker.name in dirty or (timed is not None and timed <= now):
                due.append(self._serve(breaker, noticed))
        for outcome in await asyncio.gather(*due, return_exceptions=True):
            if isinstance(outcome, StoreError):
                self._lost(outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
        if "publish" in self._store.missing_rights:
            # Others may lack the right too, and then nobody learns of their changes by message.
            self._poll_at = min(self._poll_at, self._clock.monotonic() + POLL)

    async def _poll(self, now: float) -> None:
        """Peek at all breakers, and read those that differ from the state known here."""
        troubled = any(breaker.state is not State.CLOSED for breaker in self._breakers.values())
        pause = POLL_TROUBLED if troubled else POLL_QUIET
        if not self._channel.works(now) or "publish" in self._store.missing_rights:
            pause = POLL
        self._poll_at = now + pause * random.uniform(0.75, 1.25)  # noqa: S311
        shared = [breaker for breaker in self._breakers.values() if breaker.shared]
        for breaker, seen in zip(shared, await self._store.peek(shared), strict=True):
            known = (breaker.generation, breaker.fleet_failures)
            changed = (seen.generation, seen.failures) != known and breaker.reports.pending is None
            if changed or seen.ahead or breaker.state is not State.CLOSED:
                await self._take(breaker, await self._store.look(breaker))

    async def _serve(self, breaker: CircuitBreaker, noticed: bool) -> None:
        breaker.give_back(self._clock.monotonic())
        report = breaker.reports.take()
        if report is not None:
            await self._send(breaker, report)
        elif noticed:
            seen = await self._store.look(breaker)
            if seen.generation > breaker.generation:
                self._on_delay(seen.age)
            await self._take(breaker, seen)
        await self._ask(breaker)

    async def _send(self, breaker: CircuitBreaker, report: Report) -> None:
        try:
            seen = await self._store.report(breaker, report)
        except (StoreError, asyncio.CancelledError):
            breaker.report_lost(report, self._clock.monotonic())
            raise
        if seen.generation < breaker.generation:
            breaker.report_lost(report, self._clock.monotonic())
        await self._take(breaker, seen, report)

    async def _ask(self, breaker: CircuitBreaker) -> None:
        """Request probe leases for waiting callers, and end an open or forced time that is over."""
        now = self._clock.monotonic()
        half_open = breaker.state is State.HALF_OPEN
        if now < self._ask_after.get(breaker.name, 0.0) or self._stopping:
            if half_open and not self._deciding(breaker):
                breaker.callers.answer()  # no lease was free a moment ago
            return
        over = breaker.state is not State.CLOSED and now >= breaker.until and not half_open
        well = breaker.take_proof()
        want = breaker.leases_wanted if half_open or over or well else 0
        if not want and not well and not (over and breaker.next_time is not None):
            return
        seen = await self._store.acquire(breaker, want, breaker.reports.new_tid(), well)
        await self._take(breaker, seen)
        if seen.granted:
            breaker.grant(seen.granted, seen.generation, self._clock.monotonic(), now)
            breaker.callers.answer()
            return
        # No lease: the circuit may still be open for a millisecond by Redis' clock, and the request
        # stands; or all leases are taken; or none was requested, and new callers wait for the next
        # round.
        if breaker.state is State.HALF_OPEN:
            if not want:
                return
            if not self._deciding(breaker):
                breaker.wanted = 0
                breaker.callers.answer()
        self._ask_after[breaker.name] = self._clock.monotonic() + DENIED

    def _deciding(self, breaker: CircuitBreaker) -> bool:
        """Whether outcomes of this process may soon free a lease or close the circuit. If so,
        callers keep waiting for a lease (forward/admission.py defines how long)."""
        return breaker.reports.pending is not None or breaker.probes_in_flight > 0

    async def _take(
        self, breaker: CircuitBreaker, seen: SharedState, answers: Report | None = None
    ) -> None:
        if seen.generation < breaker.generation:
            await self._merge(breaker)  # Redis has lost data
        else:
            breaker.adopt(seen, self._clock.monotonic(), answers)

    async def _merge(self, breaker: CircuitBreaker) -> None:
        while True:
            now, epoch = self._clock.monotonic(), breaker.epoch
            seen = await self._store.merge(breaker, now, breaker.reports.new_tid())
            if breaker.epoch == epoch:
                break
            # The breaker tripped in the meantime, and the reply does not include that.
        breaker.shared = True
        breaker.adopt(seen, self._clock.monotonic())

    async def _come_back(self) -> None:
        self._dirty.clear()
        now = self._clock.monotonic()
        for breaker in self._breakers.values():
            breaker.tick(now)
        try:
            for breaker in list(self._breakers.values()):
                await self._merge(breaker)
        except StoreError as error:
            self._lost(error)
            return
        self.reachable = True
        self._poll_at = self._clock.monotonic() + POLL
        self._channel.came_back()
        self._note_reachable(True, "")

    def _lost(self, error: StoreError) -> None:
        self.reachable = False
        now = self._clock.monotonic()
        for breaker in self._breakers.values():
            breaker.unreachable(now)
        self._note_reachable(False, str(error))

    def _note_reachable(self, up: bool, why: str) -> None:
        if up is self._was_reachable:
            return
        first, self._was_reachable = self._was_reachable is None, up
        self._on_reachable(up)
        facts = {"event": "breaker_redis", "redis": self._where, "reachable": up}
        if up:
            _log.log(
                logging.INFO if first else logging.WARNING,
                "Redis at %s is reachable: circuit breakers are shared",
                self._where,
                extra=facts,
            )
        else:
            _log.warning(
                "Redis at %s is unreachable (%s): circuit breakers decide locally",
                self._where,
                why,
                extra=facts | {"error": why},
            )

    def _changed(self, name: str) -> None:
        self._noticed.add(name)
        self._wake.set()

    def _poll_soon(self) -> None:
        self._poll_at = 0.0
        self._wake.set()
