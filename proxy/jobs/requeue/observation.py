"""What one look at the broker shows of each unfinished job, compared with the looks before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from proxy.jobs.document import WAITING
from proxy.jobs.requeue.broker import View
from proxy.jobs.requeue.evidence import Judgement, Start, Work
from proxy.jobs.requeue.memory import MessageMemory
from proxy.jobs.requeue.messages import Message
from proxy.jobs.requeue.workers import WorkerWatch


@dataclass(frozen=True, slots=True)
class Found:
    """A job's message; `tag` is its delivery tag in `unacked`, None if it is in the queue."""

    message: Message
    tag: str | None


@dataclass(slots=True)
class Track:
    """What we remember of an unfinished job between looks. Times are in Unix seconds."""

    missing_since: float | None = None
    judged: Judgement | None = None
    unattended_since: float | None = None
    pause_until: float = 0.0
    reported: str = ""
    refused: str = ""


class Observation:
    """What is remembered of the broker between looks, over one connection."""

    def __init__(self, memory: MessageMemory, workers: WorkerWatch) -> None:
        self._memory = memory
        self._workers = workers
        # Messages in `unacked`, by tag and time: when first seen, and whether it got there while we
        # watched over this connection.
        self._taken: dict[tuple[str, float], tuple[float, bool]] = {}
        self._looked = False
        self.looked_at = 0.0  # Unix seconds
        # The next message in the queue, and since when.
        self._next: tuple[bytes, float] | None = None

    def reconnected(self) -> None:
        """Start over on a new connection."""
        self._taken.clear()
        self._looked = False
        self._next = None

    def notice(self, view: View, now: float) -> None:
        """Compare a look with the one before."""
        self._notice_taken(view, now)
        self._notice_next(view, now)

    def stalled_for(self, now: float) -> float:
        """Seconds for which the same message has been next while no worker holds one."""
        return 0.0 if self._next is None else now - self._next[1]

    def _notice_taken(self, view: View, now: float) -> None:
        present = {(tag, one.score) for tag, one in view.taken.items()}
        self._taken = {key: self._taken.get(key, (now, self._looked)) for key in present}
        self._looked = True

    def _notice_next(self, view: View, now: float) -> None:
        """Notice how long the same message has been next while no worker holds one."""
        following = view.queued[0].raw if view.queued and not view.taken else None
        if following is None:
            self._next = None
        elif self._next is None or self._next[0] != following:
            self._next = following, now

    def tasks(self, jobs: dict[str, Any], places: dict[str, Found]) -> list[str]:
        """The tasks whose results we need: of jobs that are taken or have no message."""
        wanted = []
        for job_id in jobs:
            place, record = places.get(job_id), self._memory.of(job_id)
            if place is not None and place.tag is not None:
                wanted.append(place.message.task_id)
            elif place is None and record is not None:
                wanted.append(record.task_id)
        return wanted

    async def work(
        self,
        job_id: str,
        track: Track,
        status: str,
        changed: float,
        place: Found | None,
        view: View,
        now: float,
    ) -> Work:
        """What evidence needs of one job; `place` is its message."""
        waiting = status in WAITING
        if place is None:
            if track.missing_since is None:
                track.missing_since = now
            record, missing = self._memory.of(job_id), now - track.missing_since
            if record is None:
                return Work(job_id, waiting, changed, missing_for=missing)
            return Work(
                job_id,
                waiting,
                changed,
                task_id=record.task_id,
                node=record.node,
                pid=record.pid,
                result=view.results.get(record.task_id),
                missing_for=missing,
            )
        track.missing_since = None
        message = place.message
        result = view.results.get(message.task_id)
        node, pid = (result.node, result.pid) if result is not None else (None, None)
        await self._memory.seen(job_id, message, node, pid, now)
        if place.tag is None:
            return Work(job_id, waiting, changed, place="queue", task_id=message.task_id)
        first_seen, appeared = self._taken[place.tag, view.taken[place.tag].score]
        record = self._memory.of(job_id)
        if appeared and record is not None and record.seen_at == now and node and pid:
            # Both the message and its worker are new: the job started since the last look.
            self._workers.began(node, Start(job_id, pid, self.looked_at))
        return Work(
            job_id,
            waiting,
            changed,
            place="taken",
            task_id=message.task_id,
            taken_at=first_seen,
            appeared=appeared,
            node=node,
            pid=pid,
            result=result,
        )


def places(view: View, jobs: dict[str, Any]) -> dict[str, Found]:
    """The place of each job's message; a message in the queue takes precedence."""
    found: dict[str, Found] = {}
    for tag, taken in view.taken.items():
        for job_id in taken.message.job_ids:
            if job_id in jobs:
                found[job_id] = Found(taken.message, tag)
    for message in view.queued:
        for job_id in message.job_ids:
            if job_id in jobs:
                found[job_id] = Found(message, None)
    return found
