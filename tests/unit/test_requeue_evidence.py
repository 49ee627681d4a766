"""What proves that nobody works on a job, and what only looks like it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from proxy.jobs.requeue.evidence import Action, Judgement, Limits, Start, Work, Workers, judge
from proxy.jobs.requeue.pidbox import Consumers, Result, WorkerAnswer

NOW = 10_000.0
LIMITS = Limits(app_breaker=60, stranded_after=1800, settle=10)
LOST = Work("mv_1", waiting=True, changed_at=NOW - 100, missing_for=70)
TAKEN = Work("mv_1", False, NOW - 100, place="taken", task_id="t1", taken_at=NOW - 101)
GONE = Work("mv_1", False, NOW - 100, task_id="t1", missing_for=70)
IDLE = WorkerAnswer(NOW - 2, frozenset())


def workers(receivers: int | None = 1, **more: Any) -> Workers:
    """One worker that was asked two seconds ago and has not answered."""
    return Workers(receivers, asked_at=NOW - 2, had_receivers=True, **more)


def answering(**nodes: WorkerAnswer) -> Workers:
    """As many workers as answers, all of them known."""
    return workers(len(nodes), answers=nodes, known=frozenset(nodes))


def judged(job: Work, who: Workers, **more: Any) -> Judgement:
    asked = {"now": NOW, "calm_for": 1e9, "readable": True, "others": 0, "limits": LIMITS}
    return judge(job, who, **{**asked, **more})


def test_a_queued_job_without_a_message() -> None:
    """Pushed after the breaker's time; before, and with unread messages, it waits."""
    assert judged(LOST, answering(a=IDLE)).action is Action.PUSH
    assert judged(replace(LOST, missing_for=59), answering(a=IDLE)).action is Action.WAIT
    assert judged(LOST, answering(a=IDLE), readable=False).reason == "unreadable_messages"
    discarded = judged(LOST, answering(a=IDLE), calm_for=30)
    assert (discarded.action, discarded.reason) == (Action.WAIT, "workers_may_discard")
    assert "30 s" in discarded.evidence


def test_a_busy_worker_that_nothing_else_explains_may_have_the_job() -> None:
    """With the job's writes swallowed it looks queued: silence has to be explained by others."""
    assert judged(LOST, workers()).reason == "unknown_work"
    assert judged(LOST, workers(), others=1).action is Action.PUSH
    assert judged(LOST, Workers()).action is Action.PUSH  # nobody can be asked
    holds = WorkerAnswer(NOW - 2, frozenset({"mv_1"}))
    assert judged(LOST, answering(a=holds)).reason == "running"


def test_a_message_in_the_queue_is_enough() -> None:
    """Unless no worker is there to take it."""
    there = replace(LOST, place="queue")
    assert judged(there, workers()).action is Action.NOTHING
    assert judged(there, workers(0)).reason == "no_worker"
    assert judged(there, Workers()).action is Action.NOTHING


def test_a_queue_from_which_nobody_takes() -> None:
    """Workers are connected, but deaf to this queue; a busy one explains that it stands still."""
    there = replace(LOST, place="queue")
    assert judged(there, workers(), stalled_for=16).reason == "not_taken"
    assert judged(there, workers(), stalled_for=16).action is Action.WAIT
    assert judged(there, workers(), stalled_for=14).action is Action.NOTHING
    assert judged(there, workers(), stalled_for=999, others=1).action is Action.NOTHING


@pytest.mark.parametrize(
    ("job", "who", "reason"),
    [
        (replace(TAKEN, appeared=True), answering(a=IDLE), "worker_gone"),
        (replace(TAKEN, appeared=True), workers(0), "worker_gone"),
        (replace(TAKEN, node="a", pid=1), answering(a=IDLE), "worker_idle"),
        (TAKEN, answering(a=IDLE), "workers_idle"),
        (
            replace(TAKEN, node="a", pid=1),
            workers(starts={"a": Start("mv_2", 2, NOW - 90)}),
            "worker_replaced",
        ),
        (
            replace(TAKEN, node="a", pid=1),
            workers(starts={"a": Start("mv_2", 1, NOW - 90)}),
            "worker_moved_on",
        ),
        (replace(TAKEN, result=Result("SUCCESS")), answering(a=IDLE), "task_ended"),
    ],
)
def test_proofs(job: Work, who: Workers, reason: str) -> None:
    """Each restores a taken message; without one, the job gets a message."""
    found = judged(job, who)
    assert (found.action, found.reason) == (Action.RESTORE, reason)
    if reason != "worker_gone":
        found = judged(replace(job, place=None, missing_for=70), who)
        assert (found.action, found.reason) == (Action.PUSH, reason)


