"""The recorder: the entry point of the trace for everyone who reports events."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from prometheus_client import CollectorRegistry

from proxy.config import schema
from proxy.core.clock import Clock
from proxy.core.tasks import Tasks
from proxy.trace.events import Severity, Source, TraceEvent, bounded, text
from proxy.trace.metrics import TraceMetrics
from proxy.trace.store import TraceStore


class NamedState(Protocol):
    """A state with a name."""

    @property
    def value(self) -> str: ...


class FailureFacts(Protocol):
    """One of the failures that opened a circuit."""

    def document(self) -> dict[str, Any]: ...


class TransitionFacts(Protocol):
    """A circuit's state transition, as a breaker reports it."""

    @property
    def from_state(self) -> NamedState: ...
    @property
    def to_state(self) -> NamedState: ...
    @property
    def reason(self) -> str: ...
    @property
    def by(self) -> str: ...
    @property
    def mine(self) -> bool: ...
    @property
    def open_for(self) -> float: ...
    @property
    def failures(self) -> Iterable[FailureFacts]: ...


_BREAKERS = {"open": Severity.ERROR, "forced_open": Severity.ERROR, "closed": Severity.OK}

#: The events of a mirror: their source and severity.
_MIRRORS: dict[str, tuple[Source, Severity]] = {
    "redis_lost": ("mirror", Severity.ERROR),
    "redis_back": ("mirror", Severity.OK),
    "sqlite_degraded": ("mirror", Severity.ERROR),
    "sqlite_back": ("mirror", Severity.OK),
    "gap": ("mirror", Severity.WARNING),
    "obstacle": ("mirror", Severity.ERROR),
    "obstacle_gone": ("mirror", Severity.OK),
    "stranded": ("mirror", Severity.ERROR),
    "restored": ("restore", Severity.WARNING),
    "no_workers": ("mirror", Severity.ERROR),
    "workers_back": ("mirror", Severity.OK),
    "unattended": ("mirror", Severity.ERROR),
    "requeued": ("restore", Severity.WARNING),
    "not_requeued": ("mirror", Severity.ERROR),
    "broker_refused": ("mirror", Severity.ERROR),
    "broker_back": ("mirror", Severity.OK),
}

_PROXY = {
    "reload_refused": Severity.ERROR,
    "trace_degraded": Severity.ERROR,
}


def _ignore(event: TraceEvent) -> None:
    """Drop an event while there is no trace."""


class Trace:
    """The trace of a process. `await start()`, `record`, `await stop()`; `store` is for reading.

    Without `settings` the trace is off: `store` is None and events are dropped.
    """

    def __init__(
        self,
        settings: schema.Trace | None,
        clock: Clock,
        registry: CollectorRegistry,
        tasks: Tasks | None = None,
    ) -> None:
        self.clock = clock
        self._metrics = TraceMetrics(registry)
        self._tasks = tasks or Tasks()
        self._use(settings)

    def _use(self, settings: schema.Trace | None) -> None:
        self.settings = settings
        self.store: TraceStore | None = None
        self.record: Callable[[TraceEvent], None] = _ignore
        if settings is None:
            return
        self.store = TraceStore(
            settings.sqlite,
            self.clock,
            self._metrics,
            self._tasks,
            keep_for=settings.keep_for,
            max_size=settings.max_size,
            on_degraded=self._degraded,
        )
        self.record = self.store.put

    async def start(self) -> None:
        """Start writing. Never raises for the state of the file."""
        if self.store is not None:
            await self.store.start()
            self.proxy("started")

    async def stop(self) -> None:
        """Write what is queued, for a few seconds at most, and close."""
        if self.store is not None:
            self.proxy("stopped")
            await self.store.stop()

    async def replace(self, settings: schema.Trace | None) -> None:
        """Restart with these settings: another file, other limits, or no trace. Plans compiled
        before keep their own thresholds. Never raises."""
        store = self.store
        self._use(settings)  # events from now on go to the new one
        if store is not None:
            await store.stop()
        if self.store is not None:
            await self.store.start()

    def refused_by_rate(self) -> None:
        """Count an event that exceeded a rate limit."""
        self._metrics.dropped("rate")

    # --- events other than exchanges ------------------------------------------------------------

    def breaker(self, service: str, made: TransitionFacts) -> None:
        """Record a circuit's transition."""
        kind = made.to_state.value
        self.record(
            TraceEvent(
                at=self.clock.time(),
                source="breaker",
                kind=kind,
                severity=_BREAKERS.get(kind, Severity.WARNING),
                service=service,
                facts=bounded(
                    {
                        "from": made.from_state.value,
                        "reason": made.reason,
                        "by": made.by,
                        "mine": made.mine,
                        "open_for": made.open_for or None,
                        "failures": [one.document() for one in made.failures][-5:] or None,
                    }
                ),
            )
        )

    def mirror(self, name: str, kind: str, facts: dict[str, object]) -> None:
        """Record a mirror's event: a loss, a recovery, a restore, a stranded job. `job_id` among
        the facts is the job concerned."""
        source, severity = _MIRRORS[kind]
        if kind == "restored" and not facts.get("restored"):
            return  # nothing was missing
        job_id = facts.pop("job_id", None)
        self.record(
            TraceEvent(
                at=self.clock.time(),
                source=source,
                kind=kind,
                severity=severity,
                job_id=None if job_id is None else text(job_id, 128),
                facts=bounded({"mirror": name, **facts}),
            )
        )

    def proxy(self, kind: str, **facts: object) -> None:
        """Record an event of the proxy itself: `started`, `stopped`, `reloaded`, `reload_refused`,
        `trace_degraded`, `trace_back`."""
        severity = _PROXY.get(kind, Severity.OK)
        self.record(TraceEvent(self.clock.time(), "proxy", kind, severity, facts=bounded(facts)))

    def _degraded(self, reason: str | None) -> None:
        if reason is None:
            self.proxy("trace_back")
        else:
            self.proxy("trace_degraded", reason=reason)
