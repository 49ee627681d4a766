"""Whether a worker works on a job, and the evidence for it. Pure.

1. A job is requeued only with proof that no worker works on it. A job that merely looks idle waits;
   an operator may decide.
2. A missing connection proves something only if it existed: after Redis restarts, a worker of the
   solo pool finishes its job without a connection and reconnects afterwards.
3. A worker that answers works on exactly what it lists. A busy solo worker does not answer, so no
   answer proves nothing.
4. Node names are unique and a solo worker has one task at a time: a worker that has started another
   job no longer works on the first, whether in the same process or in a new one.
5. Nothing is pushed while workers may discard it: after Redis trouble the worker's own breaker
   stays open for `app_breaker`; it then sees every job as missing and reports success.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from proxy.jobs.requeue.pidbox import Consumers, Result, WorkerAnswer

CLOCK_SLACK = 1.0  # seconds by which the clocks of proxies may differ
STALLED_AFTER = 15.0  # seconds; an idle worker takes a message within milliseconds
ANSWER_HOLDS = 60.0  # seconds for which an answer says something about now

Place = Literal["queue", "taken"]


class Action(StrEnum):
    """The action for a job."""

    NOTHING = "nothing"  # it has a message, or a worker works on it
    WAIT = "wait"  # no worker seems to work on it, but there is no proof yet
    PUSH = "push"  # it has no message: push one
    RESTORE = "restore"  # its message is in `unacked`, and its worker is gone


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. `settle`: how long a job's state must last before anything is concluded."""

    app_breaker: float
    stranded_after: float
    settle: float


@dataclass(frozen=True, slots=True)
class Work:
    """One unfinished job according to store and broker; times in Unix seconds.

    `waiting`: by its status no worker has started it. `place`: where its message is, None for no
    message. `taken_at`: when the message was first seen in `unacked`; `appeared`: it got there
    while we watched over one connection. `node`, `pid`: the worker that took it, if known.
    `missing_for`: seconds without a message.
    """

    job_id: str
    waiting: bool
    changed_at: float
    place: Place | None = None
    task_id: str = ""
    taken_at: float = 0.0
    appeared: bool = False
    node: str | None = None
    pid: int | None = None
    result: Result | None = None
    missing_for: float = 0.0

    @property
    def since(self) -> float:
        """Since when it has been in this state."""
        return max(self.changed_at, self.taken_at if self.place == "taken" else 0.0)


@dataclass(frozen=True, slots=True)
class Start:
    """A solo worker started a job in process `pid`, not before `at`."""

    job_id: str
    pid: int
    at: float


@dataclass(frozen=True, slots=True)
class Workers:
    """What is known of the workers.

    `receivers`: how many received the last question, asked at `asked_at`; None: we may not ask.
    `had_receivers`: there were some before, so the workers do listen to questions. `answers`: the
    newest of each node. `known`: nodes seen within `stranded_after`. `starts`: the newest observed
    start of each solo node.
    """

    receivers: int | None = None
    asked_at: float = 0.0
    had_receivers: bool = False
    consumers: Consumers | None = None
    answers: Mapping[str, WorkerAnswer] = field(default_factory=dict)
    known: frozenset[str] = frozenset()
    starts: Mapping[str, Start] = field(default_factory=dict)

    @property
    def connected(self) -> int | None:
        """How many workers are connected to the broker; None if unknown."""
        if self.receivers:
            return self.receivers
        if self.consumers is not None:
            return self.consumers.all
        return 0 if self.receivers == 0 and self.had_receivers else None

    @property
    def present(self) -> dict[str, WorkerAnswer]:
        """The nodes that have answered the last question."""
        return {
            node: one
            for node, one in self.answers.items()
            if one.asked_at >= self.asked_at - CLOCK_SLACK / 10
        }

    @property
    def silent(self) -> int | None:
        """Connected workers that did not answer, usually because they are busy. None: unknown."""
        connected = self.connected
        return None if connected is None else max(0, connected - len(self.present))


@dataclass(frozen=True, slots=True)
class Judgement:
    """The action and why: `reason` is a fixed token, `evidence` a sentence."""

    action: Action
    reason: str
    evidence: str

    @property
    def unattended(self) -> bool:
        """Whether no worker is seen to work on the job."""
        return self.action is not Action.NOTHING


def judge(
    job: Work,
    workers: Workers,
    *,
    now: float,
    calm_for: float,
    readable: bool,
    others: int,
    limits: Limits,
    stalled_for: float = 0.0,
) -> Judgement:
    """`calm_for`: seconds since the last trouble with Redis. `readable`: every message of the
    broker was read and understood. `others`: other jobs that busy workers may be at.
    `stalled_for`: seconds for which the next message of the queue has been the same one, while no
    worker has any in its hands."""
    holder = _holder(job, workers, now)
    if holder is not None:
        return Judgement(Action.NOTHING, "running", f"worker {holder} says that it works on it")
    if job.place == "queue":
        return _in_queue(workers, others, stalled_for)
    if job.place is None and not readable:
        evidence = "the broker has messages that cannot be read, one of them may be this job's"
        return Judgement(Action.WAIT, "unreadable_messages", evidence)
    if job.place == "taken" or not job.waiting:
        proof = _abandoned(job, workers, now=now, others=others, limits=limits)
    else:
        proof = _without_message(job, workers, others=others, limits=limits)
    if proof.action is Action.PUSH and calm_for < limits.app_breaker:
        left = limits.app_breaker - calm_for
        evidence = (
            f"{proof.evidence}; workers may discard it for another {left:.0f} s, as Redis was away"
        )
        return Judgement(Action.WAIT, "workers_may_discard", evidence)
    if proof.action is Action.PUSH and job.place == "taken":
        return Judgement(Action.RESTORE, proof.reason, proof.evidence)
    return proof


