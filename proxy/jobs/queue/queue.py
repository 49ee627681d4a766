"""The jobs of one mirror as a queue: which wait, which run, when each will be done. No I/O.

1. The queue follows every captured version. A job waits until a version shows work, and stays in
   the queue until it is finished, deleted or expired. A status that returns to `queued` by itself
   still counts as work (the older service does that).
2. Jobs are served in the order of their creation, which is the order of the broker's list.
3. Times are those of our observations, by our clock, so an app whose clock is off has no effect.
   Durations within one document are the document's own.
4. `review` computes what clients get, at most once a second; requests only look it up. A job that
   changes in between gets its new place at once; the other places are up to a second old.
5. Unknowns are omitted: durations while there are too few samples, waiting times while the number
   of workers is unknown or zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from proxy.config.mirrors import Forecast
from proxy.core.clock import Clock, iso_utc
from proxy.jobs.document import FINISHED, WAITING, JobDocument
from proxy.jobs.queue.forecast import (
    Durations,
    Standing,
    WaitingLine,
    sample_of,
    stage_in_status,
    stage_starts,
)
from proxy.jobs.queue.metrics import QueueMetrics, QueueState

ENOUGH = 5  # completed jobs before a time is estimated: fewer say little
MOST = 10_000  # unfinished jobs that are followed
ESTIMATED = 2_000  # waiting jobs that are given a time; the others are given their place only
FORGET = 2 * 86400.0  # seconds without a change: twice as long as a key lives
PIECE = 100  # jobs of a review after which others get a turn
PEAK = 600.0  # seconds for which it counts how many jobs were worked on at once
_LEARNED = 500  # ids of completed jobs, so that a rewrite teaches nothing twice


@dataclass(slots=True)
class _Job:
    created: float  # by the app's clock where it says so; the order of the queue
    seen: float  # ours, of the first version
    changed: float  # ours, of the last stage's beginning
    working: bool = False
    expires: float | None = None
    starts: list[tuple[str, float]] = field(default_factory=list)
    expected: float | None = None  # what was foreseen at the first stage, Unix seconds
    expected_at: float = 0.0

    def standing(self, now: float) -> Standing:
        spent = max(0.0, now - self.changed)
        if not self.starts:
            return Standing(None, 0.0, spent)
        stage, at = self.starts[-1]
        return Standing(stage, max(0.0, at - self.starts[0][1]), spent)


class JobQueue:
    """See the rules at the top of the file. `workers` returns how many are connected, None if
    unknown. `durations` holds the samples."""

    def __init__(
        self,
        settings: Forecast,
        clock: Clock,
        metrics: QueueMetrics,
        workers: Callable[[], int | None],
    ) -> None:
        self._clock = clock
        self._metrics = metrics
        self._workers = workers
        self._slots = settings.slots
        self.durations = Durations(ENOUGH)
        self._jobs: dict[str, _Job] = {}
        self._learned: dict[str, None] = {}
        self._fields: dict[str, bytes] = {}
        self._changed: set[str] = set()  # since the review began
        self._line: WaitingLine | None = None  # behind the last waiting job that was given a time
        self._behind = 0  # waiting jobs at the last review, and those that came since
        self._peaks = (0, 0)  # most jobs at work, in the last `PEAK` seconds or so
        self._peak_until = 0.0
        self.state = QueueState(0, 0, 0.0, None, None, None)

    # --- what happens to jobs -------------------------------------------------------------------

    def changed(self, snapshot: JobDocument) -> None:
        """A new version of a job was seen."""
        self._follow(snapshot, self._clock.time(), live=True)

    def recall(self, snapshot: JobDocument, seen: float) -> None:
        """A job as the store holds it, seen at that time; those that were finished before that, the
        oldest first."""
        self._follow(snapshot, min(seen, self._clock.time()), live=False)

    def ended(self, job_id: str) -> None:
        """It was deleted."""
        self._changed.add(job_id)
        self._jobs.pop(job_id, None)
        self._fields.pop(job_id, None)

    def _follow(self, snapshot: JobDocument, now: float, *, live: bool) -> None:
        job_id, status = snapshot.job_id, snapshot.status
        self._changed.add(job_id)
        if status in FINISHED:
            self._finish(snapshot, now, live=live)
            return
        if snapshot.shape == "opaque":
            return
        job = self._jobs.get(job_id)
        if job is None:
            if len(self._jobs) >= MOST:
                return
            job = self._jobs[job_id] = _Job(snapshot.created_at or now, now, now)
            if live:
                self._metrics.arrivals.inc()
        job.expires = snapshot.expires_at
        if status in WAITING and not job.working:
            if live and job_id not in self._fields:
                self._fields[job_id] = self._joins(now)
            return
        if self._moves(job, snapshot, now, live=live) and live:
            self._fields[job_id] = self._at_work(job, now)[0]

    def _moves(self, job: _Job, snapshot: JobDocument, now: float, *, live: bool) -> bool:
        """A job that is worked on; whether it has come further."""
        further = not job.working
        if further:
            job.working, job.changed = True, now
            self._behind = max(0, self._behind - 1)
            if live:
                self._metrics.wait.observe(max(0.0, now - self._since(job, snapshot, now)))
        dated = stage_starts(snapshot)
        if dated:
            if list(dated) != job.starts:  # one that was started again has new times
                job.starts, job.changed, further = list(dated), now, True
        elif (stage := stage_in_status(snapshot)) and stage not in [one for one, _ in job.starts]:
            job.starts.append((stage, now))
            job.changed, further = now, True
        return further

    @staticmethod
    def _since(job: _Job, snapshot: JobDocument, now: float) -> float:
        """Since when it has waited, by our clock: its first version may have been one at work."""
        if job.seen < now or snapshot.created_at is None:
            return job.seen
        begun = next((at for _, at in stage_starts(snapshot)), snapshot.created_at)
        return now - min(FORGET, max(0.0, begun - snapshot.created_at))

    def _finish(self, snapshot: JobDocument, now: float, *, live: bool) -> None:
        job_id = snapshot.job_id
        job = self._jobs.pop(job_id, None)
        self._fields.pop(job_id, None)
        if job is not None and live:
            self._metrics.completions.inc()
        if snapshot.status != "completed" or job_id in self._learned:
            return
        dated = stage_starts(snapshot)
        if dated:
            sample = sample_of(dated, snapshot.completed_at)
        else:
            sample = sample_of(job.starts, now) if job is not None and live else None
        if sample is None:
            return
        self._learned[job_id] = None
        if len(self._learned) > _LEARNED:
            del self._learned[next(iter(self._learned))]
        self.durations.learn(sample)
        if live and job is not None and job.expected is not None and now > job.expected_at:
            error = abs(now - job.expected) / (now - job.expected_at)
            self._metrics.error.observe(error)

    # --- what callers get -----------------------------------------------------------------------

    def fields(self, job_id: str) -> bytes:
        """Field lines for an answer about the job, a CRLF before each; empty where nothing is
        known. A look-up."""
        return self._fields.get(job_id, b"")

    def estimate(self, job_id: str) -> float | None:
        """When a job that is worked on will be done, Unix seconds; None: not known."""
        job, now = self._jobs.get(job_id), self._clock.time()
        if job is None or not job.working:
            return None
        left = self.durations.remaining(job.standing(now))
        return None if left is None else now + left

    def field_pairs(self, job_id: str) -> tuple[tuple[str, str], ...]:
        """The same as names and values."""
        lines = self.fields(job_id).decode().split("\r\n")[1:]
        return tuple((name, value) for name, _, value in (line.partition(": ") for line in lines))

    def _joins(self, now: float) -> bytes:
        """A new job, behind all others."""
        self._behind += 1
        done = None
        if self._line is not None and self._behind <= ESTIMATED:
            done = now + self._line.next()
        return _lines(self._behind, done)

    def _at_work(self, job: _Job, now: float) -> tuple[bytes, float | None]:
        """Its fields, and in how many seconds it will be done."""
        left = self.durations.remaining(job.standing(now))
        if left is not None and job.expected is None and job.starts:
            job.expected, job.expected_at = now + left, now
        return _lines(0, None if left is None else now + left), left

    def review(self) -> None:
        """Give every job its place and time anew, and every metric its value."""
        for _ in self.reviewing():
            pass

    def reviewing(self) -> Iterator[None]:
        """The same in pieces of a millisecond; jobs may change in between."""
        now = self._clock.time()
        self._drop_old(now)
        self._changed.clear()
        each = self.durations.typical
        fields: dict[str, bytes] = {}
        busy: list[float] = []
        waiting: list[tuple[float, str]] = []
        jobs = list(self._jobs.items())
        for number, (job_id, job) in enumerate(jobs, 1):
            if job.working:
                fields[job_id], left = self._at_work(job, now)
                if left is not None:
                    busy.append(left)
                elif each is not None:
                    busy.append(each)  # nobody knows; it holds its worker up for now
            else:
                waiting.append((job.created, job_id))
            if not number % PIECE:
                yield
        waiting.sort()
        slots = self._count_slots(len(jobs) - len(waiting), now)
        line = None if each is None or not slots else WaitingLine(slots, busy, each)
        last = max(busy, default=0.0)
        for position, (_, job_id) in enumerate(waiting, 1):
            done = None
            if line is not None and position <= ESTIMATED:
                done = line.next()
                last = max(last, done)
                done += now
            fields[job_id] = _lines(position, done)
            if not position % PIECE:
                yield
        for job_id in self._changed:  # meanwhile: what was given then is newer
            fields.pop(job_id, None)
            if job_id in self._fields:
                fields[job_id] = self._fields[job_id]
        self._fields, self._line, self._behind = fields, line, len(waiting)
        oldest = min((job.seen for _, job in jobs if not job.working), default=now)
        known = each is not None and (line is not None or not waiting)
        drained = last if known and len(waiting) <= ESTIMATED else None
        self.state = QueueState(
            len(waiting), len(jobs) - len(waiting), max(0.0, now - oldest), slots, each, drained
        )
        self._metrics.show(self.state)

    def _count_slots(self, working: int, now: float) -> int | None:
        """How many jobs are worked on at a time: at least one a worker, and at least as many as
        lately were (a worker may have several processes)."""
        if now >= self._peak_until:
            self._peaks = (self._peaks[1], 0)
            self._peak_until = now + PEAK / 2
        self._peaks = (self._peaks[0], max(self._peaks[1], working))
        if self._slots is not None:
            return self._slots
        connected = self._workers()
        if connected is None:
            return max(self._peaks) or None
        return max(connected, *self._peaks) if connected else 0

    def _drop_old(self, now: float) -> None:
        for job_id in [one for one, job in self._jobs.items() if _is_old(job, now)]:
            del self._jobs[job_id]


def _is_old(job: _Job, now: float) -> bool:
    expired = job.expires is not None and job.expires < now and job.changed < now - 3600
    return expired or job.changed < now - FORGET


def _lines(position: int, done: float | None) -> bytes:
    text = f"\r\nX-Job-Queue-Position: {position}"
    if done is not None:
        text += f"\r\nX-Job-Estimated-Completion: {iso_utc(done)[:19]}Z"
    return text.encode()
