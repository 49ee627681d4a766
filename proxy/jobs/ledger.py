"""The durable side of a mirror: one SQLite file, one writer with group commit, several readers.

1. Nobody waits for the writer unless asked to: `put` and its kin queue an operation and return; the
   operation's `done` callback tells when it is committed. All that is queued goes into one
   transaction, so that many small writes share one flush to the disk.
2. Trouble never leaves this file as an exception of SQLite's. Disk full, read-only, locked: the
   queue is kept (bounded, newest version per job), tried again every `RETRY` seconds, and
   `degraded` says why. A damaged or foreign file is set aside under another name and a new one
   begun. Both end in `on_gap`, by which the mirror knows that it must fill the ledger again.
3. An operation that SQLite refuses for its own sake is dropped alone, counted, never retried.
4. The whole file is checked at start while small; a big one is checked by a reader while already in
   use, as a start must not wait for a gigabyte to be read.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiosqlite

from proxy.clock import Clock
from proxy.jobs import sql
from proxy.jobs.model import Snapshot, sql_time

log = logging.getLogger(__name__)

GROUP = 512  # operations in one transaction
BACKLOG = 20_000  # operations kept while SQLite takes none
BACKLOG_BYTES = 64 * 1024 * 1024
RETRY = 1.0  # seconds between two attempts while degraded
READERS = 2
READ_TIMEOUT = 1.0  # seconds a read may take before the ledger counts as silent
CHECK_AT_START = 32 * 1024 * 1024  # bytes; bigger files are checked while in use

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
# What SQLite or its binding says about a value, not about the file.
_REFUSED = (
    sqlite3.IntegrityError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
    sqlite3.DataError,
    OverflowError,
    ValueError,
)

Params = dict[str, Any]
Done = Callable[[bool], None]


class LedgerSilent(Exception):
    """The ledger cannot answer now: not open, damaged, or slower than the limit."""


@dataclass(frozen=True, slots=True)
class Row:
    """A job as the ledger holds it. Times are Unix seconds."""

    job_id: str
    status: str
    progress: float
    raw: bytes
    created_at: str
    captured_at: float
    deadline: float | None
    digest: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A job that was deleted. `held`: it must not come back; `pass_on`: the app does not know."""

    job_id: str
    deleted_at: float
    origin: str
    held: bool
    pass_on: bool


@dataclass(frozen=True, slots=True)
class Head:
    """What a capture must know of a job before it writes: its newest digest and its tombstone."""

    digest: bytes | None
    deadline: float | None
    buried: bool
    held: bool
    pass_on: bool


NO_HEAD = Head(None, None, False, False, False)


@dataclass(slots=True)
class _Op:
    statements: tuple[str, ...]
    params: Params
    key: str
    size: int
    done: Done | None


