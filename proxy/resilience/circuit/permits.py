"""Permits: permission for one call, to be ended with exactly one outcome. Issued by circuit.py.

A permit knows the epoch that it was issued in; the breaker decides what an outcome does and whether
it is late. One plain permit serves all calls of an epoch, so admitting a call allocates nothing.
"""

from __future__ import annotations

from typing import Protocol

from proxy.resilience.circuit.messages import Failure, ProbeOutcome
from proxy.resilience.circuit.window import TripLimits


class Issuer(Protocol):
    """The breaker, as its permits see it: it takes one outcome from each."""

    epoch: int
    late: int
    limits: TripLimits

    def succeeded(self, now: float, duration: float) -> None: ...

    def failed(
        self,
        now: float,
        kind: str,
        target: str | None,
        correlation_id: str | None,
        duration: float,
    ) -> None: ...

    def probed(
        self, now: float, lease: str, epoch: int, outcome: ProbeOutcome, failure: Failure | None
    ) -> None: ...

    def failed_call(self, kind: str, target: str | None, correlation_id: str | None) -> Failure: ...


class Permit:
    """Permission for a call while closed. One object serves all calls of an epoch."""

    __slots__ = ("_breaker", "_epoch")

    def __init__(self, breaker: Issuer, epoch: int) -> None:
        self._breaker = breaker
        self._epoch = epoch

    def success(self, now: float, duration: float) -> None:
        """The upstream answered well (4xx included) after `duration` seconds."""
        breaker = self._breaker
        if self._epoch == breaker.epoch:
            breaker.succeeded(now, duration)
        else:
            breaker.late += 1

    def failure(
        self,
        now: float,
        kind: str,
        target: str | None = None,
        correlation_id: str | None = None,
        duration: float = 0.0,
    ) -> None:
        """The call failed: `kind` is `connect`, `reset`, `timeout` or the status as text."""
        breaker = self._breaker
        if self._epoch == breaker.epoch:
            breaker.failed(now, kind, target, correlation_id, duration)
        else:
            breaker.late += 1

    def cancel(self) -> None:
        """No result: the client left, or the call was never made."""


class NeutralPermit(Permit):
    """Permission for a call while forced closed: outcomes are not counted."""

    __slots__ = ()

    def success(self, now: float, duration: float) -> None:
        """Not counted."""

    def failure(
        self,
        now: float,
        kind: str,
        target: str | None = None,
        correlation_id: str | None = None,
        duration: float = 0.0,
    ) -> None:
        """Not counted."""


class ProbePermit(Permit):
    """Permission for one probe, with its lease."""

    __slots__ = ("lease",)

    def __init__(self, breaker: Issuer, epoch: int, lease: str) -> None:
        super().__init__(breaker, epoch)
        self.lease = lease

    def success(self, now: float, duration: float) -> None:
        slow = self._breaker.limits.is_slow(duration)
        failure = self._breaker.failed_call("slow", None, None) if slow else None
        self._breaker.probed(
            now, self.lease, self._epoch, "failure" if slow else "success", failure
        )

    def failure(
        self,
        now: float,
        kind: str,
        target: str | None = None,
        correlation_id: str | None = None,
        duration: float = 0.0,
    ) -> None:
        failure = self._breaker.failed_call(kind, target, correlation_id)
        self._breaker.probed(now, self.lease, self._epoch, "failure", failure)

    def cancel(self) -> None:
        self._breaker.probed(0.0, self.lease, self._epoch, "cancel", None)
