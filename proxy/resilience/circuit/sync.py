"""Keeps the breakers of this process and Redis of one mind. No request ever waits for it.

Two tasks. `work` sends outcomes, asks for probe leases, polls, and merges when Redis comes back;
it is woken by the breakers and by their timers, and sends everything of one round at once.
`listen` learns which breakers others have changed. A message is a hint, because anybody may have
sent it: what counts is what a look at Redis says then.

The poll is the safety net for messages that were lost. How often it comes depends on whether the
channel is known to work: somebody's message has come over it lately. That the subscription stands
proves nothing: perhaps nobody may publish. In a fleet that is quiet, whoever has
heard nothing for `BEAT` seconds sends a heartbeat that all hear, itself included. So ten thousand
idle sidecars send one heartbeat between them and a poll each in `POLL_QUIET` seconds, and one whose
channel is cut polls every second until it is whole again.

Redis is `reachable` from a successful merge (which writes) until any command fails. A change is
told once; while it is away, every breaker decides by itself.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

from proxy.core.clock import Clock
from proxy.core.tasks import Supervised, Tasks
from proxy.resilience.circuit.circuit import CircuitBreaker
from proxy.resilience.circuit.holding import NEVER
from proxy.resilience.circuit.messages import ChangeNotice, Report, SharedState
from proxy.resilience.circuit.states import State
from proxy.resilience.circuit.store import BreakerStore, StoreError

#: Seconds that ordinary outcomes are gathered before they are sent. Trips and probes go at once.
GATHER = 0.05
#: Seconds between two polls, give or take a quarter: while the channel is not known to work; while
#: it is and some circuit is not closed; while it is and all is well.
POLL, POLL_TROUBLED, POLL_QUIET = 1.0, 5.0, 30.0
#: Seconds of silence after which a heartbeat is sent, and by chance up to as many more, so that one
#: sidecar of many is the first; seconds for which a message proves that the channel works.
BEAT, ALIVE = 10.0, 25.0
#: Seconds between two looks that messages ask for: a flood of them costs no more.
LOOK_PAUSE = 0.02
#: Messages that are taken before others get their turn.
TURN = 20
#: Seconds between two tries to subscribe where Redis does not let us.
REFUSED = 30.0
#: Seconds between two tries to reach a Redis that is away, and to subscribe anew.
RETRY = 0.5
#: Seconds after which a process that was refused a probe lease asks again.
DENIED = 0.1

_log = logging.getLogger("proxy.resilience")


class FleetSync:
    """The worker between `breakers` (by name, may change at a reload) and `store`.

    `on_reachable(bool)` and `on_delay(seconds)` feed the metrics: the latter is the time from
    a transition in Redis to its arrival here, by Redis' clock.
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
        self._gather_timer: asyncio.TimerHandle | None = None
        self._dirty: set[str] = set()
        self._ask_after: dict[str, float] = {}
        self._poll_at = 0.0
        self._subscribed = False
        self._alive_until = 0.0  # the channel has proved to work
        self._beat_at = NEVER
        self._noticed: set[str] = set()  # breakers that others say they have changed
        self._look_at = 0.0
        self._stopping = False
        tasks = tasks or Tasks()
        self._worker = Supervised("breaker-sync", self._work, tasks, ends=True)
        self._listener = Supervised("breaker-listen", self._listen, tasks)
        self.first_try = asyncio.Event()

    def start(self) -> None:
        """Begin; returns at once. `first_try` is set when Redis answered or did not."""
        self._worker.start()
        self._listener.start()

    async def stop(self) -> None:
        """Send what is left (probe leases above all) within a second, and end both tasks."""
        self._stopping = True
        self._wake.set()
        await self._listener.stop()
        await self._worker.stop(patience=1.0)
        if self._gather_timer is not None:
            self._gather_timer.cancel()
        await self._store.close()

    def woken(self, breaker: CircuitBreaker, urgent: bool) -> None:
        """A breaker has something to send: now, or within `GATHER` seconds. Cheap."""
        self._dirty.add(breaker.name)
        if urgent:
            self._wake.set()
        elif self._gather_timer is None:
            self._gather_timer = asyncio.get_running_loop().call_later(GATHER, self._gathered)

    def _gathered(self) -> None:
        self._gather_timer = None
        self._wake.set()

    async def force(self, breaker: CircuitBreaker, to: State, reason: str, seconds: float) -> bool:
        """Set the state in the whole fleet. False where Redis could not be told: then the caller
        sets it here, and that counts, although a Redis that hung may yet do as it was told."""
        if not self.reachable:
            return False
        tid = breaker.new_tid()
        try:
            news = await self._store.force(breaker, to, reason, seconds, tid)
        except StoreError as error:
            self._lost(error)
            breaker.decided_here(tid)
            return False
        breaker.adopt(news, self._clock.monotonic())
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
                if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                    raise
                # A fault of ours, or an exchange that was cancelled though nobody cancelled us.
                # Without this the breakers would wait for a worker that is gone; so they decide
                # locally, and the worker begins again.
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
        with suppress(TimeoutError):
            # Never without a pause: what is due again at once must not starve the requests.
            async with asyncio.timeout(max(timeout, 0.001)):
                await self._wake.wait()
        self._wake.clear()

    def _next_time(self, now: float) -> float:
        due = (self._due(breaker, now) for breaker in self._breakers.values())
        moments = [moment for moment in due if moment is not None]
        if self._noticed:
            moments.append(self._look_at)
        return min((self._poll_at, self._beat_at, *moments))

    def _due(self, breaker: CircuitBreaker, now: float) -> float | None:
        """When `breaker` needs an exchange although nothing wakes us: a monotonic second."""
        moment = breaker.next_time
        if moment is None and breaker.state is State.HALF_OPEN and breaker.leases_wanted:
            moment = now
        if moment is None:
            return None
        return max(moment, self._ask_after.get(breaker.name, 0.0))

    async def _round(self) -> None:
        """One exchange with Redis about every breaker that needs one."""
        now = self._clock.monotonic()
        dirty, self._dirty = self._dirty, set()
        looks: set[str] = set()
        if self._noticed and now >= self._look_at:
            looks, self._noticed = self._noticed, set()
            self._look_at = now + LOOK_PAUSE
        due: list[Coroutine[Any, Any, None]] = []
        if now >= self._poll_at:
            due.append(self._poll(now))
        if now >= self._beat_at:
            self._beat_at = now + BEAT
            due.append(self._store.beat())
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
            # Others may lack it as well: what they do is heard by nobody, whatever the channel has
            # brought so far.
            self._poll_at = min(self._poll_at, self._clock.monotonic() + POLL)

    async def _poll(self, now: float) -> None:
        """A glance at all breakers, and a look at those that are not as we know them."""
        troubled = any(breaker.state is not State.CLOSED for breaker in self._breakers.values())
        pause = POLL_TROUBLED if troubled else POLL_QUIET
        if now >= self._alive_until or "publish" in self._store.missing_rights:
            pause = POLL
        self._poll_at = now + pause * random.uniform(0.75, 1.25)  # noqa: S311
        shared = [breaker for breaker in self._breakers.values() if breaker.shared]
        for breaker, seen in zip(shared, await self._store.peek(shared), strict=True):
            known = (breaker.generation, breaker.fleet_failures)
            changed = (seen.generation, seen.failures) != known and not breaker.has_report
            if changed or seen.ahead or breaker.state is not State.CLOSED:
                await self._take(breaker, await self._store.look(breaker))

    async def _serve(self, breaker: CircuitBreaker, noticed: bool) -> None:
        breaker.give_back(self._clock.monotonic())
        report = breaker.take_report()
        if report is not None:
            await self._send(breaker, report)
        elif noticed:
            news = await self._store.look(breaker)
            if news.generation > breaker.generation:
                self._on_delay(news.age)
            await self._take(breaker, news)
        await self._ask(breaker)

    async def _send(self, breaker: CircuitBreaker, report: Report) -> None:
        try:
            news = await self._store.report(breaker, report)
        except (StoreError, asyncio.CancelledError):
            breaker.report_lost(report, self._clock.monotonic())
            raise
        if news.generation < breaker.generation:
            breaker.report_lost(report, self._clock.monotonic())
        await self._take(breaker, news, report)

    async def _ask(self, breaker: CircuitBreaker) -> None:
        """Probe leases for callers who wait, and the end of a time that is over."""
        now = self._clock.monotonic()
        half_open = breaker.state is State.HALF_OPEN
        if now < self._ask_after.get(breaker.name, 0.0) or self._stopping:
            if half_open and not self._deciding(breaker):
                breaker.callers.answer()  # all leases were taken a moment ago
            return
        over = breaker.state is not State.CLOSED and now >= breaker.until and not half_open
        well = breaker.take_proof()
        want = breaker.leases_wanted if half_open or over or well else 0
        if not want and not well and not (over and breaker.next_time is not None):
            return
        news = await self._store.acquire(breaker, want, breaker.new_tid(), well)
        await self._take(breaker, news)
        if news.granted:
            breaker.grant(news.granted, news.generation, self._clock.monotonic(), now)
            breaker.callers.answer()
            return
        # Still open by Redis' clock, a millisecond or so: then the wish stays. Or all are taken.
        # Or nobody had asked for one: whoever has come meanwhile is served in the next round.
        if breaker.state is State.HALF_OPEN:
            if not want:
                return
            if not self._deciding(breaker):
                breaker.wanted = 0
                breaker.callers.answer()
        self._ask_after[breaker.name] = self._clock.monotonic() + DENIED

    def _deciding(self, breaker: CircuitBreaker) -> bool:
        """Whether outcomes of our own are about to free a lease or to close the circuit: then a
        caller who waits for one waits on (forward/attempts.py says how long)."""
        return breaker.has_report or breaker.probes_in_flight > 0

    async def _take(
        self, breaker: CircuitBreaker, news: SharedState, answers: Report | None = None
    ) -> None:
        if news.generation < breaker.generation:
            await self._merge(breaker)  # Redis has lost its memory, or part of it
        else:
            breaker.adopt(news, self._clock.monotonic(), answers)

    async def _merge(self, breaker: CircuitBreaker) -> None:
        while True:
            now, epoch = self._clock.monotonic(), breaker.epoch
            news = await self._store.merge(breaker, now, breaker.new_tid())
            if breaker.epoch == epoch:
                break
            # It has tripped while Redis was thinking: what came back knows nothing of that.
        breaker.shared = True
        breaker.adopt(news, self._clock.monotonic())

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
        self._beat_at = self._next_beat() if self._subscribed else NEVER
        self._tell(True, "")

    def _lost(self, error: StoreError) -> None:
        self.reachable = False
        now = self._clock.monotonic()
        for breaker in self._breakers.values():
            breaker.unreachable(now)
        self._tell(False, str(error))

    def _tell(self, up: bool, why: str) -> None:
        if up is self._was_reachable:
            return
        first, self._was_reachable = self._was_reachable is None, up
        self._on_reachable(up)
        facts = {"event": "breaker_redis", "redis": self._where, "reachable": up}
        if up:
            _log.log(
                logging.INFO if first else logging.WARNING,
                "Redis at %s is within reach: circuit breakers are shared",
                self._where,
                extra=facts,
            )
        else:
            _log.warning(
                "Redis at %s is out of reach (%s): circuit breakers decide locally",
                self._where,
                why,
                extra=facts | {"error": why},
            )

    # --- the listener ---------------------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            try:
                heard = 0
                async for notice in self._store.listen():
                    self._heard(notice)
                    heard += 1
                    if heard % TURN == 0:
                        await asyncio.sleep(0)  # a flood must not hold up the requests
            except StoreError as error:
                # `work` tells of Redis' absence; without the channel alone, the poll carries on.
                _log.debug("subscription to breaker transitions lost: %s", error)
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                    raise
                _log.exception("Listening to breaker states failed", extra={"event": "fault"})
            if self._subscribed:
                self._poll_soon()  # perhaps Redis is gone as well
            self._subscribed, self._alive_until, self._beat_at = False, 0.0, NEVER
            pause = REFUSED if "subscribe" in self._store.missing_rights else RETRY
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311

    def _heard(self, notice: ChangeNotice) -> None:
        now = self._clock.monotonic()
        if not self._subscribed or (notice.published and now >= self._alive_until):
            self._poll_soon()  # what was published while nobody listened
        if notice.published or not self._subscribed:
            self._beat_at = self._next_beat()
        self._subscribed = True
        if not notice.published:
            return
        self._alive_until = now + ALIVE
        breaker = self._breakers.get(notice.name)
        if breaker is None or not breaker.shared or notice.by == breaker.owner:
            return
        if notice.generation >= breaker.generation:
            self._noticed.add(breaker.name)
            self._wake.set()

    def _next_beat(self) -> float:
        return self._clock.monotonic() + BEAT * random.uniform(1.0, 2.0)  # noqa: S311

    def _poll_soon(self) -> None:
        self._poll_at = 0.0
        self._wake.set()


def _is_cancelled() -> bool:
    """Whether somebody wants the task that runs to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
