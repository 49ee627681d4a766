"""Listens to the channel on which breakers are reported as changed, and knows whether it works.

A message is only a hint, because anybody may have sent it; the state is always read from Redis. The
channel is known to work while published messages arrive. A standing subscription proves nothing,
because nobody may have the right to publish. In a quiet fleet, a process that has received nothing
for `BEAT` seconds sends a heartbeat to all, itself included, so ten thousand idle sidecars share
one heartbeat.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping

from proxy.core.clock import Clock
from proxy.core.tasks import Supervised, Tasks, is_cancelled
from proxy.resilience.circuit.circuit import CircuitBreaker
from proxy.resilience.circuit.fleet.store import BreakerStore, StoreError
from proxy.resilience.circuit.holding import NEVER
from proxy.resilience.circuit.messages import ChangeNotice

#: Seconds of silence before a heartbeat, plus a random delay of up to the same, so that one sidecar
#: is first; seconds for which a message proves that the channel works.
BEAT, ALIVE = 10.0, 25.0
#: Messages handled in one turn of the event loop.
TURN = 20
#: Seconds between two attempts to subscribe: after a loss, and where Redis denies it.
RETRY, REFUSED = 0.5, 30.0

_log = logging.getLogger("proxy.resilience")


class Channel:
    """The channel as this process sees it. `on_changed(name)` is called for every message about a
    breaker, `on_doubt` when messages may have been missed. `beat_at` is when a heartbeat is due, in
    monotonic seconds."""

    def __init__(
        self,
        breakers: Mapping[str, CircuitBreaker],
        store: BreakerStore,
        clock: Clock,
        tasks: Tasks,
        on_changed: Callable[[str], None],
        on_doubt: Callable[[], None],
    ) -> None:
        self.beat_at = NEVER
        self._breakers = breakers
        self._store = store
        self._clock = clock
        self._on_changed = on_changed
        self._on_doubt = on_doubt
        self._subscribed = False
        self._alive_until = 0.0  # until then the channel counts as working
        self._listener = Supervised("breaker-listen", self._listen, tasks)

    def start(self) -> None:
        """Start to listen; returns at once."""
        self._listener.start()

    async def stop(self) -> None:
        """Stop to listen."""
        await self._listener.stop()

    def works(self, now: float) -> bool:
        """Whether a published message has arrived lately."""
        return now < self._alive_until

    def came_back(self) -> None:
        """Redis is reachable again: the next heartbeat is due later."""
        self.beat_at = self._next_beat() if self._subscribed else NEVER

    async def beat(self, now: float) -> None:
        """Send a heartbeat. Raises `StoreError`."""
        self.beat_at = now + BEAT
        await self._store.beat()

    async def _listen(self) -> None:
        while True:
            try:
                received = 0
                async for notice in self._store.listen():
                    self._received(notice)
                    received += 1
                    if received % TURN == 0:
                        await asyncio.sleep(0)  # a flood must not hold up the requests
            except StoreError as error:
                # sync.py logs that Redis is unreachable; without the channel, polling continues.
                _log.debug("subscription to breaker transitions lost: %s", error)
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and is_cancelled():
                    raise
                _log.exception("Listening to breaker states failed", extra={"event": "fault"})
            if self._subscribed:
                self._on_doubt()  # Redis may be gone too
            self._subscribed, self._alive_until, self.beat_at = False, 0.0, NEVER
            pause = REFUSED if "subscribe" in self._store.missing_rights else RETRY
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311

    def _received(self, notice: ChangeNotice) -> None:
        now = self._clock.monotonic()
        if not self._subscribed or (notice.published and not self.works(now)):
            self._on_doubt()
        if notice.published or not self._subscribed:
            self.beat_at = self._next_beat()
        self._subscribed = True
        if not notice.published:
            return
        self._alive_until = now + ALIVE
        breaker = self._breakers.get(notice.name)
        if breaker is None or not breaker.shared or notice.by == breaker.owner:
            return
        if notice.generation >= breaker.generation:
            self._on_changed(breaker.name)

    def _next_beat(self) -> float:
        return self._clock.monotonic() + BEAT * random.uniform(1.0, 2.0)  # noqa: S311