def _holder(job: Work, workers: Workers, now: float) -> str | None:
    for node, answer in workers.answers.items():
        recent = now - answer.asked_at <= ANSWER_HOLDS
        if recent and (job.job_id in answer.holds or job.task_id in answer.holds):
            return node
    return None


def _in_queue(workers: Workers, others: int, stalled_for: float) -> Judgement:
    if workers.connected == 0:
        evidence = "its message is in the queue, but no worker is connected to take it"
        return Judgement(Action.WAIT, "no_worker", evidence)
    if stalled_for >= STALLED_AFTER and others == 0:
        evidence = (
            f"its message is in the queue, from which nobody has taken one for {stalled_for:.0f} s"
        )
        return Judgement(Action.WAIT, "not_taken", evidence)
    return Judgement(Action.NOTHING, "in_queue", "its message is in the queue")


def _without_message(job: Work, workers: Workers, *, others: int, limits: Limits) -> Judgement:
    evidence = f"queued, and without a message for {job.missing_for:.0f} s"
    if job.missing_for < limits.app_breaker:
        return Judgement(Action.WAIT, "message_missing", evidence)
    if (workers.silent or 0) > others:
        evidence += ", but a worker is busy with something unknown"
        return Judgement(Action.WAIT, "unknown_work", evidence)
    return Judgement(Action.PUSH, "message_missing", evidence)


def _abandoned(
    job: Work, workers: Workers, *, now: float, others: int, limits: Limits
) -> Judgement:
    """PUSH with the proof that the worker which took the job stopped; else why there is none."""
    quiet = now - job.since
    if quiet < limits.settle:
        return Judgement(Action.NOTHING, "changing", f"changed {max(0.0, quiet):.0f} s ago")
    accounted = workers.silent is not None and workers.silent <= others
    everyone = workers.silent == 0 and workers.asked_at >= job.since + CLOCK_SLACK
    over = everyone or (job.place is None and accounted)
    if job.result is not None and job.result.ended and over:
        evidence = (
            f"its task ended ({job.result.state}), and it has no final status for {quiet:.0f} s"
        )
        return Judgement(Action.PUSH, "task_ended", evidence)
    if job.node is not None:
        found = _taker_gone(job, workers, now)
        if found is not None:
            return found
    if everyone and job.place == "taken" and job.appeared:
        evidence = (
            "its message is in `unacked` and the worker that took it is not connected any more"
        )
        return Judgement(Action.PUSH, "worker_gone", evidence)
    idle = {
        node
        for node, answer in workers.answers.items()
        if answer.asked_at >= job.since + CLOCK_SLACK and now - answer.asked_at <= ANSWER_HOLDS
    }
    if everyone and idle and job.node is None and workers.known <= idle:
        evidence = (
            f"every known worker ({', '.join(sorted(idle)[:3])}) answers and none works on it"
        )
        return Judgement(Action.PUSH, "workers_idle", evidence)
    if quiet >= limits.stranded_after and idle and accounted:
        evidence = f"unchanged for {quiet:.0f} s while worker {min(idle)} is idle"
        return Judgement(Action.PUSH, "stranded", evidence)
    return _no_proof(job, workers, quiet)


def _taker_gone(job: Work, workers: Workers, now: float) -> Judgement | None:
    assert job.node is not None
    answer = workers.answers.get(job.node)
    # The worker could get it back only as a message, and we would have seen that.
    unmoved = now if job.place == "taken" else job.missing_for
    if (
        answer is not None
        and answer.asked_at >= job.since + CLOCK_SLACK
        and now - answer.asked_at <= max(ANSWER_HOLDS, unmoved)
    ):
        evidence = f"worker {job.node}, which took it, answers and does not work on it"
        return Judgement(Action.PUSH, "worker_idle", evidence)
    later = workers.starts.get(job.node)
    if later is not None and later.job_id != job.job_id and later.at >= job.since + CLOCK_SLACK:
        if later.pid == job.pid:
            evidence = f"worker {job.node}, which took it, has begun another job since"
            return Judgement(Action.PUSH, "worker_moved_on", evidence)
        if job.pid is not None:
            evidence = (
                f"worker {job.node} took it as process {job.pid} and has begun another job since"
                f" as process {later.pid}"
            )
            return Judgement(Action.PUSH, "worker_replaced", evidence)
    return None


def _no_proof(job: Work, workers: Workers, quiet: float) -> Judgement:
    if workers.connected == 0:
        evidence = f"unchanged for {quiet:.0f} s and no worker is connected"
        return Judgement(Action.WAIT, "no_worker", evidence)
    if workers.silent == 0:
        taker = f"worker {job.node}" if job.node else "who took it"
        evidence = f"every connected worker is idle, but {taker} may work on unconnected"
        return Judgement(Action.WAIT, "taker_unknown", evidence)
    evidence = f"unchanged for {quiet:.0f} s; a worker is busy and may be at it"
    return Judgement(Action.NOTHING, "may_run", evidence)
