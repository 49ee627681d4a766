"""Remembers the messages of jobs in the job store, to push them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from proxy.jobs.document import WAITING, parse
from proxy.jobs.requeue.messages import Message, delivered_anew, for_another_job, read_message
from proxy.jobs.store import sql
from proxy.jobs.store.store import JobStore

REMEMBERED = 4096  # records kept in memory
_CHANGING = frozenset(
    (
        *("id", "job_id", "status", "progress", "progress_message", "stages", "retry_count"),
        *("created_at", "updated_at", "started_at", "completed_at", "expires_at", "received_at"),
        *("error", "error_message", "error_type", "result"),
    )
)


@dataclass(frozen=True, slots=True)
class MessageRecord:
    """A job's last known message and the process that took it. `kind`: shared by similar jobs."""

    job_id: str
    queue: str
    task_id: str
    kind: str
    message: bytes
    node: str | None
    pid: int | None
    seen_at: float


def kind_of(document: dict[str, Any] | None) -> str:
    """Jobs of one kind have the same inputs: the names of the members that have a value.

    A video has its audio file, a download its query; each has a task of its own. "" if unknown.
    """
    if document is None:
        return ""
    names = sorted(
        name
        for name, value in document.items()
        if name not in _CHANGING and value not in (None, "", [], {})
    )
    return hashlib.blake2b("\0".join(names).encode(), digest_size=8).hexdigest()


class MessageMemory:
    """Records by job. Reads raise `StoreSilent`."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._records: dict[str, MessageRecord] = {}

    async def load(self, job_ids: Iterable[str]) -> None:
        """Read the records of these jobs that are not in memory yet."""
        wanted = [one for one in job_ids if one not in self._records]
        if not wanted:
            return
        for row in await self._store.table(sql.MESSAGES_OF, (json.dumps(wanted),)):
            self._keep(_record(row))

    def of(self, job_id: str) -> MessageRecord | None:
        """The record of a job."""
        return self._records.get(job_id)

    async def seen(
        self, job_id: str, message: Message, node: str | None, pid: int | None, now: float
    ) -> None:
        """Record that a message of the job is in the broker now."""
        old = self._records.get(job_id)
        if old is not None and old.task_id == message.task_id:
            if node is None or (old.node, old.pid) == (node, pid):
                return
            record = replace(old, node=node, pid=pid, message=message.raw, seen_at=now)
        else:
            kind = old.kind if old is not None and old.kind else await self._kind(job_id)
            record = MessageRecord(
                job_id, message.queue, message.task_id, kind, message.raw, node, pid, now
            )
        self._keep(record)
        self._store.execute(
            sql.PUT_MESSAGE,
            {name: getattr(record, name) for name in MessageRecord.__slots__},
            key=job_id,
        )

    def forget(self, alive: set[str]) -> None:
        """Drop all other jobs from memory."""
        if len(self._records) > REMEMBERED:
            for job_id in [one for one in self._records if one not in alive]:
                del self._records[job_id]

    async def message_for(
        self, job_id: str, document: dict[str, Any] | None, new_id: Callable[[], str]
    ) -> tuple[bytes, str, str] | None:
        """(envelope, queue, origin) of a new delivery: of the job's own message (`captured`) or in
        the shape of one for a job of the same kind (`shaped`). None where neither is known."""
        own = self._records.get(job_id)
        if own is not None:
            fresh = delivered_anew(own.message, new_id)
            if fresh is not None:
                return fresh, own.queue, "captured"
        kind = await self._kind(job_id) or kind_of(document)
        if not kind:
            return None
        shapes = [_record(row) for row in await self._store.table(sql.SHAPES, (kind,))]
        tasks = {read_message(one.message, "", one.queue).task for one in shapes}
        if len(tasks) != 1:
            return None  # similar jobs are processed by different tasks
        for one in shapes:
            shaped = for_another_job(one.message, one.job_id, job_id, new_id)
            if shaped is not None:
                return shaped, one.queue, "shaped"
        return None

    async def _kind(self, job_id: str) -> str:
        """From the job's first version: later ones have gained members."""
        row = self._store.unwritten(job_id)
        first = await self._store.first_version(job_id)
        if first is not None and first[0] in WAITING:
            return kind_of(parse(job_id, first[1]).document)
        if row is not None and row.status in WAITING:
            return kind_of(parse(job_id, row.raw).document)
        return ""

    def _keep(self, record: MessageRecord) -> None:
        self._records[record.job_id] = record


def _record(row: Any) -> MessageRecord:
    job_id, queue, task_id, kind, message, node, pid, seen_at = row
    return MessageRecord(job_id, queue, task_id, kind, bytes(message), node, pid, seen_at)
