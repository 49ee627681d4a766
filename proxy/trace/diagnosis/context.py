"""What a diagnosis rule gets and what it returns. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from proxy.trace.events import TraceEvent
from proxy.trace.job_history import JobHistory

LOOK_BACK = 3600.0  # seconds before a timeline within which its cause may lie


@dataclass(frozen=True, slots=True)
class Cause:
    """The suspected cause. `event` is part of the timeline."""

    kind: str
    summary: str
    event: TraceEvent


@dataclass(slots=True)
class DiagnosisContext:
    """What the rules examine. `events` is the timeline in order; `before` has the state changes of
    breakers, mirrors and the proxy in the hour before it. `now` is in Unix seconds."""

    events: Sequence[TraceEvent]
    histories: Sequence[JobHistory]
    now: float
    stuck_after: float
    called_in: Mapping[str, Sequence[str]]
    slow: float = 2.0
    about_job: bool = False  # the ID asked for is a job's
    before: Sequence[TraceEvent] = field(default_factory=tuple)

    def of(self, source: str, *kinds: str) -> list[TraceEvent]:
        """The timeline's events of one source, optionally of these kinds only."""
        return [e for e in self.events if e.source == source and (not kinds or e.kind in kinds)]

    def concerns(self, event: TraceEvent) -> bool:
        """Whether the event can explain what the query is about. The rejection of a request does
        not explain an existing job, even if both have the same correlation ID."""
        return not self.about_job or event.job_id is not None

    @property
    def ingress(self) -> list[TraceEvent]:
        """Exchanges with clients."""
        return [e for e in self.of("exchange") if e.facts.get("direction") != "egress"]

    def calls(self, service: str) -> list[TraceEvent]:
        """Calls to a microservice."""
        return [
            e
            for e in self.of("exchange")
            if e.service == service and e.facts.get("direction") == "egress"
        ]

    def job_event(self, history: JobHistory, *kinds: str) -> TraceEvent | None:
        """The last event in a job's history, optionally of these kinds only."""
        found = [e for e in self.of("job", *kinds) if e.job_id == history.job_id]
        return found[-1] if found else None

    def opening(self, service: str, until: float) -> TraceEvent | None:
        """The transition that had opened a circuit at time `until`; None if it was closed."""
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
        """A mirror's condition that began before or in the timeline and did not end before it."""
        begun: TraceEvent | None = None
        first = self.events[0].at if self.events else self.now
        for event in sorted((*self.before, *self.events), key=lambda e: e.at):
            if event.source == "mirror" and event.kind == begins:
                begun = event
            elif event.source == "mirror" and event.kind == ends and event.at < first:
                begun = None
        return begun

    def shown(self, wanted: TraceEvent, instead: TraceEvent) -> TraceEvent:
        """`wanted` if it is part of the timeline, else `instead`, its consequence."""
        return wanted if any(e is wanted for e in self.events) else instead


def index_of(events: Iterable[TraceEvent], event: TraceEvent) -> int:
    """The index of an event among others, by identity."""
    return next(i for i, one in enumerate(events) if one is event)


def was_answered_here(event: TraceEvent) -> bool:
    """Whether the mirror answered the client instead of the service."""
    return "rescued_from" in event.facts
