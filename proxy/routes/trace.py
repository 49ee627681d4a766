"""Which exchanges the trace keeps, and which facts of them.

1. It keeps exchanges that failed in any way, that were slow, or that a stage noted something about
   (a job created, deleted or answered from the mirror, an upload); calls on egress listeners that
   start something (POST and the like); per `polls_every`, one good read of each job and one good
   call of each egress route; and a sample of the rest.
2. The decision takes a few attribute reads; facts are collected only for what is kept.
3. Each route keeps at most `RATE`, and as many failures again, so that a flood of errors is
   neither expensive nor pushes out the rest of the record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proxy.config.schema import Trace as Settings
from proxy.forward.exchange import Exchange
from proxy.forward.routing.binding import Binding
from proxy.forward.routing.plan import Hooks, Observer
from proxy.jobs.document import valid_job_id
from proxy.resilience.rate_limit import TokenBucket
from proxy.telemetry.logs.redact import clean_target, clean_text
from proxy.trace.events import Severity, TraceEvent, bounded
from proxy.trace.recorder import Trace

_READING = frozenset({"GET", "HEAD", "OPTIONS"})

#: Exchanges of a route kept a second, and at once.
RATE, BURST = 10, 100

#: Jobs for which the time of the last kept read is remembered.
_JOBS = 4096


class TraceRecord:
    """Binds to every traced route, if there is a trace. `random` returns 0 <= x < 1."""

    def __init__(self, trace: Trace, random: Callable[[], float]) -> None:
        self._trace = trace
        self._random = random

    def bind(self, binding: Binding) -> Hooks | None:
        """One observer of finished exchanges, made for the route."""
        if binding.trace is None or (binding.route is not None and not binding.route.trace):
            return None
        return Hooks(finished=self._observer(binding.trace, binding))

    def _observer(self, settings: Settings, binding: Binding) -> Observer:
        slow, sample, random = settings.slow, settings.sample, self._random
        keep = _Keep(self._trace, settings, binding)
        due = keep.due if keep.rationed else None

        def finished(exchange: Exchange) -> None:
            if (
                (due is not None and due(exchange))
                or exchange.status >= 400
                or exchange.extra is not None
                or exchange.failures is not None
                or exchange.duration >= slow
                or exchange.code is not None
                or random() < sample
            ):
                keep(exchange)

        return finished


class _Keep:
    """Keeps exchanges of one route."""

    def __init__(self, trace: Trace, settings: Settings, binding: Binding) -> None:
        self._trace = trace
        self._every = settings.polls_every
        self._slow = settings.slow
        self._allowance = TokenBucket(RATE, BURST)
        self._allowance_of_errors = TokenBucket(RATE, BURST)
        self._direction = binding.listener.direction
        role = binding.route.job if binding.route is not None else None
        self._reads = role.reads if role is not None else None
        #: Whether one good read of each job, or one good call, is kept in so much time.
        self.rationed = self._reads is not None or self._direction == "egress"
        self._parameter = (role.reads or role.deletes) if role is not None else None
        self._role = (
            None
            if role is None
            else "creation"
            if role.creates
            else "deletion"
            if role.deletes
            else "read"
            if role.reads
            else "list"
        )
        self._next: dict[str, float] = {}  # monotonic: when a good read of a job is kept again

    def _what(self, exchange: Exchange) -> str:
        return "" if self._reads is None else exchange.parameters[self._reads]

    def due(self, exchange: Exchange) -> bool:
        """Whether it is time to keep a good one again. Calls that start something always are."""
        if self._reads is None and exchange.method not in _READING:
            return True
        return exchange.started >= self._next.get(self._what(exchange), 0.0)

    def _kept(self, exchange: Exchange) -> None:
        """Keep no other success of the same job or route for `polls_every`."""
        if exchange.status < 400 and exchange.method in _READING:
            if len(self._next) >= _JOBS:
                for one in [one for one, at in self._next.items() if at <= exchange.started]:
                    del self._next[one]
                if len(self._next) >= _JOBS:
                    self._next.clear()
            self._next[self._what(exchange)] = exchange.started + self._every

    def __call__(self, exchange: Exchange) -> None:
        if self.rationed:
            self._kept(exchange)
        failed = exchange.code is not None or exchange.status >= 400
        allowance = self._allowance_of_errors if failed else self._allowance
        if not allowance.take(exchange.started):
            self._trace.refused_by_rate()
            return
        extra = exchange.extra or {}
        self._trace.record(
            TraceEvent(
                at=exchange.started_at,
                source="exchange",
                kind=self._kind(exchange),
                severity=self._severity(exchange),
                correlation_id=exchange.correlation_id,
                job_id=self._job_id(exchange, extra),
                service=exchange.upstream,
                duration=exchange.duration,
                facts=self._facts(exchange, extra),
            )
        )

    def _kind(self, exchange: Exchange) -> str:
        if exchange.code is not None:
            return exchange.code
        if exchange.status >= 400:
            return "failed" if exchange.status >= 500 else "refused"
        if self._role is not None and not (
            self._role == "creation" and exchange.method in _READING
        ):
            return self._role
        return "call" if self._direction == "egress" else "request"

    def _severity(self, exchange: Exchange) -> Severity:
        if exchange.status >= 500 or (
            exchange.code is not None and not 400 <= exchange.status < 500
        ):
            return Severity.ERROR
        odd = exchange.extra is not None and "unexpected_type" in exchange.extra
        troubled = (
            odd
            or exchange.status >= 400
            or exchange.failures is not None
            or exchange.duration >= self._slow
        )
        return Severity.WARNING if troubled else Severity.OK

    def _job_id(self, exchange: Exchange, extra: dict[str, Any]) -> str | None:
        job_id = extra.get("job_id") or exchange.job_id
        if job_id is None and self._parameter is not None:
            job_id = exchange.parameters.get(self._parameter)
        if job_id is None and exchange.head is not None and self._direction == "egress":
            given = exchange.head.values(b"x-job-id")
            job_id = given[0].decode("latin-1") if len(given) == 1 else None
        return job_id if isinstance(job_id, str) and valid_job_id(job_id) else None

    def _facts(self, exchange: Exchange, extra: dict[str, Any]) -> dict[str, Any]:
        facts: dict[str, object] = {
            "listener": exchange.listener,
            "direction": self._direction,
            "route": exchange.route,
            "method": clean_text(exchange.method, 32),
            "path": clean_target(exchange.path[:2000]),
            "status": exchange.status,
            "code": exchange.code,
            "reason": exchange.reason,
            "detail": None if exchange.detail is None else clean_text(exchange.detail, 500),
            "target": exchange.target,
            "upstream_ms": _ms(exchange.upstream_time),
            "connect_ms": _ms(exchange.connect_time),
            "attempts": exchange.attempts,
            "bytes_in": exchange.bytes_in,
            "bytes_out": exchange.bytes_out,
        }
        if exchange.failures is not None:
            facts["failed_attempts"] = [
                {
                    "at": round(one.at, 3),
                    "until": round(one.until, 3),
                    "kind": one.kind,
                    "target": one.target,
                    "count": one.count,
                }
                for one in exchange.failures
            ]
        facts.update((name, value) for name, value in extra.items() if name not in facts)
        facts.pop("job_id", None)
        return bounded(facts)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
