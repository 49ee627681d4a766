"""Estimates when a job will be done from the durations of recent jobs. Pure.

1. A sample is a completed job: the start of each stage relative to the first, and the total
   duration. Failed and cancelled jobs are ignored. The last `SAMPLES` samples are kept.
2. Within a stage, the estimate is the median time that the samples needed from the start of that
   stage, less the time already spent in it. Samples whose stage was shorter no longer count.
3. Jobs differ in size. `pace` compares how long this job took to reach its stage with the samples,
   and scales the estimate. Early on little is known, so it starts near 1.
4. There is an estimate only with at least `enough` samples, and only for a job that is not far
   beyond everything seen before (the end of a stuck job cannot be estimated).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from proxy.jobs.document import FINISHED, WAITING, JobDocument, to_timestamp

SAMPLES = 50
STUCK = 2.0  # times the longest stage seen, after which a job counts as stuck
GRACE = 5.0  # seconds beyond that: short stages are delayed by trifles
PACE = (1 / 3, 3.0)
INERTIA = 0.15  # share of a job that must have passed before the pace counts for half
_MOST_STAGES = 32
_LONGEST = 7 * 86400.0  # seconds of a job
_NO_STAGE = FINISHED | WAITING | {"processing", "unknown"}
_BEGUN = frozenset({"processing", "in_progress", "running", "completed", "done", "failed"})

Starts = tuple[tuple[str, float], ...]
"""Stages in the order in which they began, with the seconds at which they did."""


def stage_starts(snapshot: JobDocument) -> Starts:
    """Which stages a document dates the beginning of (Unix seconds, by the app's clock).

    The older shape dates none.
    """
    stages = None if snapshot.document is None else snapshot.document.get("stages")
    if not isinstance(stages, dict):
        return ()
    found = []
    for name, stage in list(stages.items())[:_MOST_STAGES]:
        status = stage.get("status") if isinstance(stage, dict) else None
        if isinstance(status, str) and status in _BEGUN:
            began = to_timestamp(stage.get("started_at"))
            if began is not None:
                found.append((name[:80], began))
    return tuple(sorted(found, key=lambda one: one[1]))


def stage_in_status(snapshot: JobDocument) -> str | None:
    """The stage that the status itself names, as that of the older shape does."""
    return None if snapshot.status in _NO_STAGE else snapshot.status


@dataclass(frozen=True, slots=True)
class JobDuration:
    """A completed job. `starts` count from the first stage's beginning, which is 0."""

    starts: Starts
    total: float


def sample_of(starts: Sequence[tuple[str, float]], ended: float | None) -> JobDuration | None:
    """A sample from dated stages (all by one clock); None if the dates make no sense."""
    if not starts or ended is None:
        return None
    first = starts[0][1]
    total = ended - first
    if not 0 < total <= _LONGEST or any(not 0 <= at - first <= total for _, at in starts):
        return None
    return JobDuration(tuple((name, at - first) for name, at in starts), total)


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a job has come: `reached` seconds after its first stage began it entered `stage`, and
    has been there for `spent` seconds. `stage` is None before the first one."""

    stage: str | None
    reached: float
    spent: float


class Durations:
    """The samples and the estimates from them. All results are in seconds."""

    def __init__(self, enough: int) -> None:
        self._enough = max(1, enough)
        self._recent: deque[JobDuration] = deque(maxlen=SAMPLES)
        self._typical: float | None = None
        self._stages: dict[str, list[tuple[float, float, float]]] = {}  # reached, lasted, after

    def __len__(self) -> int:
        return len(self._recent)

    def learn(self, sample: JobDuration) -> None:
        """A job was completed."""
        self._recent.append(sample)
        self._typical = None
        self._stages.clear()

    @property
    def typical(self) -> float | None:
        """How long a whole job takes; None while there are too few samples."""
        if self._typical is None and len(self._recent) >= self._enough:
            self._typical = median(sample.total for sample in self._recent)
        return self._typical

    def remaining(self, standing: Standing) -> float | None:
        """How much longer the job will take; None if that is unknown (rule 4)."""
        typical = self.typical
        if typical is None:
            return None
        samples = self._samples(standing.stage)
        if len(samples) < self._enough:
            # Not a stage that is known: all that is left is how long a job takes in all.
            longest = max(sample.total for sample in self._recent)
            gone = standing.reached + standing.spent
            if gone > STUCK * longest + GRACE:
                return None
            left = [sample.total - gone for sample in self._recent if sample.total > gone]
            return median(left) if left else 0.0
        usual = median(reached for reached, _, _ in samples)
        inertia = INERTIA * typical
        pace = (standing.reached + inertia) / (usual + inertia)
        pace = min(PACE[1], max(PACE[0], pace))
        if standing.spent > STUCK * pace * max(lasted for _, lasted, _ in samples) + GRACE:
            return None
        left = [
            pace * (lasted + after) - standing.spent
            for _, lasted, after in samples
            if pace * lasted > standing.spent
        ]
        if not left:  # it has outlived them all: what comes after this stage is still to be done
            return pace * median(after for _, _, after in samples)
        return median(left)

    def _samples(self, stage: str | None) -> list[tuple[float, float, float]]:
        if stage is None:
            return []
        found = self._stages.get(stage)
        if found is None:
            found = []
            for sample in self._recent:
                ends = [at for _, at in sample.starts[1:]] + [sample.total]
                for (name, at), end in zip(sample.starts, ends, strict=True):
                    if name == stage:
                        found.append((at, end - at, sample.total - end))
                        break
            if len(self._stages) < 4 * _MOST_STAGES:
                self._stages[stage] = found
        return found


class WaitingLine:
    """A queue served in order by `slots` workers, each of which is free after so many seconds."""

    def __init__(self, slots: int, busy: Iterable[float], each: float) -> None:
        free = sorted(busy)[:slots]
        self._free = free + [0.0] * (slots - len(free))
        heapq.heapify(self._free)
        self._each = each

    def next(self) -> float:
        """In how many seconds the next job in the line is done."""
        done = self._free[0] + self._each
        heapq.heapreplace(self._free, done)
        return done
