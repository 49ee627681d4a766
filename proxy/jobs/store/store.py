"""The durable side of a mirror: group writes and reads.

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
import json
import logging
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxy.core.clock import Clock
from proxy.core.sqlite.recovery import CHECK_EVERY, FileRecovery
from proxy.core.tasks import Supervised, Tasks
from proxy.jobs.document import JobDocument, sql_time
from proxy.jobs.store import sql
from proxy.jobs.store.records import Head, Row, Tombstone, read_row
from proxy.jobs.store.schema import REFUSED, SCHEMA
from proxy.jobs.store.schema import Params as ReadParams
from proxy.jobs.video_metrics.events import MOST_EVENTS
from proxy.jobs.waiting import happened, settled

log = logging.getLogger(__name__)

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


#: Documents of a job list read per query.
_LIST_PAGE = 64

#: Bytes of values read of one job's versions, and the most that the event loop itself decompresses.
VERSIONS_SIZE = 4 * 1024 * 1024
_AT_ONCE = 64 * 1024


class JobStore:
    """See the rules at the top of the file. `await start()`, use, `await stop()`; restartable."""

    def __init__(
        self,
        path: Path,
        clock: Clock,
        tasks: Tasks | None = None,
        *,
        keep_versions: int = 50,
        on_gap: Callable[[str], None] = lambda reason: None,
        on_commit: Callable[[int], None] = lambda operations: None,
        on_degraded: Callable[[str | None], None] = lambda reason: None,
    ) -> None:
        self.refused = 0
        self._clock = clock
        self._keep_versions = keep_versions
        self._on_gap = on_gap
        self._on_commit = on_commit
        self._recovery = FileRecovery(
            "store",
            path,
            SCHEMA,
            clock,
            on_suspect=lambda: self._wake.set(),
            on_degraded=on_degraded,
            on_lost=self._lost,
            facts=lambda: {"backlog": self.backlog},
        )
        self._file = self._recovery.file
        self._queue: list[_Op] = []
        self._writing = 0  # operations taken from the queue but not committed yet
        self._queued_bytes = 0
        self._newest: dict[str, Row] = {}
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
            "keep_versions": self._keep_versions,
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

    # --- reading (every query raises StoreSilent) ----------------------------------------------

    async def _rows(self, statement: str, params: ReadParams = ()) -> list[Any]:
        survey = statement not in sql.ANSWERS
        return await self._file.rows(statement, params, survey=survey)

    def unwritten(self, job_id: str) -> Row | None:
        """The version of a job that is not committed yet; its version number is 0."""
        return self._newest.get(job_id)

    def unwritten_rows(self) -> list[Row]:
        """All versions that are not committed yet."""
        return list(self._newest.values())

    async def get(self, job_id: str) -> Row | Tombstone | None:
        """A job, its tombstone if it was deleted, or None if it is unknown."""
        if rows := await self._rows(sql.GET, (job_id,)):
            return read_row(rows[0])
        if rows := await self._rows(sql.GET_TOMBSTONE, (job_id,)):
            deleted_at, origin, held, pass_on = rows[0]
            return Tombstone(job_id, deleted_at, origin, bool(held), bool(pass_on))
        return None

    async def heads(self, job_ids: Sequence[str]) -> dict[str, Head]:
        """The newest digest and the tombstone of each job, in one query."""
        rows = await self._rows(sql.HEADS, (json.dumps(job_ids),))
        return {
            job_id: Head(digest, deadline, held is not None, bool(held), bool(pass_on), seen)
            for job_id, digest, deadline, held, pass_on, seen in rows
        }

    async def was_version(self, job_id: str, digest: bytes) -> bool:
        """Whether the job ever had exactly this value."""
        return bool(await self._rows(sql.WAS_VERSION, (job_id, digest)))

    async def live_page(self, after: str, now: float, limit: int) -> list[Row]:
        """Jobs not expired at `now`, ordered by ID, starting behind `after`."""
        return [read_row(row) for row in await self._rows(sql.LIVE_PAGE, (after, now, limit))]

    async def live_ids(self, after: str, now: float, limit: int) -> list[str]:
        """The IDs of `live_page`, without the documents."""
        return [row[0] for row in await self._rows(sql.LIVE_IDS, (after, now, limit))]

    async def listing(
        self, status: str | None, now: float, limit: int, longest: int = 0
    ) -> list[Row]:
        """Live jobs, newest first, including uncommitted versions. Only documents of up to
        `longest` bytes are read; `raw` is empty for the others."""
        asked = self._asked(status, now, limit) | {"longest": longest}
        found = await self._rows(sql.LIST if status is None else sql.LIST_STATUS, asked)
        return self._with_unwritten(map(read_row, found), status, now)[:limit]

    async def listing_within(
        self,
        status: str | None,
        now: float,
        limit: int,
        size: int,
        reserve: Callable[[int], None] | None = None,
    ) -> tuple[list[Row], bool]:
        """The same with all documents, up to `size` bytes in total, and whether that limit cut the
        list. `reserve` is called with their size before they are read, and may raise."""
        asked = self._asked(status, now, limit)
        found = await self._rows(sql.SIZES if status is None else sql.SIZES_STATUS, asked)
        job_ids, whole, full = [], 0, False
        for job_id, length in found:
            if whole + length > size:
                full = True
                break
            whole += length
            job_ids.append(job_id)
        if reserve is not None:
            reserve(whole)
        rows: list[Row] = []
        for start in range(0, len(job_ids), _LIST_PAGE):
            asked = {"job_ids": json.dumps(job_ids[start : start + _LIST_PAGE])}
            rows += map(read_row, await self._rows(sql.WHOLE, asked))
        return self._with_unwritten(rows, status, now)[:limit], full

    def _asked(self, status: str | None, now: float, limit: int) -> dict[str, Any]:
        # A job may be in both, with its old version and its new one.
        return {"status": status, "now": now, "most": limit + len(self._newest)}

    def _with_unwritten(self, rows: Iterable[Row], status: str | None, now: float) -> list[Row]:
        waiting = self._newest
        if not waiting:
            return list(rows)
        merged = [row for row in rows if row.job_id not in waiting]
        merged += [row for row in waiting.values() if _listed(row, status, now)]
        merged.sort(key=lambda row: (row.first_seen, row.created_at), reverse=True)
        return merged

    async def stranded(self, unchanged_since: float, now: float, limit: int) -> list[Row]:
        """Live unfinished jobs that have not changed since then, longest unchanged first, without
        their documents."""
        asked = {"since": unchanged_since, "now": now, "most": limit, "longest": 0}
        return [read_row(row) for row in await self._rows(sql.STRANDED, asked)]

    async def documents(self, job_ids: Sequence[str], longest: int) -> dict[str, bytes]:
        """The documents of these jobs that have at most `longest` bytes."""
        asked = {"job_ids": json.dumps(job_ids), "longest": longest}
        return {row[0]: read_row(row).raw for row in await self._rows(sql.SHORT, asked)}

    async def versions(
        self, job_id: str, size: int = VERSIONS_SIZE
    ) -> list[tuple[int, float, str, float, bytes | None]]:
        """(number, captured at, status, progress, value) of each stored version, oldest first. Once
        the newer values reach `size` bytes in total, older versions come without a value."""
        rows = await self._rows(sql.VERSIONS, {"job_id": job_id, "most": size})
        if sum(len(row[4] or b"") for row in rows) <= _AT_ONCE:
            return _inflated(rows, size)
        return await asyncio.to_thread(_inflated, rows, size)

    async def first_version(self, job_id: str) -> tuple[str, bytes] | None:
        """(status, value) of the oldest stored version."""
        rows = await self._rows(sql.FIRST_VERSION, (job_id,))
        return (rows[0][0], zlib.decompress(rows[0][1])) if rows else None

    async def column(self, statement: str, params: ReadParams = ()) -> list[Any]:
        """The first column of a query of `sql.py`."""
        return [row[0] for row in await self._rows(statement, params)]

    async def table(self, statement: str, params: ReadParams = ()) -> list[Any]:
        """All columns of a query of `sql.py`, one tuple a row."""
        return [tuple(row) for row in await self._rows(statement, params)]


def _inflated(rows: Sequence[Any], size: int) -> list[tuple[int, float, str, float, bytes | None]]:
    """Rows, newest first, as `JobStore.versions` returns them."""
    versions: list[tuple[int, float, str, float, bytes | None]] = []
    for number, seen, status, progress, data in rows:
        value = zlib.decompress(data) if data is not None and (size > 0 or not versions) else None
        size -= len(value or b"")
        versions.append((number, seen, status, progress, value))
    versions.reverse()
    return versions


def _listed(row: Row, status: str | None, now: float) -> bool:
    return status in (None, row.status) and (row.deadline is None or row.deadline > now)


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
