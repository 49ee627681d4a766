"""The outcome of one attempt, reported once to the breaker and to the target's health record.

Rules
1. An attempt ends in exactly one of `failed`, `succeeded` or neither. `close` without the other two
   means neither: the client left, or the proxy refused the request.
2. A failure status counts as a failure as soon as the head has arrived, however the body ends.
3. A good response is a success once it is complete, because it may still be truncated. For a probe,
   a response that flows for a second is enough, and so is a protocol switch: a long download or a
   WebSocket would outlive the probe's lease, and the circuit would never close.
4. A shortage of our own (no descriptor, no local port) is neither: the upstream never saw the
   request.
"""

from __future__ import annotations

import asyncio

from proxy.core.errors import Overloaded
from proxy.core.process.shortage import DETAILS
from proxy.forward.exchange import Exchange
from proxy.forward.routing.plan import UpstreamPlan
from proxy.resilience.circuit.circuit import CircuitBreaker
from proxy.resilience.circuit.permits import Permit, ProbePermit
from proxy.resilience.circuit.states import State

#: Seconds for which a probe's response must flow to count as a success.
_FLOWS = 1.0

#: `Retry-After` in seconds for a shortage of our own: descriptors are freed as connections close.
SHORTAGE_RETRY_AFTER = 1.0

_REFUSING = (State.OPEN, State.FORCED_OPEN)


class NoOpOutcome:
    """No-op outcome for upstreams without breaker or health tracking."""

    __slots__ = ()

    def failed(self, kind: str) -> None:
        """Record a failure; `kind` is `connect`, `reset`, `timeout` or the status. Only the first
        result of an attempt counts."""

    def succeeded(self) -> None:
        """Record a success, unless a result has been recorded."""

    def flows(self) -> None:
        """A good response has begun."""

    def close(self) -> None:
        """The attempt is over. Must be called for every attempt."""


_NO_OP = NoOpOutcome()


def begin(exchange: Exchange, plan: UpstreamPlan, permit: Permit | None = None) -> NoOpOutcome:
    """The outcome of an attempt that begins now, with the breaker's `permit` if it has been granted
    already. Raises `CircuitOpen` if the breaker grants none."""
    if plan.breaker is None and plan.health is None:
        return _NO_OP
    return Outcome(exchange, plan, permit)


class Outcome(NoOpOutcome):
    """The outcome of one attempt at an upstream with a breaker or health tracking."""

    __slots__ = ("_began", "_exchange", "_permit", "_plan", "_recorded", "_timer")

    def __init__(
        self, exchange: Exchange, plan: UpstreamPlan, permit: Permit | None = None
    ) -> None:
        self._exchange = exchange
        self._plan = plan
        self._began = exchange.stream.clock.monotonic()
        if permit is None and plan.breaker is not None:
            permit = plan.breaker.admit(self._began)
        self._permit = permit
        self._recorded = False
        self._timer: asyncio.TimerHandle | None = None

    def failed(self, kind: str) -> None:
        if self._recorded:
            return
        self._recorded = True
        exchange, health = self._exchange, self._plan.health
        now = exchange.stream.clock.monotonic()
        if self._permit is not None:
            self._permit.failure(now, kind, exchange.target, exchange.correlation_id)
        if health is not None and exchange.target is not None and kind != "connect":
            health.failure(exchange.target, now)  # connect errors are recorded where they happen

    def succeeded(self) -> None:
        if self._recorded:
            return
        self._recorded = True
        exchange, health = self._exchange, self._plan.health
        if self._permit is not None:
            now = exchange.stream.clock.monotonic()
            took = (
                exchange.upstream_time if exchange.upstream_time is not None else now - self._began
            )
            self._permit.success(now, took)
        if health is not None and exchange.target is not None:
            health.success(exchange.target)

    def flows(self) -> None:
        if isinstance(self._permit, ProbePermit):
            self._timer = asyncio.get_running_loop().call_later(_FLOWS, self.succeeded)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._recorded and self._permit is not None:
            self._permit.cancel()


def refuses(breaker: CircuitBreaker, now: float) -> bool:
    """Whether the breaker refuses every call at this moment."""
    return breaker.state in _REFUSING and now < breaker.until


def own_shortage(error: BaseException | None, plan: UpstreamPlan, target: str) -> Overloaded | None:
    """The error to answer with if `error` is a shortage of our own (rule 4), which is also
    recorded; None for any other error."""
    reason = plan.vitals.shortages.check(error, f"the connection to {target}")
    if reason is None:
        return None
    return Overloaded(
        f"Upstream {plan.name} was not asked: {DETAILS[reason]}",
        upstream=plan.name,
        retry_after=SHORTAGE_RETRY_AFTER,
        reason=reason,
    )
