"""The durable side of a mirror: writes in groups; `reader` has the reads.

1. Writes are asynchronous: `put` and the like queue an operation and return; its `done` callback
   reports the commit. Everything queued goes into one transaction, so that many small writes share
   one fsync.
2. SQLite errors never leave this file. While the disk is full, read-only or locked, the queue is
   kept (bounded, newest version per job) and retried every `RETRY` seconds; `degraded` has the
   reason. A damaged or foreign file is renamed and replaced by a new one. Lost data ends in
   `on_gap`, after which the mirror fills the store again. `core/sqlite/recovery.py` looks after
   the file itself.
3. An operation that SQLite rejects for its own sake is dropped alone and counted, never retried.
4. A small file is checked completely at start. A large one is checked by a reader while already in
   use: a start must not wait until a gigabyte has been read.
5. A file that was deleted is rewritten from the open handle; one that was replaced is abandoned for
   the new one. Both are noticed within seconds and end in `on_gap`.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxy.core.clock import Clock
from proxy.core.sqlite.recovery import CHECK_EVERY, FileEvents, FileRecovery
from proxy.core.tasks import Supervised, Tasks
from proxy.core.waiting import happened, settled
from proxy.jobs.document import JobDocument, sql_time
from proxy.jobs.store import sql
from proxy.jobs.store.reader import StoreReader
from proxy.jobs.store.records import Row
from proxy.jobs.store.schema import REFUSED, SCHEMA
from proxy.jobs.video_metrics.events import MOST_EVENTS

log = logging.getLogger(__name__)

KEEP_VERSIONS = 50  # of a job; one that runs through has about twenty
GROUP = 256  # operations in one transaction
BACKLOG = 20_000  # operations kept while SQLite accepts none
BACKLOG_BYTES = 64 * 1024 * 1024
RETRY = 1.0  # seconds between two attempts while degraded

Params = dict[str, Any]
Done = Callable[[bool], None]


@dataclass(slots=True)
class _Op:
    statements: tuple[str, ...]
    params: Params
    key: str
    size: int
    done: Done | None


class JobStore(StoreReader):
    """See the rules at the top of the file. `await start()`, use, `await stop()`; restartable."""

    def __init__(
        self,
        path: Path,
        clock: Clock,
        tasks: Tasks | None = None,
        *,
        on_gap: Callable[[str], None] = lambda reason: None,
        on_commit: Callable[[int], None] = lambda operations: None,
        on_degraded: Callable[[str | None], None] = lambda reason: None,
    ) -> None:
        self.refused = 0
        self._clock = clock
        self._on_gap = on_gap
        self._on_commit = on_commit
        self._recovery = FileRecovery(
            "store",
            path,
            SCHEMA,
            clock,
            FileEvents(lambda: self._wake.set(), on_degraded, self._lost),
            facts=lambda: {"backlog": self.backlog},
        )
        super().__init__(self._recovery.file, {})
        self._queue: list[_Op] = []
        self._writing = 0  # operations taken from the queue but not committed yet
        self._queued_bytes = 0
        self._gap = False
        self._wake = asyncio.Event()
        self._stopping = False
        self._writer = Supervised(
            f"store-writer:{path.name}", self._run, tasks or Tasks(), ends=True
        )

    # --- lifecycle ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the file, creating it if missing, and start the writer. Never raises for the state
        of the file."""
        self._stopping = False
        await self._recovery.open()
        self._writer.start()

    async def stop(self, patience: float = 5.0) -> None:
        """Write what is queued within `patience` seconds and close."""
        self._stopping = True
        self._wake.set()
        if not await self._writer.stop(patience):
            log.error("store stopped with unwritten operations", extra=self._where())
        await self._file.close()
        for op in self._queue:
            _notify(op, False)
        self._queue.clear()

    # --- writing (all of these return at once) --------------------------------------------------

    def put(
        self,
        snapshot: JobDocument,
        captured_at: float,
        deadline: float | None,
        done: Done | None,
        events: str = "[]",
        first_seen: float | None = None,
    ) -> None:
        """Store a version of a job, captured at `captured_at`; its key expires at `deadline`.

        `first_seen` orders a job that is new to the store; the default is `captured_at`. `events`
        are the version's pipeline events, a JSON list as `sql.PUT` reads it.
        """
        try:
            data: str | bytes = snapshot.raw.decode("utf-8")
        except UnicodeDecodeError:
            data = snapshot.raw  # SQLite stores a BLOB in a TEXT column unchanged
        expires = deadline if deadline is not None else snapshot.expires_at
        completed = snapshot.completed_at
        params: Params = {
            "job_id": snapshot.job_id,
            "status": snapshot.status,
            "progress": snapshot.progress,
            "data": data,
            "created_at": sql_time(snapshot.created_at or captured_at),
            "updated_at": sql_time(snapshot.updated_at or captured_at),
            "completed_at": sql_time(completed) if completed is not None else None,
            "expires_at": sql_time(expires) if expires is not None else None,
            "captured_at": captured_at,
            "deadline": deadline,
            "digest": snapshot.digest,
            "keep_versions": KEEP_VERSIONS,
            "events": events,
            "most_events": MOST_EVENTS,
        }
        before = self._newest.get(snapshot.job_id)
        if before is not None:
            first_seen = before.first_seen
        params["first_seen"] = captured_at if first_seen is None else first_seen
        self._newest[snapshot.job_id] = Row(
            snapshot.job_id,
            snapshot.status,
            snapshot.progress,
            snapshot.raw,
            params["created_at"],
            captured_at,
            deadline,
            snapshot.digest,
            0,
            params["first_seen"],
        )
        self._enqueue(_Op(sql.PUT, params, snapshot.job_id, len(snapshot.raw) + len(events), done))

    def mark_deleted(
        self,
        job_id: str,
        origin: str,
        *,
        held: bool,
        pass_on: bool = False,
        done: Done | None = None,
    ) -> None:
        """Replace the row of a deleted job with a tombstone. `held`: it must not come back;
        `pass_on`: the app does not know yet."""
        params: Params = {
            "job_id": job_id,
            "deleted_at": self._clock.time(),
            "origin": origin,
            "held": int(held),
            "pass_on": int(pass_on),
        }
        self._newest.pop(job_id, None)
        self._enqueue(_Op(sql.MARK_DELETED, params, job_id, 0, done))

    def passed_on(self, job_id: str) -> None:
        """Record that the app knows of the deletion."""
        self._enqueue(_Op(sql.PASSED_ON, {"job_id": job_id}, job_id, 0, None))

    def set_meta(self, name: str, value: str) -> None:
        """Store a small value across restarts."""
        self._enqueue(_Op(sql.SET_META, {"name": name, "value": value}, f"\0{name}", 0, None))

    def execute(
        self, statements: tuple[str, ...], params: Params, done: Done | None = None, key: str = ""
    ) -> None:
        """Queue statements of `sql.py` as one operation; operations of one key stay in order."""
        self._enqueue(_Op(statements, params, key, 0, done))

    async def flushed(self, within: float) -> bool:
        """Whether everything queued so far is committed within so many seconds."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._enqueue(_Op((), {}, "", 0, lambda ok: _settle(future, ok)))
        return await settled(future, within) and future.result()

    @property
    def backlog(self) -> int:
        """Operations not committed yet."""
        return len(self._queue) + self._writing

    def _enqueue(self, op: _Op) -> None:
        if self._stopping:
            _notify(op, False)
            return
        self._queue.append(op)
        self._queued_bytes += op.size
        if len(self._queue) > BACKLOG or self._queued_bytes > BACKLOG_BYTES:
            self._thin_out()
        self._wake.set()

    def _thin_out(self) -> None:
        """Drop superseded versions, then the oldest ones if needed; the gap is filled later."""
        kept: dict[object, _Op] = {}
        for op in self._queue:
            key = (op.statements, op.key) if op.key else id(op)
            if (old := kept.pop(key, None)) is not None:
                _notify(old, False)
            kept[key] = op
        ops = list(kept.values())
        # Only versions are dropped: tombstones and metadata are small and not in Redis.
        versions = [op for op in ops if op.statements is sql.PUT]
        size = sum(op.size for op in versions)
        dropped: set[int] = set()
        for op in versions:
            if len(ops) - len(dropped) <= BACKLOG // 2 and size <= BACKLOG_BYTES // 2:
                break
            dropped.add(id(op))
            size -= op.size
            self._newest.pop(op.key, None)
            _notify(op, False)
        self._gap = self._gap or bool(dropped)
        self._queue = [op for op in ops if id(op) not in dropped]
        self._queued_bytes = size

    # --- the writer -----------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await happened(self._wake, CHECK_EVERY)
            self._wake.clear()
            await self._recovery.check_replaced()
            while self._queue or self._recovery.suspect:
                if not await self._recovery.ready():
                    if self._stopping:
                        return
                    await self._pause()
                    continue
                group, self._queue = self._queue[:GROUP], self._queue[GROUP:]
                try:
                    committed = await self._commit(group)
                except BaseException:
                    # A bug, or cancellation: writing an operation twice does no harm.
                    self._queue[:0] = [op for op in group if op not in self._queue]
                    raise
                if not committed:
                    if self._stopping:
                        return
                    if self.degraded:
                        await self._pause()
            if self._stopping:
                return

    async def _pause(self) -> None:
        """Wait until the next attempt, or until the store is stopped."""
        deadline = asyncio.get_running_loop().time() + RETRY
        while not self._stopping and (left := deadline - asyncio.get_running_loop().time()) > 0:
            await happened(self._wake, left)
            self._wake.clear()

    async def _commit(self, group: list[_Op]) -> bool:
        """Write a group, or return it to the front of the queue. False if nothing was written."""
        try:
            self._writing = len(group)
            try:
                await self._file.transaction(_rounds(group))
            finally:
                self._writing = 0
        except REFUSED:
            await self._one_by_one(group)
            return True
        except sqlite3.Error as error:
            self._queue[:0] = group
            await self._recovery.failed(error)
            return False
        self._succeeded(group)
        return True

    async def _one_by_one(self, group: list[_Op]) -> None:
        for index, op in enumerate(group):
            try:
                await self._file.transaction(_rounds([op]))
            except REFUSED as error:
                self.refused += 1
                self._forget_newest([op])
                self._queued_bytes -= op.size
                log.warning(
                    "store refused an operation",
                    extra={**self._where(), "job_id": op.key, "reason": str(error)},
                )
                _notify(op, False)
            except sqlite3.Error as error:
                self._queue[:0] = group[index:]
                await self._recovery.failed(error)
                return
            else:
                self._succeeded([op])

    def _succeeded(self, group: Sequence[_Op]) -> None:
        self._queued_bytes -= sum(op.size for op in group)
        self._forget_newest(group)
        self._recovery.set_degraded(None)
        self._on_commit(len(group))
        for op in group:
            _notify(op, True)
        if self._gap and not self._queue:
            self._gap = False
            self._on_gap("backlog overflowed")

    def _forget_newest(self, group: Iterable[_Op]) -> None:
        for op in group:
            newest = self._newest.get(op.key)
            if newest is not None and newest.digest == op.params.get("digest"):
                del self._newest[op.key]

    def _lost(self, what: str, detail: str) -> None:
        self._gap = True
        self.set_meta(what, detail)  # its commit triggers `on_gap`

    @property
    def degraded(self) -> str | None:
        """Why nothing can be written now; None if writes work."""
        return self._recovery.degraded

    @property
    def log_size(self) -> int:
        """Size of the write-ahead log in bytes."""
        return self._recovery.log_size

    def _where(self) -> dict[str, Any]:
        return {"store": str(self._file.path), "backlog": self.backlog}


def _rounds(group: Sequence[_Op]) -> Iterable[tuple[tuple[str, ...], list[Params]]]:
    """Split a group into runs of one kind on different jobs, within which order is irrelevant."""
    start = 0
    seen: set[str] = set()
    for index, op in enumerate(group):
        if op.statements is not group[start].statements or op.key in seen:
            yield group[start].statements, [one.params for one in group[start:index]]
            start = index
            seen.clear()
        if op.key:
            seen.add(op.key)
    if group:
        yield group[start].statements, [one.params for one in group[start:]]


def _notify(op: _Op, ok: bool) -> None:
    if op.done is None:
        return
    try:
        op.done(ok)
    except Exception:  # a failing callback must not affect other operations
        log.exception("store callback failed", extra={"job_id": op.key})


def _settle(future: asyncio.Future[bool], ok: bool) -> None:
    if not future.done():
        future.set_result(ok)
