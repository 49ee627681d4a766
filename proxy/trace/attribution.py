"""Attributes a worker's call of a microservice to a job. Pure.

The worker does not send a job ID, so the job is inferred, and only if it is unambiguous:

1. The job was in a phase in which that service is called (`called_in`) when the call began, or was
   worked on so briefly that the mirror saw none of its phases.
2. No other job was being worked on at that time. The mirror observes late, never early: a job that
   it saw end had ended, and one that it saw start may have started up to `LATE` before. A job that
   never ended, for example because its worker was killed, counts until unchanged for `idle`.
3. A job ID in the call itself, or known for its correlation ID, is never overruled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from proxy.trace.events import TraceEvent
from proxy.trace.job_history import JobHistory

LATE = 0.25  # seconds


def services_of(phase: str, called_in: Mapping[str, Sequence[str]]) -> list[str]:
    """The upstreams that a job calls in that phase."""
    return [service for service, phases in called_in.items() if phase in phases]


def attribute(
    calls: Iterable[TraceEvent],
    history: JobHistory,
    others: Sequence[JobHistory],
    called_in: Mapping[str, Sequence[str]],
    now: float,
    idle: float,
) -> list[TraceEvent]:
    """The calls that certainly belong to this job, marked as `inferred`. `idle`: see rule 2."""
    spans = [span for span in (other.working(now, idle) for other in others) if span is not None]
    unseen = history.unseen_work()
    found = []
    for call in calls:
        if call.job_id not in (None, history.job_id) or call.service is None:
            continue
        if call.job_id == history.job_id:
            found.append(call)
            continue
        phases = called_in.get(call.service, ())
        mine = any(
            phase.name in phases
            and phase.start - LATE <= call.at <= (now if phase.end is None else phase.end)
            for phase in history.phases
        )
        if unseen is not None and phases:
            mine = unseen[0] <= call.at <= unseen[1]
        if mine and not any(start - LATE <= call.at <= end for start, end in spans):
            facts = {**call.facts, "inferred": True}
            found.append(replace(call, job_id=history.job_id, facts=facts))
    return found
