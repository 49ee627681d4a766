"""Permission to call an upstream: a place in its bulkhead and a permit from its circuit.

A call that meets an open circuit is refused, or held if the breaker is configured so: it waits its
turn (resilience/circuit/holding.py) until `hold` seconds after the request began, and never beyond
the deadline of all its attempts. Nothing is read or dialled meanwhile. The wait ends when the
client leaves or the proxy drains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from proxy.core.errors import Draining
from proxy.forward.exchange import Exchange
from proxy.forward.outcome import refuses
from proxy.forward.routing.plan import UpstreamPlan
from proxy.forward.waiting import check_exchange
from proxy.resilience.bulkhead import Bulkhead
from proxy.resilience.bulkhead import BulkheadTicket as Place
from proxy.resilience.circuit.circuit import CircuitBreaker
from proxy.resilience.circuit.holding import NEVER
from proxy.resilience.circuit.permits import Permit

#: Seconds that a caller waits for a probe lease: long enough for a slow Redis, no longer.
_LEASE_PATIENCE = 0.25

_T = TypeVar("_T")


async def until_not_open(exchange: Exchange, plan: UpstreamPlan) -> None:
    """Raise `CircuitOpen` while the circuit is open, before anything is read or queued for. Where
    calls are held, waits first."""
    breaker = plan.breaker
    if breaker is None or not refuses(breaker, exchange.stream.clock.monotonic()):
        return
    if not _may_hold(exchange, breaker):
        breaker.admit(exchange.stream.clock.monotonic())  # raises
        return
    await _hold(exchange, breaker, lambda now: None if refuses(breaker, now) else True)


async def permitted(exchange: Exchange, breaker: CircuitBreaker) -> Permit:
    """A permit for one call from a breaker that is not closed. Raises `CircuitOpen`."""
    now = exchange.stream.clock.monotonic()
    if not _may_hold(exchange, breaker):
        await _wait_for_lease(exchange, breaker)
        return breaker.admit(exchange.stream.clock.monotonic())
    permit = None if breaker.held else breaker.try_admit(now)
    if permit is None:
        permit = await _hold(exchange, breaker, breaker.try_admit)
    return permit


def _may_hold(exchange: Exchange, breaker: CircuitBreaker) -> bool:
    rules = breaker.rules
    return bool(rules.hold) and len(breaker.held) < rules.hold_queue and not exchange.stream.hurried


async def _hold(
    exchange: Exchange, breaker: CircuitBreaker, take: Callable[[float], _T | None]
) -> _T:
    """Wait until it is this call's turn, and return what `take(now)` gives. Raises `CircuitOpen`
    when the time is over, `Draining` when the proxy is about to stop."""
    client = exchange.stream
    until = min(exchange.started + breaker.rules.hold, exchange.deadline)
    held = breaker.hold(client.wake)
    began = client.clock.monotonic()
    try:
        while True:
            now = client.clock.monotonic()
            first = breaker.held.is_first(held)
            if now >= min(held.turn, until) or (first and now >= breaker.next_chance):
                taken = take(now)
                if taken is not None:
                    if isinstance(taken, Permit):
                        held.turn = NEVER  # used up: no turn is left to hand on
                    return taken
                held.turn = NEVER
            if now >= until:
                raise breaker.refuse(now)
            if client.hurried:
                raise Draining(f"The proxy is stopping, and {breaker.name} is suspended")
            chance = breaker.next_chance if first else NEVER
            # If this chance brought no permit, the next state change brings another.
            wake_at = min(until, held.turn, chance if chance > now else NEVER)
            await client.wait(check_exchange(exchange, wake_at, now))
    finally:
        breaker.held.leave(held)
        waited = client.clock.monotonic() - began
        earlier = exchange.extra.get("held", 0.0) if exchange.extra else 0.0
        exchange.note(held=round(waited + (earlier if isinstance(earlier, float) else 0.0), 3))


async def enter(exchange: Exchange, bulkhead: Bulkhead) -> Place:
    """A place in the bulkhead. Raises `Overloaded` when none becomes free in time."""
    client = exchange.stream
    place = bulkhead.enter(client.clock.monotonic(), client.wake)
    try:
        while place.waiting:
            now = client.clock.monotonic()
            if now >= place.deadline:
                raise bulkhead.refuse(place)
            await client.wait(check_exchange(exchange, place.deadline, now))
    except BaseException:
        bulkhead.leave(place)
        raise
    return place


async def _wait_for_lease(exchange: Exchange, breaker: CircuitBreaker) -> None:
    """In a fleet, a probe needs a lease from Redis: wait briefly for it. A caller refused at once
    might always come back only after its lease has been returned."""
    client = exchange.stream
    now = client.clock.monotonic()
    caller = breaker.ask(now, client.wake)
    if caller is None:
        return
    deadline = now + _LEASE_PATIENCE
    try:
        while caller.waiting and now < deadline:
            await client.wait(check_exchange(exchange, deadline, now))
            now = client.clock.monotonic()
    finally:
        breaker.callers.leave(caller)
