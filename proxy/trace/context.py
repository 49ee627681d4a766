"""What the rules of diagnosis.py look at, and what they find. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from proxy.trace.events import TraceEvent
from proxy.trace.job_history import JobHistory

LOOK_BACK = 3600.0  # seconds before a story within which something can have prepared it


@dataclass(frozen=True, slots=True)
class Cause:
    """The suspect. `event` is one of the story's."""

    kind: str
    summary: str
    event: TraceEvent


@dataclass(slots=True)
class DiagnosisContext:
    """What the rules look at. `events` are all of the story, in time order; `before` what happened
    to breakers, mirrors and the proxy in the hour before it. `now` is Unix seconds."""

    events: Sequence[TraceEvent]
    lives: Sequence[JobHistory]
    now: float
    stuck_after: float
    called_in: Mapping[str, Sequence[str]]
    slow: float = 2.0
    about_job: bool = False  # the ID asked for is a job's
    before: Sequence[TraceEvent] = field(default_factory=tuple)

    def of(self, source: str, *kinds: str) -> list[TraceEvent]:
        """The story's events of one source, of those kinds if any are named."""
        return [e for e in self.events if e.source == source and (not kinds or e.kind in kinds)]

    def concerns(self, event: TraceEvent) -> bool:
        """Whether it can be what is asked about: a refusal is not of a job that there is, though
        the client may have given both the same correlation ID."""
        return not self.about_job or event.job_id is not None

    @property
    def ingress(self) -> list[TraceEvent]:
        """What callers asked."""
        return [e for e in self.of("exchange") if e.facts.get("direction") != "egress"]

    def calls(self, service: str) -> list[TraceEvent]:
        """Calls of a microservice."""
        return [
            e
            for e in self.of("exchange")
            if e.service == service and e.facts.get("direction") == "egress"
        ]

    def job_event(self, life: JobHistory, *kinds: str) -> TraceEvent | None:
        """The last event of a job's life, of those kinds if any are named."""
        found = [e for e in self.of("job", *kinds) if e.job_id == life.job_id]
        return found[-1] if found else None

    def opening(self, service: str, until: float) -> TraceEvent | None:
        """The transition that made a circuit refuse calls at that moment; None when it did not."""
        seen = [
            e
            for e in (*self.before, *self.events)
            if e.source == "breaker" and e.service == service and e.at <= until
        ]
        opened: TraceEvent | None = None
        for event in sorted(seen, key=lambda e: e.at):
            if event.kind in ("open", "forced_open"):
                opened = event if opened is None or event.kind == "forced_open" else opened
            elif event.kind in ("closed", "forced_closed"):
                opened = None
        return opened

    def lasting(self, begins: str, ends: str) -> TraceEvent | None:
        """News of a mirror that have not ended by the end of the story, or ended within it."""
        begun: TraceEvent | None = None
        first = self.events[0].at if self.events else self.now
        for event in sorted((*self.before, *self.events), key=lambda e: e.at):
            if event.source == "mirror" and event.kind == begins:
                begun = event
            elif event.source == "mirror" and event.kind == ends and event.at < first:
                begun = None
        return begun

    def shown(self, wanted: TraceEvent, instead: TraceEvent) -> TraceEvent:
        """An event that is among the story's: the wanted one, or the one that it led to."""
        return wanted if any(e is wanted for e in self.events) else instead


def index_of(events: Iterable[TraceEvent], event: TraceEvent) -> int:
    """Where an event stands among others; the same object, not an equal one."""
    return next(i for i, one in enumerate(events) if one is event)
