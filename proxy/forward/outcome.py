"""What one attempt came to, told once to those who keep count: the breaker and the target's record.

Rules
1. An attempt ends in exactly one of `failed`, `succeeded` and neither. Neither is what `close`
   leaves: the client left, or we refused.
2. A status that means failure is one as soon as its head is here, however its body ends.
3. A good answer is a success when it is complete, for it may still break off. But a probe's answer
   that flows for a second is proof enough, and so is a switch of protocols: a long download, or a
   WebSocket, would outlive the probe's lease and the circuit would never close.
4. A shortage of our own (no descriptor, no local port) is neither: the upstream never saw it.
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

#: Seconds for which a probe's answer must flow to be a good one.
_FLOWS = 1.0

#: `Retry-After` of a shortage of ours, in seconds: descriptors come back as connections close.
SHORTAGE_RETRY_AFTER = 1.0

_REFUSING = (State.OPEN, State.FORCED_OPEN)


class Unwatched:
    """Of any attempt at an upstream that nobody keeps count of."""

    __slots__ = ()

    def failed(self, kind: str) -> None:
        """`kind` is `connect`, `reset`, `timeout` or the status. Counts the first time only."""

    def succeeded(self) -> None:
        """The upstream has answered well. Does nothing after another end."""

    def flows(self) -> None:
        """A good answer begins."""

    def close(self) -> None:
        """The attempt is over. Owed for every one."""


_UNWATCHED = Unwatched()


def begin(exchange: Exchange, plan: UpstreamPlan, permit: Permit | None = None) -> Unwatched:
    """For the attempt that begins now, with the breaker's `permit` where it has been asked already.
    Raises `CircuitOpen` where there is leave for none."""
    if plan.breaker is None and plan.health is None:
        return _UNWATCHED
    return Outcome(exchange, plan, permit)


class Outcome(Unwatched):
    """Of one attempt."""

    __slots__ = ("_began", "_permit", "_plan", "_timer", "_told", "_x")

    def __init__(
        self, exchange: Exchange, plan: UpstreamPlan, permit: Permit | None = None
    ) -> None:
        self._x = exchange
        self._plan = plan
        self._began = exchange.stream.clock.monotonic()
        if permit is None and plan.breaker is not None:
            permit = plan.breaker.admit(self._began)
        self._permit = permit
        self._told = False
        self._timer: asyncio.TimerHandle | None = None

    def failed(self, kind: str) -> None:
        if self._told:
            return
        self._told = True
        x, health = self._x, self._plan.health
        now = x.stream.clock.monotonic()
        if self._permit is not None:
            self._permit.failure(now, kind, x.target, x.correlation_id)
        if health is not None and x.target is not None and kind != "connect":
            health.failure(x.target, now)  # connect errors: by target, where they happen

    def succeeded(self) -> None:
        if self._told:
            return
        self._told = True
        x, health = self._x, self._plan.health
        if self._permit is not None:
            now = x.stream.clock.monotonic()
            took = x.upstream_time if x.upstream_time is not None else now - self._began
            self._permit.success(now, took)
        if health is not None and x.target is not None:
            health.success(x.target)

    def flows(self) -> None:
        if isinstance(self._permit, ProbePermit):
            self._timer = asyncio.get_running_loop().call_later(_FLOWS, self.succeeded)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._told and self._permit is not None:
            self._permit.cancel()


def refuses(breaker: CircuitBreaker, now: float) -> bool:
    """Whether nobody has leave to call the upstream at this moment."""
    return breaker.state in _REFUSING and now < breaker.until


def own_shortage(error: BaseException | None, plan: UpstreamPlan, target: str) -> Overloaded | None:
    """What to answer where `error` comes from a shortage of ours (rule 4), which is put on record;
    None for every other error."""
    reason = plan.vitals.shortages.check(error, f"the connection to {target}")
    if reason is None:
        return None
    return Overloaded(
        f"Upstream {plan.name} was not asked: {DETAILS[reason]}",
        upstream=plan.name,
        retry_after=SHORTAGE_RETRY_AFTER,
        reason=reason,
    )
