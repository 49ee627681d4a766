"""Leave to call an upstream: a place in its bulkhead, and what an open circuit says.

A call that meets an open circuit is refused, or held where the breaker says so: it waits its turn
(resilience/circuit/holding.py), at most `hold` after the request came and never beyond the deadline
of all its attempts. Nothing is read and nothing is dialled meanwhile; a client that leaves and a
proxy that drains end the wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from proxy.core.errors import Draining
from proxy.forward.exchange import Exchange
from proxy.forward.outcome import refuses
from proxy.forward.routing.plan import UpstreamPlan
from proxy.forward.waiting import until_left
from proxy.resilience.bulkhead import Bulkhead
from proxy.resilience.bulkhead import BulkheadTicket as Place
from proxy.resilience.circuit.circuit import CircuitBreaker
from proxy.resilience.circuit.holding import NEVER
from proxy.resilience.circuit.permits import Permit

#: Seconds that a caller waits for leave to be a probe: a slow Redis' answer, and no longer.
_LEASE_PATIENCE = 0.25

_T = TypeVar("_T")


async def until_not_open(exchange: Exchange, plan: UpstreamPlan) -> None:
    """Before anything is read or queued for: raises `CircuitOpen` while nobody has leave to call,
    after a wait where calls are held."""
    breaker = plan.breaker
    if breaker is None or not refuses(breaker, exchange.stream.clock.monotonic()):
        return
    if not _may_hold(exchange, breaker):
        breaker.admit(exchange.stream.clock.monotonic())  # raises
        return
    await _hold(exchange, breaker, lambda now: None if refuses(breaker, now) else True)


async def permitted(exchange: Exchange, breaker: CircuitBreaker) -> Permit:
    """Leave for one call at a breaker that is not closed. Raises `CircuitOpen`."""
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
    """What `take(now)` gives when it is this call's turn. Raises `CircuitOpen` when its time is
    over, `Draining` when the proxy is about to stop."""
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
                        held.turn = NEVER  # used: there is none to pass on
                    return taken
                held.turn = NEVER
            if now >= until:
                raise breaker.refuse(now)
            if client.hurried:
                raise Draining(f"The proxy is stopping, and {breaker.name} is suspended")
            chance = breaker.next_chance if first else NEVER
            # A chance that has passed without leave comes again with the next change.
            wake_at = min(until, held.turn, chance if chance > now else NEVER)
            await client.wait(until_left(exchange, wake_at, now))
    finally:
        breaker.held.leave(held)
        waited = client.clock.monotonic() - began
        earlier = exchange.extra.get("held", 0.0) if exchange.extra else 0.0
        exchange.note(held=round(waited + (earlier if isinstance(earlier, float) else 0.0), 3))


async def enter(exchange: Exchange, bulkhead: Bulkhead) -> Place:
    """A place at the upstream. Raises `Overloaded` when there is none in time."""
    client = exchange.stream
    place = bulkhead.enter(client.clock.monotonic(), client.wake)
    try:
        while place.waiting:
            now = client.clock.monotonic()
            if now >= place.deadline:
                raise bulkhead.refuse(place)
            await client.wait(until_left(exchange, place.deadline, now))
    except BaseException:
        bulkhead.leave(place)
        raise
    return place


async def _wait_for_lease(exchange: Exchange, breaker: CircuitBreaker) -> None:
    """In a fleet a probe needs a lease from Redis: wait a moment for the answer. Who is refused
    instead may come again only when the lease has long been given back, and so each time."""
    client = exchange.stream
    now = client.clock.monotonic()
    caller = breaker.ask(now, client.wake)
    if caller is None:
        return
    deadline = now + _LEASE_PATIENCE
    try:
        while caller.waiting and now < deadline:
            await client.wait(until_left(exchange, deadline, now))
            now = client.clock.monotonic()
    finally:
        breaker.callers.leave(caller)