class Ledger:
    """See the rules at the top of the file. Use: `await start()`, work, `await stop()`."""

    def __init__(
        self,
        path: Path,
        clock: Clock,
        *,
        keep_versions: int = 50,
        on_gap: Callable[[str], None] = lambda reason: None,
        on_commit: Callable[[int], None] = lambda operations: None,
        on_degraded: Callable[[str | None], None] = lambda reason: None,
    ) -> None:
        self.path = path
        self.degraded: str | None = "not started"
        self.refused = 0
        self._clock = clock
        self._keep_versions = keep_versions
        self._on_gap = on_gap
        self._on_commit = on_commit
        self._on_degraded = on_degraded
        self._writer: aiosqlite.Connection | None = None
        self._readers: list[aiosqlite.Connection] = []
        self._next_reader = 0
        self._queue: list[_Op] = []
        self._queued_bytes = 0
        self._newest: dict[str, Row] = {}
        self._gap = False
        self._suspect = False
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._check: asyncio.Task[None] | None = None

    # --- life -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the file (made when missing) and begin to write. Never raises for its state."""
        await self._try_open()
        self._task = asyncio.create_task(self._run(), name=f"ledger-writer:{self.path.name}")

    async def stop(self, patience: float = 5.0) -> None:
        """Write what is queued, for at most `patience` seconds, and close."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            try:
                await asyncio.wait_for(self._task, patience)
            except TimeoutError:
                log.error("ledger stopped with unwritten operations", extra=self._facts())
        await self._close()
        for op in self._queue:
            _tell(op, False)
        self._queue.clear()

    # --- writing (all of these return at once) --------------------------------------------------

    def put(
        self, snapshot: Snapshot, captured_at: float, deadline: float | None, done: Done | None
    ) -> None:
        """A version of a job was seen at `captured_at`; Redis drops the key at `deadline`."""
        try:
            data: str | bytes = snapshot.raw.decode("utf-8")
        except UnicodeDecodeError:
            data = snapshot.raw  # SQLite keeps a BLOB in a TEXT column as it is
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
            "deflated": zlib.compress(snapshot.raw, 1),
            "keep_versions": self._keep_versions,
        }
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
        )
        self._enqueue(_Op(sql.PUT, params, snapshot.job_id, len(snapshot.raw), done))

    def bury(
        self,
        job_id: str,
        origin: str,
        *,
        held: bool,
        pass_on: bool = False,
        done: Done | None = None,
    ) -> None:
        """A job was deleted: its row goes, a tombstone comes."""
        params: Params = {
            "job_id": job_id,
            "deleted_at": self._clock.time(),
            "origin": origin,
            "held": int(held),
            "pass_on": int(pass_on),
        }
        self._newest.pop(job_id, None)
        self._enqueue(_Op(sql.BURY, params, job_id, 0, done))

    def passed_on(self, job_id: str) -> None:
        """The app has been told of the deletion."""
        self._enqueue(_Op(sql.PASSED_ON, {"job_id": job_id}, job_id, 0, None))

    def set_meta(self, name: str, value: str) -> None:
        """Remember a small fact across restarts."""
        self._enqueue(_Op(sql.SET_META, {"name": name, "value": value}, f"\0{name}", 0, None))

    def execute(
        self, statements: tuple[str, ...], params: Params, done: Done | None = None, key: str = ""
    ) -> None:
        """Queue statements of `sql.py` as one operation; those of one key stay in order."""
        self._enqueue(_Op(statements, params, key, 0, done))

    async def flushed(self, within: float) -> bool:
        """Whether all that is queued now was committed within so many seconds."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._enqueue(_Op((), {}, "", 0, lambda ok: _settle(future, ok)))
        try:
            return await asyncio.wait_for(future, within)
        except TimeoutError:
            return False

    @property
    def backlog(self) -> int:
        """Operations not committed yet."""
        return len(self._queue)

    def _enqueue(self, op: _Op) -> None:
        if self._stopping:
            _tell(op, False)
            return
        self._queue.append(op)
        self._queued_bytes += op.size
        if len(self._queue) > BACKLOG or self._queued_bytes > BACKLOG_BYTES:
            self._thin_out()
        self._wake.set()

    def _thin_out(self) -> None:
        """Drop superseded and, if that is not enough, oldest versions; the gap is filled later."""
        kept: dict[object, _Op] = {}
        for op in self._queue:
            key = (op.statements, op.key) if op.key else id(op)
            if (old := kept.pop(key, None)) is not None:
                _tell(old, False)
            kept[key] = op
        ops = list(kept.values())
        # Tombstones and facts are small and cannot be found again in Redis: only versions go.
        versions = [op for op in ops if op.statements is sql.PUT]
        size = sum(op.size for op in versions)
        dropped: set[int] = set()
        for op in versions:
            if len(ops) - len(dropped) <= BACKLOG // 2 and size <= BACKLOG_BYTES // 2:
                break
            dropped.add(id(op))
            size -= op.size
            self._newest.pop(op.key, None)
            _tell(op, False)
        self._gap = self._gap or bool(dropped)
        self._queue = [op for op in ops if id(op) not in dropped]
        self._queued_bytes = size

    # --- the writer -----------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue or self._suspect:
                if self._suspect:
                    # Only this task closes the file: a reader or the check merely points at it.
                    self._suspect = False
                    await self._set_aside("damaged")
                if self._writer is None and not await self._try_open():
                    if self._stopping:
                        return
                    await self._pause()
                    continue
                group, self._queue = self._queue[:GROUP], self._queue[GROUP:]
                if not await self._commit(group):
                    if self._stopping:
                        return
                    if self.degraded:
                        await self._pause()
            if self._stopping:
                return

    async def _pause(self) -> None:
        """Until the next attempt; a stop does not wait for it."""
        deadline = asyncio.get_running_loop().time() + RETRY
        while not self._stopping and (left := deadline - asyncio.get_running_loop().time()) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), left)
            self._wake.clear()

    async def _commit(self, group: list[_Op]) -> bool:
        """Write a group, or put it back in front of the queue. False when nothing was written."""
        assert self._writer is not None
        try:
            await self._transaction(self._writer, group)
        except _REFUSED:
            await self._one_by_one(group)
            return True
        except sqlite3.Error as error:
            self._queue[:0] = group
            await self._failed(error)
            return False
        self._succeeded(group)
        return True

    async def _one_by_one(self, group: list[_Op]) -> None:
        for index, op in enumerate(group):
            assert self._writer is not None
            try:
                await self._transaction(self._writer, [op])
            except _REFUSED as error:
                self.refused += 1
                self._forget_newest([op])
                self._queued_bytes -= op.size
                log.warning(
                    "ledger refused an operation",
                    extra={**self._facts(), "job_id": op.key, "reason": str(error)},
                )
                _tell(op, False)
            except sqlite3.Error as error:
                self._queue[:0] = group[index:]
                await self._failed(error)
                return
            else:
                self._succeeded([op])

    async def _transaction(self, db: aiosqlite.Connection, group: Sequence[_Op]) -> None:
        await db.execute("BEGIN IMMEDIATE")
        try:
            for statements, params in _rounds(group):
                for statement in statements:
                    await db.executemany(statement, params)
            await db.execute("COMMIT")
        except BaseException:
            # SQLite rolls back by itself after some errors; then this is one too many.
            with suppress(sqlite3.Error):
                await db.execute("ROLLBACK")
            raise

    def _succeeded(self, group: Sequence[_Op]) -> None:
        self._queued_bytes -= sum(op.size for op in group)
        self._forget_newest(group)
        self._set_degraded(None)
        self._on_commit(len(group))
        for op in group:
            _tell(op, True)
        if self._gap and not self._queue:
            self._gap = False
            self._on_gap("backlog overflowed")

    def _forget_newest(self, group: Iterable[_Op]) -> None:
        for op in group:
            newest = self._newest.get(op.key)
            if newest is not None and newest.digest == op.params.get("digest"):
                del self._newest[op.key]

    async def _failed(self, error: sqlite3.Error) -> None:
        if _code(error) in _DAMAGED:
            await self._set_aside("damaged")
            return
        self._set_degraded(str(error))

    def _set_degraded(self, reason: str | None) -> None:
        if reason == self.degraded:
            return
        before, self.degraded = self.degraded, reason
        if reason is None:
            log.info("ledger writes again", extra={**self._facts(), "was": before})
        else:
            log.error("ledger degraded", extra={**self._facts(), "reason": reason})
        self._on_degraded(reason)

    # --- the file -------------------------------------------------------------------------------

    async def _try_open(self) -> bool:
        for _ in range(2):  # the second time on a new file, when the first was not fit
            try:
                await self._open()
            except sqlite3.Error as error:
                await self._close()
                if _code(error) in _DAMAGED:
                    await self._set_aside("damaged")
                    continue
                self._set_degraded(str(error))
                return False
            except _Foreign as foreign:
                await self._close()
                await self._set_aside(str(foreign))
                continue
            except (OSError, _Newer) as error:
                await self._close()
                self._set_degraded(str(error))
                return False
            self._set_degraded(None)
            return True
        return False

    async def _open(self) -> None:
        await asyncio.to_thread(self.path.parent.mkdir, parents=True, exist_ok=True)
        self._writer = db = await aiosqlite.connect(self.path, isolation_level=None)
        application_id = await _scalar(db, "PRAGMA application_id")
        version = await _scalar(db, "PRAGMA user_version")
        tables = await _scalar(db, "SELECT count(*) FROM sqlite_master")
        if application_id != sql.APPLICATION_ID and (tables or version or application_id):
            raise _Foreign("foreign")
        if version > len(sql.MIGRATIONS):
            raise _Newer(f"ledger of a newer version ({version}) than {len(sql.MIGRATIONS)}")
        for setting in sql.SETTINGS:
            await db.execute(setting)
        await self._migrate(db, version)
        size = (await asyncio.to_thread(self.path.stat)).st_size
        if size <= CHECK_AT_START and await _scalar(db, "PRAGMA quick_check(1)") != "ok":
            raise _damage("quick_check failed")
        for _ in range(READERS):
            reader = await aiosqlite.connect(self.path, isolation_level=None)
            self._readers.append(reader)
            await reader.execute("PRAGMA busy_timeout=200")
            await reader.execute("PRAGMA query_only=ON")
        if size > CHECK_AT_START:
            self._check = asyncio.create_task(
                self._check_in_use(), name=f"ledger-check:{self.path.name}"
            )

    async def _migrate(self, db: aiosqlite.Connection, version: int) -> None:
        for number, statements in enumerate(sql.MIGRATIONS[version:], version + 1):
            await db.execute("BEGIN IMMEDIATE")
            try:
                for statement in statements:
                    await db.execute(statement)
                await db.execute(f"PRAGMA application_id={sql.APPLICATION_ID}")
                await db.execute(f"PRAGMA user_version={number}")
                await db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    await db.execute("ROLLBACK")
                raise

    async def _check_in_use(self) -> None:
        """Read the whole file on a connection of its own; the writer acts on what is found."""
        try:
            async with aiosqlite.connect(self.path) as db:
                result = await _scalar(db, "PRAGMA quick_check(1)")
        except sqlite3.Error as error:
            result = str(error) if _code(error) in _DAMAGED else "ok"
        if result != "ok":
            log.error("ledger is damaged", extra={**self._facts(), "reason": result})
            self._suspect = True
            self._wake.set()

    async def _set_aside(self, why: str) -> None:
        """Rename the file, its log and its index out of the way; the next write begins anew."""
        await self._close()
        stamp = datetime.fromtimestamp(self._clock.time(), UTC).strftime("%Y%m%dT%H%M%S%fZ")
        kept = self.path.with_name(f"{self.path.name}.{why}-{stamp}")
        try:
            await asyncio.to_thread(_rename, self.path, kept)
        except OSError as error:
            self._set_degraded(f"{why}, and cannot be set aside: {error}")
            return
        log.error("ledger set aside", extra={**self._facts(), "why": why, "kept": str(kept)})
        self._gap = True
        self.set_meta("set_aside", str(kept))

    async def _close(self) -> None:
        if self._check is not None and self._check is not asyncio.current_task():
            self._check.cancel()
            with suppress(asyncio.CancelledError):
                await self._check
        self._check = None
        connections = [*self._readers, *([self._writer] if self._writer else [])]
        self._writer, self._readers = None, []
        for connection in connections:
            with suppress(sqlite3.Error, ValueError):
                await connection.close()

    def _facts(self) -> dict[str, Any]:
        return {"ledger": str(self.path), "backlog": len(self._queue)}

    # --- reading (each raises LedgerSilent) -----------------------------------------------------

    async def _rows(self, statement: str, params: Sequence[Any] | Params = ()) -> list[Any]:
        if not self._readers:
            raise LedgerSilent(self.degraded or "closed")
        self._next_reader = (self._next_reader + 1) % len(self._readers)
        reader = self._readers[self._next_reader]
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                return list(await reader.execute_fetchall(statement, params))
        except TimeoutError:
            raise LedgerSilent(f"no answer within {READ_TIMEOUT:g} s") from None
        except (sqlite3.Error, ValueError) as error:
            if isinstance(error, sqlite3.Error) and _code(error) in _DAMAGED:
                self._suspect = True
                self._wake.set()
            raise LedgerSilent(str(error)) from error

    def unwritten(self, job_id: str) -> Row | None:
        """The version of a job that is queued but not committed yet; its number is 0."""
        return self._newest.get(job_id)

    def unwritten_rows(self) -> list[Row]:
        """All versions that are queued but not committed yet."""
        return list(self._newest.values())

    async def get(self, job_id: str) -> Row | Tombstone | None:
        """A job, or that it was deleted, or None when it was never known."""
        if rows := await self._rows(sql.GET, (job_id,)):
            return _row(rows[0])
        if rows := await self._rows(sql.GET_TOMBSTONE, (job_id,)):
            deleted_at, origin, held, pass_on = rows[0]
            return Tombstone(job_id, deleted_at, origin, bool(held), bool(pass_on))
        return None

    async def heads(self, job_ids: Sequence[str]) -> dict[str, Head]:
        """The newest digest and the tombstone of each job, in one query."""
        rows = await self._rows(sql.HEADS, (json.dumps(job_ids),))
        return {
            job_id: Head(digest, deadline, held is not None, bool(held), bool(pass_on))
            for job_id, digest, deadline, held, pass_on in rows
        }

    async def was_version(self, job_id: str, digest: bytes) -> bool:
        """Whether the job once had this very value."""
        return bool(await self._rows(sql.WAS_VERSION, (job_id, digest)))

    async def live_page(self, after: str, now: float, limit: int) -> list[Row]:
        """Jobs not expired at `now`, in the order of their ids, behind `after`."""
        return [_row(row) for row in await self._rows(sql.LIVE_PAGE, (after, now, limit))]

    async def live_ids(self, after: str, now: float, limit: int) -> list[str]:
        """The ids of `live_page`, without the documents."""
        return [row[0] for row in await self._rows(sql.LIVE_IDS, (after, now, limit))]

    async def listing(self, status: str | None, now: float, limit: int) -> list[Row]:
        """Live jobs, the newest creation first."""
        if status is None:
            rows = await self._rows(sql.LIST, (now, limit))
        else:
            rows = await self._rows(sql.LIST_STATUS, (status, now, limit))
        return [_row(row) for row in rows]

    async def stranded(self, unchanged_since: float, now: float, limit: int) -> list[Row]:
        """Live unfinished jobs without a change since then, the longest first."""
        rows = await self._rows(sql.STRANDED, (unchanged_since, now, limit))
        return [_row(row) for row in rows]

    async def versions(self, job_id: str) -> list[tuple[int, float, str, float, bytes]]:
        """(number, seen at, status, progress, value) of each version kept, the oldest first."""
        rows = await self._rows(sql.VERSIONS, (job_id,))
        return [
            (number, seen, status, progress, zlib.decompress(data))
            for number, seen, status, progress, data in rows
        ]

    async def column(self, statement: str, params: Sequence[Any] | Params = ()) -> list[Any]:
        """The first column of a query of `sql.py`."""
        return [row[0] for row in await self._rows(statement, params)]

    async def table(self, statement: str, params: Sequence[Any] | Params = ()) -> list[Any]:
        """All columns of a query of `sql.py`, one tuple a row."""
        return [tuple(row) for row in await self._rows(statement, params)]


