"""The task that gives every unfinished job a message or a worker: look, judge, act, repeat.

1. Nothing is concluded while Redis is incomplete, or from a single look: a job must be unattended
   for `settle` seconds before we act.
2. Workers are asked only if a job's judgement may depend on their answers.
3. The script that pushes a message also takes a lock in Redis (`scripts`), so that only one of many
   sidecars pushes.
4. After Redis came back with old data, messages of jobs that went on meanwhile are removed: a
   finished job must not run again, and a running one must not run twice.
5. Trouble here is logged and counted and never ends the mirror's session.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from proxy.config.mirrors import Requeue as RequeueConfig
from proxy.core.clock import iso_utc
from proxy.core.waiting import happened
from proxy.jobs.context import MirrorContext
from proxy.jobs.document import FINISHED, KeyPattern
from proxy.jobs.redis.activity import Activity
from proxy.jobs.redis.connection import RedisConnection
from proxy.jobs.redis.replies import CommandError
from proxy.jobs.redis.restore_rules import DataEpoch
from proxy.jobs.requeue.broker import Broker, BrokerRefused, View
from proxy.jobs.requeue.evidence import Action, Judgement, Limits, Work, judge
from proxy.jobs.requeue.memory import MessageMemory
from proxy.jobs.requeue.observation import Observation, Track, places
from proxy.jobs.requeue.starter import CannotRequeue, Requeued, Starter
from proxy.jobs.requeue.workers import WorkerWatch
from proxy.jobs.store import sql
from proxy.jobs.store.schema import StoreSilent
from proxy.jobs.store.store import JobStore

log = logging.getLogger(__name__)

LOOK_EVERY = 2.0  # seconds between two looks
IDLE_LOOK = 120.0  # the same while idle and without unfinished jobs
PAUSE = (0.25, 10.0)  # after a look: at least so many seconds, and so many times its duration
MAX_UNFINISHED = 5000  # jobs judged per look, longest unchanged first
LOGGED_AT_ONCE = 5  # jobs with a log line of their own in one look; the others share one
JUDGED_AT_ONCE = 200  # jobs per turn of the event loop


class Requeuer:
    """See the rules at the top of the file. `follow` lasts as long as one connection.

    `served`: jobs with a message or a worker. `unattended`: jobs on which no worker is seen to
    work, with the evidence. `error`: why the broker cannot be read, None if it can.
    """

    def __init__(
        self,
        context: MirrorContext,
        requeue: RequeueConfig,
        store: JobStore,
        *,
        back_at: Callable[[], float | None] = lambda: None,
        activity: Activity,
    ) -> None:
        self.served: frozenset[str] = frozenset()
        self.unattended: dict[str, Judgement] = {}
        self.error: str | None = None
        settings = context.settings
        pattern = KeyPattern.parse(settings.key)
        self._name = context.name
        self._limits = Limits(settings.app_breaker, settings.stranded_after, requeue.settle)
        self._store = store
        self._clock = context.clock
        self._metrics = context.metrics
        self._emit = context.emit
        self._back_at = back_at
        self._broker = Broker(requeue, key_prefix=context.key_prefix, family=pattern.prefix)
        self._memory = MessageMemory(store)
        self._starter = Starter(context, requeue, pattern, self._broker, self._memory, store)
        self._workers = WorkerWatch(context, self._broker, store.set_meta)
        self._activity = activity
        self._news = asyncio.Event()
        self._lock = asyncio.Lock()
        self._tracks: dict[str, Track] = {}
        self._observation = Observation(self._memory, self._workers)
        self._server_started: float | None = None

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Key prefixes to be notified of."""
        return self._broker.prefixes

    def changed(self, key: bytes) -> None:
        """A key of the broker changed."""
        self._news.set()

    # --- following -------------------------------------------------------------------------------

    async def follow(self, link: RedisConnection, epoch: DataEpoch) -> None:
        """Look and act until the link is lost (`RedisLost`)."""
        async with self._lock:
            with suppress(StoreSilent):
                self._workers.recall(dict(await self._store.table(sql.META)))
            self._observation.reconnected()
            self._workers.reconnected()
            self._server_started = await self._started(link)
        looked_at = -math.inf
        while True:
            began, waited = self._clock.monotonic(), self._broker.waited
            # Without unfinished jobs there is nothing to requeue. We still look at the broker's
            # bindings and the workers now and then, to know them when we need them.
            asked = self._news.is_set() or bool(self._tracks)
            if asked or self._activity.due(looked_at, 0.0, IDLE_LOOK):
                looked_at = began
                self._news.clear()
                if not epoch.lost:
                    await self._turn(link)
            took = self._clock.monotonic() - began - (self._broker.waited - waited)
            await asyncio.sleep(max(PAUSE[0], PAUSE[1] * took))
            await happened(self._news, LOOK_EVERY)

    async def _turn(self, link: RedisConnection) -> None:
        try:
            async with self._lock:
                for key, member in await self._broker.bindings(link):
                    # Never removed: nothing in Celery removes a binding, so a missing one was lost.
                    self._store.execute(sql.ADD_BINDING, {"key": key, "member": member})
                view, work = await self._look(link)
                await self._act(link, view, work)
            self._report_error(None)
        except BrokerRefused as refused:
            self._report_error(str(refused))
        except StoreSilent:
            pass  # the mirror reports it; the next turn tries again

    def _report_error(self, error: str | None) -> None:
        if error == self.error:
            return
        self.error = error
        if error is None:
            log.info("broker can be read again", extra={"mirror": self._name})
            self._emit("broker_back", {})
        else:
            log.error("broker cannot be read", extra={"mirror": self._name, "reason": error})
            self._emit("broker_refused", {"reason": error})

    async def put_back(self, link: RedisConnection, epoch: DataEpoch) -> None:
        """After a loss: restore bindings and apply rule 4. Raises `RedisLost`, `StoreSilent`."""
        try:
            stored = await self._store.table(sql.BINDINGS)
            replies: list[Any] = []
            if stored:
                commands = [("SADD", key, member) for key, member in stored]
                replies = await self._broker.call(link, *commands)
            bindings = sum(reply == 1 for reply in replies)
            self._metrics.rescued("binding", bindings)
            dropped = await self._starter.drop_outdated(link)
        except BrokerRefused as refused:
            self._report_error(str(refused))
        else:
            log.info(
                "broker checked after a loss",
                extra={"mirror": self._name, "bindings": bindings, "outdated_messages": dropped},
            )
        self._news.set()

    # --- one look --------------------------------------------------------------------------------

    async def _look(
        self, link: RedisConnection, *, ask: bool = False
    ) -> tuple[View, dict[str, Work]]:
        """Read the broker and judge every unfinished job."""
        now = self._clock.time()
        jobs = await self._unfinished(now)
        await self._workers.count(link, len(jobs))
        self._tracks = {job_id: self._tracks.get(job_id) or Track() for job_id in jobs}
        if not jobs:
            self._publish()
            await self._workers.close(link)
            return View(), {}
        await self._memory.load(jobs)
        view = await self._broker.look(link)
        found = places(view, jobs)
        view.results = await self._broker.results(link, self._observation.tasks(jobs, found))
        self._observation.notice(view, now)
        work = {
            job_id: await self._observation.work(
                job_id, self._tracks[job_id], status, changed, found.get(job_id), view, now
            )
            for job_id, (status, changed) in jobs.items()
        }
        self._observation.looked_at = now
        if ask or (self._workers.due and self._in_doubt(work, now)):
            await self._workers.ask(link)
        else:
            await self._workers.late_answers(link)
        await self._judge(work, readable=view.readable)
        self._publish()
        await self._report_unattended()
        self._memory.forget(set(jobs))
        return view, work

    async def _unfinished(self, now: float) -> dict[str, tuple[str, float]]:
        """Unfinished jobs: ID to (status, time of the last change)."""
        before = self._store.unwritten_rows()
        rows = await self._store.table(sql.UNFINISHED, (now, MAX_UNFINISHED))
        found = {job_id: (status, changed) for job_id, status, changed in rows}
        for row in (*before, *self._store.unwritten_rows()):
            if row.status in FINISHED:
                found.pop(row.job_id, None)
            elif row.deadline is None or row.deadline > now:
                found[row.job_id] = (row.status, row.captured_at)
        return found

    def _in_doubt(self, work: dict[str, Work], now: float) -> bool:
        """Rule 2: whether a job has no message, or has been taken for a while."""
        settle = self._limits.settle
        return any(
            job.place is None or (job.place == "taken" and now - job.since >= settle)
            for job in work.values()
        )

    # --- judging ---------------------------------------------------------------------------------

    async def _judge(self, work: dict[str, Work], *, readable: bool) -> None:
        now, calm = self._clock.time(), self._calm_for()
        busy = {job.job_id for job in work.values() if job.place == "taken" or not job.waiting}
        for number, job in enumerate(work.values(), 1):
            found = judge(
                job,
                self._workers.state,
                now=now,
                calm_for=calm,
                readable=readable,
                others=len(busy) - (job.job_id in busy),
                limits=self._limits,
                stalled_for=self._observation.stalled_for(now),
            )
            track = self._tracks[job.job_id]
            track.judged = found
            if not found.unattended:
                track.unattended_since = None
            elif track.unattended_since is None:
                track.unattended_since = now
            if number % JUDGED_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _calm_for(self) -> float:
        """Seconds since the last known Redis trouble."""
        back_at = self._back_at()
        calm = math.inf if back_at is None else self._clock.monotonic() - back_at
        if self._server_started is not None:
            calm = min(calm, self._clock.time() - self._server_started)
        return max(0.0, calm)

    async def _started(self, link: RedisConnection) -> float | None:
        """When the server started, by our clock; None if it does not report it."""
        (reply,) = await link.call(("INFO", "server"))
        if isinstance(reply, CommandError):
            return None
        for line in bytes(reply).splitlines():
            name, _, value = line.partition(b":")
            if name == b"uptime_in_seconds" and value.strip().isdigit():
                return self._clock.time() - int(value)
        return None

    def _publish(self) -> None:
        judged = {job_id: track for job_id, track in self._tracks.items() if track.judged}
        self.served = frozenset(
            job_id for job_id, track in judged.items() if not _unattended(track)
        )
        self.unattended = {
            job_id: track.judged
            for job_id, track in judged.items()
            if track.judged is not None and _unattended(track) and self._settled(track)
        }
        self._metrics.unattended.set(len(self.unattended))

    async def _report_unattended(self) -> None:
        """Log and record jobs that are newly unattended, or for another reason than before."""
        fresh = [
            (job_id, found)
            for job_id, found in self.unattended.items()
            if self._tracks[job_id].reported != found.reason
        ]
        for number, (job_id, found) in enumerate(fresh):
            if number % JUDGED_AT_ONCE == JUDGED_AT_ONCE - 1:
                await asyncio.sleep(0)
            self._tracks[job_id].reported = found.reason
            facts: dict[str, object] = {
                "job_id": job_id,
                "reason": found.reason,
                "evidence": found.evidence,
            }
            if number < LOGGED_AT_ONCE:
                log.warning("nobody works on a job", extra={"mirror": self._name, **facts})
            self._emit("unattended", facts)
        if len(fresh) > LOGGED_AT_ONCE:
            more = len(fresh) - LOGGED_AT_ONCE
            log.warning("nobody works on more jobs", extra={"mirror": self._name, "jobs": more})

    def _settled(self, track: Track) -> bool:
        """Rule 1: whether it has been unattended for long enough."""
        since = track.unattended_since
        return since is not None and self._clock.time() - since >= self._limits.settle

    # --- acting ----------------------------------------------------------------------------------

    async def _act(self, link: RedisConnection, view: View, work: dict[str, Work]) -> None:
        now = self._clock.time()
        refused = 0
        for job_id in work:
            track = self._tracks[job_id]
            found = track.judged
            if found is None or found.action not in (Action.PUSH, Action.RESTORE):
                continue
            if not self._settled(track) or track.pause_until > now:
                continue
            track.pause_until = now + self._limits.settle
            try:
                if await self._starter.start(link, view, job_id, found) is not None:
                    self._news.set()
            except CannotRequeue as cannot:
                if track.refused != str(cannot):
                    track.refused = str(cannot)
                    facts: dict[str, object] = {"job_id": job_id, "reason": str(cannot)}
                    refused += 1
                    if refused <= LOGGED_AT_ONCE:
                        log.error("job not requeued", extra={"mirror": self._name, **facts})
                    self._emit("not_requeued", facts)
        if refused > LOGGED_AT_ONCE:
            more = refused - LOGGED_AT_ONCE
            log.error("more jobs not requeued", extra={"mirror": self._name, "jobs": more})
        await self._starter.withdraw(link, view)

    async def requeue(
        self, link: RedisConnection, job_id: str, *, reason: str, force: bool
    ) -> Requeued:
        """Requeue a job by hand. Raises `CannotRequeue` with the evidence if a worker may work on
        it and `force` is not given, and always for a finished or deleted job. Raises `RedisLost`,
        `StoreSilent`, `BrokerRefused`."""
        async with self._lock:
            view, work = await self._look(link, ask=True)
            job, track = work.get(job_id), self._tracks.get(job_id)
            if job is None or track is None or track.judged is None:
                raise CannotRequeue("the job is finished, deleted or not known")
            found = track.judged
            if found.action not in (Action.PUSH, Action.RESTORE):
                if job.place == "queue":
                    raise CannotRequeue("its message is in the queue", found.evidence)
                if not force:
                    raise CannotRequeue("it may be worked on", found.evidence)
                action = Action.RESTORE if job.place == "taken" else Action.PUSH
                found = Judgement(action, "operator", f"by hand ({reason}); {found.evidence}")
            done = await self._starter.start(link, view, job_id, found, force=True)
        if done is None:
            raise CannotRequeue("the job or its message changed meanwhile; look again")
        self._news.set()
        return done

    def judgement(self, job_id: str) -> Judgement | None:
        """The judgement of an unfinished job at the last look."""
        track = self._tracks.get(job_id)
        return None if track is None else track.judged

    @property
    def connected_workers(self) -> int | None:
        """How many workers were connected at the last count; None if unknown."""
        return self._workers.connected

    def state(self) -> dict[str, Any]:
        """For `/api/jobs` and `/readyz`."""
        nobody = self._workers.nobody_since
        return {
            "workers": self._workers.connected,
            "nobody_since": iso_utc(nobody) if nobody is not None else None,
            "unattended": len(self.unattended),
            "error": self.error,
            "refused": list(self._broker.refused),
        }


def requeue_problem(state: dict[str, Any]) -> str | None:
    """The problem in a `Requeuer.state`, in one sentence; None if there is none."""
    if state["error"]:
        return f"the broker cannot be read: {state['error']}"
    if state["nobody_since"]:
        return f"nobody works on the queue since {state['nobody_since']}"
    if state["unattended"]:
        return f"nobody works on {state['unattended']} jobs"
    if state["refused"]:
        return f"missing rights: {'; '.join(state['refused'])}"
    return None


def _unattended(track: Track) -> bool:
    return track.judged is not None and track.judged.unattended
