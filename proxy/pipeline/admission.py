"""Leave to call an upstream: a place in its bulkhead, and what an open circuit says."""

from __future__ import annotations

from proxy.breaker.bulkhead import Bulkhead
from proxy.breaker.bulkhead import Ticket as Place
from proxy.breaker.circuit import CircuitBreaker
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.outcome import refuses
from proxy.pipeline.plan import UpstreamPlan
from proxy.pipeline.waiting import until_left

#: Seconds that a caller waits for leave to be a probe: a slow Redis' answer, and no longer.
_LEASE_PATIENCE = 0.25


def refuse_for_open_circuit(x: Exchange, plan: UpstreamPlan) -> None:
    now = x.stream.clock.monotonic()
    if plan.breaker is not None and refuses(plan.breaker, now):
        plan.breaker.admit(now)  # raises


async def enter(x: Exchange, bulkhead: Bulkhead) -> Place:
    """A place at the upstream. Raises `Overloaded` when there is none in time."""
    client = x.stream
    place = bulkhead.enter(client.clock.monotonic(), client.wake)
    try:
        while place.waiting:
            now = client.clock.monotonic()
            if now >= place.deadline:
                raise bulkhead.refuse(place)
            await client.wait(until_left(x, place.deadline, now))
    except BaseException:
        bulkhead.leave(place)
        raise
    return place


async def wait_for_lease(x: Exchange, breaker: CircuitBreaker) -> None:
    """In a fleet a probe needs a lease from Redis: wait a moment for the answer. Who is refused
    instead may come again only when the lease has long been given back, and so each time."""
    client = x.stream
    now = client.clock.monotonic()
    caller = breaker.ask(now, client.wake)
    if caller is None:
        return
    deadline = now + _LEASE_PATIENCE
    try:
        while caller.waiting and now < deadline:
            await client.wait(until_left(x, deadline, now))
            now = client.clock.monotonic()
    finally:
        breaker.callers.leave(caller)
