"""All breakers of one process, for the engine, the admin API and reloads."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Mapping
from typing import Any, Literal

from prometheus_client import CollectorRegistry

from proxy.config.schema import Redis
from proxy.config.upstreams import Upstream
from proxy.core.clock import Clock, SystemClock, iso_utc
from proxy.core.errors import BadRequest
from proxy.core.redis.client import address_of
from proxy.core.vitals import Vitals
from proxy.core.waiting import happened
from proxy.resilience.circuit.circuit import CircuitBreaker
from proxy.resilience.circuit.fleet.store import BreakerStore
from proxy.resilience.circuit.fleet.sync import FleetSync
from proxy.resilience.circuit.messages import Transition
from proxy.resilience.circuit.states import CircuitEvent, State
from proxy.resilience.circuit.telemetry import BreakerMetrics

Action = Literal["open", "close", "reset"]

#: Seconds that `open` and `close` by hand last by default.
FORCE_FOR = 600.0
_ACTIONS: dict[Action, tuple[CircuitEvent, State]] = {
    "open": (CircuitEvent.FORCE_OPEN, State.FORCED_OPEN),
    "close": (CircuitEvent.FORCE_CLOSE, State.FORCED_CLOSED),
    "reset": (CircuitEvent.RESET, State.CLOSED),
}


class BreakerRegistry:
    """The breakers of those `upstreams` that have one, shared through `redis` if given.

    Without `redis`, and before `start`, they decide locally. `owner` identifies this process in the
    fleet; by default host, pid and a random part. `on_transition(name, transition)` is called for
    every transition, whoever made it.
    """

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        *,
        registry: CollectorRegistry,
        redis: Redis | None = None,
        clock: Clock | None = None,
        owner: str | None = None,
        on_transition: Callable[[str, Transition], None] | None = None,
        vitals: Vitals | None = None,
    ) -> None:
        self._vitals = vitals or Vitals()
        self._clock = clock or SystemClock()
        self._redis = redis
        self.owner = owner or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._breakers: dict[str, CircuitBreaker] = {}
        self.metrics = BreakerMetrics(self._breakers, registry, shared=redis is not None)
        self._on_transition = on_transition
        self._store: BreakerStore | None = None
        self._sync: FleetSync | None = None
        self.reload(upstreams)

    def get(self, name: str) -> CircuitBreaker | None:
        """The breaker of an upstream; None if it has none. The same object across reloads."""
        return self._breakers.get(name)

    def reload(self, upstreams: Mapping[str, Upstream]) -> None:
        """Apply new rules. A breaker that remains keeps its state and counts."""
        for name in [name for name in self._breakers if not _has_breaker(upstreams.get(name))]:
            self._breakers.pop(name).retire(self._clock.monotonic())
        for name, upstream in upstreams.items():
            if upstream.breaker is None:
                continue
            times = upstream.timeouts
            lease = upstream.connect_patience + times.connect + times.response
            if breaker := self._breakers.get(name):
                breaker.configure(upstream.breaker, lease)
                continue
            breaker = CircuitBreaker(
                name,
                upstream.breaker,
                clock=self._clock,
                owner=self.owner,
                probe_lease=lease,
                on_transition=self._notify,
            )
            if self._sync is not None:
                breaker.wake = self._sync.woken
            self._breakers[name] = breaker
            self.metrics.begin(name)

    def _notify(self, breaker: CircuitBreaker, made: Transition) -> None:
        self.metrics.transition(breaker, made)
        if self._on_transition is not None:
            self._on_transition(breaker.name, made)

    async def start(self, patience: float = 1.0) -> None:
        """Join the fleet. Returns when Redis has answered, or after `patience` seconds: a breaker
        that is open in the fleet should be open here before the first request."""
        if self._redis is None:
            return
        store = BreakerStore(
            self._redis,
            owner=self.owner,
            key_prefix=self._redis.key_prefix,
            vitals=self._vitals,
        )
        self._store = store
        self._sync = FleetSync(
            self._breakers,
            store,
            clock=self._clock,
            where=str(address_of(self._redis)),
            tasks=self._vitals.tasks,
            on_reachable=self.metrics.reachable,
            on_delay=self.metrics.delay.observe,
        )
        for breaker in self._breakers.values():
            breaker.wake = self._sync.woken
        self._sync.start()
        await happened(self._sync.first_try, patience)

    async def stop(self) -> None:
        """Leave the fleet: return probe leases, close connections. Takes a second at most."""
        if self._sync is not None:
            await self._sync.stop()
            self._sync = None

    @property
    def redis_reachable(self) -> bool | None:
        """Whether breakers are currently shared; None without Redis in the config."""
        if self._redis is None:
            return None
        return self._sync is not None and self._sync.reachable

    @property
    def missing_rights(self) -> list[str]:
        """The rights that Redis denies, in words. Breakers are shared all the same, only slower."""
        return sorted(self._store.missing_rights.values()) if self._store is not None else []

    def list(self) -> list[dict[str, Any]]:
        """One JSON-ready row per breaker, as returned by `GET /api/breakers`."""
        return [self.show(name) for name in sorted(self._breakers)]

    def show(self, name: str) -> dict[str, Any]:
        """One breaker's row. Raises `KeyError` for an upstream without one."""
        breaker = self._breakers[name]
        now = self._clock.monotonic()
        today = self._clock.time()
        refusing = breaker.state in (State.OPEN, State.FORCED_OPEN, State.FORCED_CLOSED)
        return {
            "name": name,
            "state": breaker.state.value,
            "failures": max(breaker.limits.failures, breaker.fleet_failures),
            "since": iso_utc(today - (now - breaker.since)),
            "until": iso_utc(today + breaker.until - now) if refusing else None,
            "remaining": round(max(0.0, breaker.until - now), 3) if refusing else None,
            "reason": breaker.reason,
            "by": breaker.by,
            "shared": breaker.shared,
            "generation": breaker.generation,
            "rejections": breaker.rejections,
            "probes_in_flight": breaker.probes_in_flight,
            "held": len(breaker.held),
            "recent_failures": [
                {**failure.document(), "at": iso_utc(failure.at)} for failure in breaker.recent
            ],
        }

    async def force(
        self, name: str, action: Action, reason: str, for_seconds: float | None = None
    ) -> dict[str, Any]:
        """Open, close or reset by hand, in the whole fleet. While Redis is unreachable, only in
        this process, and in the fleet once it is back (`shared` in the result tells which).

        `open` and `close` last `for_seconds`, 10 min by default. Raises `KeyError` for an unknown
        name and `BadRequest` for a time of zero or less.
        """
        breaker = self._breakers[name]
        event, state = _ACTIONS[action]
        seconds = 0.0 if action == "reset" else FORCE_FOR if for_seconds is None else for_seconds
        if action != "reset" and seconds <= 0:
            raise BadRequest(f"A breaker is forced for a time over zero, not {seconds:g} s")
        why = f"{action} by hand" + (f": {reason}" if reason not in ("", "by hand") else "")
        done = self._sync is not None and await self._sync.force(breaker, state, why, seconds)
        if not done:
            breaker.force(event, self._clock.monotonic(), why, seconds)
        return self.show(name)


def _has_breaker(upstream: Upstream | None) -> bool:
    return upstream is not None and upstream.breaker is not None