@pytest.mark.parametrize(
    ("job", "who"),
    [
        (TAKEN, workers()),  # busy: perhaps with this
        (TAKEN, workers(0)),  # a solo worker may go on unconnected
        (TAKEN, workers(2, answers={"a": IDLE}, known=frozenset("a"))),  # one of two is busy
        (replace(TAKEN, appeared=True), workers(2, answers={"a": IDLE})),
        (replace(TAKEN, node="b", pid=1), answering(a=IDLE)),  # taken by one that is away
        (TAKEN, workers(1, answers={"a": IDLE}, known=frozenset("ab"))),  # b may have it
        (replace(TAKEN, node="a", pid=1), workers(starts={"a": Start("mv_1", 2, NOW - 90)})),
        (replace(TAKEN, node="a", pid=1), workers(starts={"a": Start("mv_2", 2, NOW - 100)})),
        (replace(TAKEN, node="a"), workers(starts={"a": Start("mv_2", 2, NOW - 90)})),
        (TAKEN, workers(starts={"a": Start("mv_2", 2, NOW - 90)})),
        (
            replace(TAKEN, node="a", pid=1),
            answering(a=WorkerAnswer(NOW - 100, frozenset())),
        ),  # before
        (replace(TAKEN, node="a", pid=1), answering(a=WorkerAnswer(NOW - 2, frozenset({"t1"})))),
        (replace(TAKEN, changed_at=NOW - 9, appeared=True), answering(a=IDLE)),  # just changed
        (replace(TAKEN, taken_at=NOW - 9, appeared=True), answering(a=IDLE)),  # just taken
        (replace(TAKEN, result=Result("SUCCESS")), workers()),  # an old result, taken again
        (GONE, workers()),
        (GONE, workers(0)),
        (GONE, Workers()),
        (replace(GONE, result=Result("STARTED", "a", 1)), workers()),
    ],
)
def test_what_proves_nothing(job: Work, who: Workers) -> None:
    """A job that may be running is never started."""
    assert judged(job, who).action in (Action.NOTHING, Action.WAIT)


def test_an_answer_holds_while_no_message_could_have_come() -> None:
    """Beyond a minute, if the job's message has been where it is since before the question."""
    old = WorkerAnswer(NOW - 80, frozenset())
    busy = workers(answers={"a": old}, known=frozenset("a"))
    taken = replace(TAKEN, node="a", pid=1)
    assert judged(taken, busy).reason == "worker_idle"
    assert judged(replace(GONE, node="a", pid=1, missing_for=81), busy).reason == "worker_idle"
    assert judged(replace(GONE, node="a", pid=1, missing_for=79), busy).reason == "may_run"


def test_the_final_write_was_swallowed() -> None:
    """The task ended, its message is gone, its job says processing: it is worked on again."""
    ended = replace(GONE, result=Result("SUCCESS"))
    assert judged(ended, answering(a=IDLE)).reason == "task_ended"
    assert judged(ended, workers(), others=1).reason == "task_ended"
    assert judged(ended, workers()).action is not Action.PUSH


def test_after_a_long_time_an_idle_worker_is_enough() -> None:
    """`stranded_after`, though the worker that took it is not known to be gone."""
    old = replace(GONE, changed_at=NOW - 1801, node="b", pid=1)
    assert judged(old, answering(a=IDLE)).reason == "stranded"
    assert judged(old, workers(0)).action is Action.WAIT
    two = workers(2, answers={"a": IDLE}, known=frozenset("a"))
    assert judged(old, two).action is not Action.PUSH
    assert judged(old, two, others=1).reason == "stranded"


def test_workers_without_remote_control_are_counted_by_their_connections() -> None:
    """They are there, but nothing is known of what they do."""
    quiet = Workers(0, asked_at=NOW - 2, consumers=Consumers(all=1, idle=1))
    assert quiet.connected == 1
    assert quiet.silent == 1
    assert judged(replace(TAKEN, appeared=True), quiet).action is Action.NOTHING
    assert Workers(0).connected is None  # neither allowed to list, nor ever seen one listen