class _Foreign(Exception):
    """A SQLite file of somebody else's."""


class _Newer(Exception):
    """A ledger of a later release: not touched, as an older one cannot know what it means."""


def _rename(path: Path, kept: Path) -> None:
    for tail in ("", "-wal", "-shm"):
        source = Path(f"{path}{tail}")
        if source.exists():
            source.rename(f"{kept}{tail}")


def _damage(message: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(message)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _code(error: sqlite3.Error) -> int:
    # The low byte is the primary code; the rest says more (SQLITE_CORRUPT_VTAB and so on).
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _rounds(group: Sequence[_Op]) -> Iterable[tuple[tuple[str, ...], list[Params]]]:
    """Runs of operations of one kind on different jobs: within a run, order does not matter."""
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


def _row(row: Any) -> Row:
    job_id, status, progress, data, created_at, captured_at, deadline, digest, version = row
    raw = data.encode("utf-8") if isinstance(data, str) else bytes(data)
    return Row(job_id, status, progress, raw, created_at, captured_at, deadline, digest, version)


async def _scalar(db: aiosqlite.Connection, statement: str) -> Any:
    rows = list(await db.execute_fetchall(statement))
    return rows[0][0] if rows else None


def _tell(op: _Op, ok: bool) -> None:
    if op.done is not None:
        op.done(ok)


def _settle(future: asyncio.Future[bool], ok: bool) -> None:
    if not future.done():
        future.set_result(ok)
