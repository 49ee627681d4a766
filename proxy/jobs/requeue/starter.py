"""Requeues one job: build its message, lock and push it; withdraw it if the job went on anyway."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass

from proxy.config.mirrors import Requeue as RequeueConfig
from proxy.jobs.context import MirrorContext
from proxy.jobs.document import FINISHED, WAITING, KeyPattern, parse
from proxy.jobs.redis.connection import RedisConnection
from proxy.jobs.redis.replies import Command
from proxy.jobs.requeue import scripts
from proxy.jobs.requeue.broker import Broker, View, new_id
from proxy.jobs.requeue.evidence import Action, Judgement
from proxy.jobs.requeue.memory import MessageMemory
from proxy.jobs.requeue.messages import Message, load_object, redelivered
from proxy.jobs.store import sql
from proxy.jobs.store.records import Row
from proxy.jobs.store.store import JobStore

log = logging.getLogger(__name__)


class CannotRequeue(Exception):
    """The job is not requeued; the text has the reason, `evidence` what is known of its worker."""

    def __init__(self, text: str, evidence: str | None = None) -> None:
        super().__init__(text)
        self.evidence = evidence


@dataclass(frozen=True, slots=True)
class Requeued:
    """What was done for a job. `how`: `restored` from `unacked`, `captured` (its own message as a
    new delivery) or `shaped` (like that of another job)."""

    job_id: str
    how: str
    reason: str
    evidence: str
    task_id: str
    queue: str
    attempt: int


class Starter:
    """For the jobs of one mirror."""

    def __init__(
        self,
        context: MirrorContext,
        settings: RequeueConfig,
        pattern: KeyPattern,
        broker: Broker,
        memory: MessageMemory,
        store: JobStore,
    ) -> None:
        self._name = context.name
        self._settings = settings
        self._pattern = pattern
        self._broker = broker
        self._memory = memory
        self._store = store
        self._metrics = context.metrics
        self._emit = context.emit
        self._ours: dict[str, tuple[Message, bytes]] = {}  # pushed: message, document then

    async def start(
        self,
        link: RedisConnection,
        view: View,
        job_id: str,
        found: Judgement,
        *,
        force: bool = False,
    ) -> Requeued | None:
        """Push or restore; None if another sidecar did, or the job has changed meanwhile.

        `force`: ignore earlier attempts. Raises `CannotRequeue`, `RedisLost`, `StoreSilent`,
        `BrokerRefused`.
        """
        row = await self._row(job_id)
        if row is None or row.status in FINISHED:
            raise CannotRequeue("the job is finished, deleted or not known")
        claim = scripts.Claim(
            key=self._broker.claim_key(job_id),
            job_key=self._pattern.key(job_id),
            document=row.raw,
            attempts=self._settings.attempts,
            spacing=self._settings.spacing,
            force=force,
        )
        if found.action is Action.RESTORE:
            how = "restored"
            message, queue, command = self._restoring(view, job_id, claim)
        else:
            document = parse(job_id, row.raw).document
            made = await self._memory.message_for(job_id, document, new_id)
            if made is None:
                raise CannotRequeue(
                    "no message of this job was seen, nor one of a job of its kind to copy"
                )
            message, queue, how = made
            target = self._broker.destination(queue, message)
            command = scripts.push(claim, target, message, _task_id(message))
        (reply,) = await self._broker.call(link, command)
        pushed = scripts.read_pushed(reply)
        if pushed.outcome == "exhausted":
            raise CannotRequeue(
                f"it was given a message {pushed.attempts} times and is not finished"
            )
        if pushed.outcome != "pushed":
            return None
        done = Requeued(
            job_id, how, found.reason, found.evidence, _task_id(message), queue, pushed.attempts
        )
        self._record(done, message, row.raw)
        return done

    def _restoring(
        self, view: View, job_id: str, claim: scripts.Claim
    ) -> tuple[bytes, str, Command]:
        for tag, taken in view.taken.items():
            message = redelivered(taken.message.raw)
            if job_id not in taken.message.job_ids or message is None:
                continue
            queue = taken.message.queue
            command = scripts.restore(
                claim,
                self._broker.destination(queue, message),
                message,
                taken.message.task_id,
                unacked=self._broker.unacked,
                index=self._broker.index,
                tag=tag.encode("utf-8", "surrogateescape"),
                field=taken.field,
            )
            return message, queue, command
        raise CannotRequeue("its message is not in `unacked` any more")

    def _record(self, done: Requeued, message: bytes, document: bytes) -> None:
        if done.how != "restored":
            place = self._broker.destination(done.queue, message)
            ours = Message(message, place, done.queue, "", done.task_id, "", (done.job_id,))
            self._ours[done.job_id] = (ours, document)
        self._metrics.rescued("message", 1)
        self._metrics.requeued(done.reason)
        log.warning("job requeued", extra={"mirror": self._name, **asdict(done)})
        self._emit("requeued", asdict(done))

    async def withdraw(self, link: RedisConnection, view: View) -> None:
        """Remove our messages whose jobs went on without them. Raises the same as `start`."""
        queued = {message.task_id for message in view.queued}
        for job_id, (message, document) in list(self._ours.items()):
            if message.task_id not in queued:
                del self._ours[job_id]
                continue
            row = await self._row(job_id)
            if row is not None and row.raw == document:
                continue
            del self._ours[job_id]
            (removed,) = await self._broker.call(link, ("LREM", message.place, 1, message.raw))
            if removed:
                log.info(
                    "requeued message withdrawn",
                    extra={"mirror": self._name, "job_id": job_id, "task_id": message.task_id},
                )

    async def drop_outdated(self, link: RedisConnection) -> int:
        """After Redis came back, perhaps with old data: remove the messages of jobs that are
        finished or were being worked on when it was lost; returns how many."""
        view = await self._broker.look(link)
        messages = [*view.queued, *(one.message for one in view.taken.values())]
        statuses = await self._statuses({job for one in messages for job in one.job_ids})
        dropped = 0
        for message in view.queued:
            status = _status_of(message, statuses)
            if status is not None and status not in WAITING:
                dropped += (await self._broker.call(link, ("LREM", message.place, 1, message.raw)))[
                    0
                ]
        for tag, taken in view.taken.items():
            if _status_of(taken.message, statuses) in FINISHED:
                name = tag.encode("utf-8", "surrogateescape")
                command = scripts.drop_taken(
                    self._broker.unacked, self._broker.index, name, taken.field
                )
                dropped += (await self._broker.call(link, command))[0]
        return dropped

    async def _statuses(self, job_ids: set[str]) -> dict[str, str]:
        before = [self._store.unwritten(job_id) for job_id in job_ids]
        found = dict(await self._store.table(sql.STATUSES, (json.dumps(sorted(job_ids)),)))
        for row in (*before, *map(self._store.unwritten, job_ids)):
            if row is not None:
                found[row.job_id] = row.status
        return found

    async def _row(self, job_id: str) -> Row | None:
        row = self._store.unwritten(job_id) or await self._store.get(job_id)
        return row if isinstance(row, Row) else None


def _status_of(message: Message, statuses: dict[str, str]) -> str | None:
    """The status of the one job that a message is for; None when that is not certain."""
    found = {job_id: statuses[job_id] for job_id in message.job_ids if job_id in statuses}
    return next(iter(found.values())) if len(found) == 1 else None


def _task_id(message: bytes) -> str:
    headers = (load_object(message) or {}).get("headers")
    task_id = headers.get("id") if isinstance(headers, dict) else None
    return task_id if isinstance(task_id, str) else ""
