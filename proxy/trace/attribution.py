"""To which job a worker's call to a microservice belongs. Pure.

The worker sends nothing that names the job, so it is inferred, and only where one job can be meant:

1. The job was in a phase in which that service is called (`called_in`) when the call began.
2. No other job was being worked on at that moment. The mirror sees things late, never early: what
   it has seen to end had ended, and what it saw to begin may have begun up to `LATE` before. A job
   that never ended, as when its worker was killed, counts until it has not changed for `idle`.
3. An ID in the call itself, or one that its correlation ID has elsewhere, is never overruled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from proxy.trace.events import TraceEvent
from proxy.trace.job_history import JobHistory

LATE = 0.25  # seconds


def services_of(phase: str, called_in: Mapping[str, Sequence[str]]) -> list[str]:
    """The upstreams that a job in that phase calls."""
    return [service for service, phases in called_in.items() if phase in phases]


def attribute(
    calls: Iterable[TraceEvent],
    life: JobHistory,
    others: Sequence[JobHistory],
    called_in: Mapping[str, Sequence[str]],
    now: float,
    idle: float,
) -> list[TraceEvent]:
    """The calls that were surely made for this job, marked as `inferred`. `idle`: see rule 2."""
    spans = [span for span in (other.working(now, idle) for other in others) if span is not None]
    found = []
    for call in calls:
        if call.job_id not in (None, life.job_id) or call.service is None:
            continue
        if call.job_id == life.job_id:
            found.append(call)
            continue
        phases = called_in.get(call.service, ())
        mine = any(
            phase.name in phases
            and phase.start - LATE <= call.at <= (now if phase.end is None else phase.end)
            for phase in life.phases
        )
        if mine and not any(start - LATE <= call.at <= end for start, end in spans):
            facts = {**call.facts, "inferred": True}
            found.append(replace(call, job_id=life.job_id, facts=facts))
    return found
