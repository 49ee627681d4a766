"""The reads of a job store. Every query raises `StoreSilent` while the file does not answer."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from proxy.core.sqlite.file import SqliteFile
from proxy.jobs.store import sql
from proxy.jobs.store.records import Head, Row, Tombstone, read_row
from proxy.jobs.store.schema import Params

#: Documents of a job list read per query.
_LIST_PAGE = 64

#: Bytes of values read of one job's versions, and the most that the event loop decompresses.
VERSIONS_SIZE = 4 * 1024 * 1024
_AT_ONCE = 64 * 1024


class StoreReader:
    """What a store knows, including versions that are not committed yet (`newest`).

    A version that is committed during a read may be missing in what the read returns, and is no
    longer uncommitted afterwards. Callers that combine the two therefore look at the uncommitted
    versions before the read, too.
    """

    def __init__(self, file: SqliteFile, newest: dict[str, Row]) -> None:
        self._file = file
        self._newest = newest

    async def _rows(self, statement: str, params: Params = ()) -> list[Any]:
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
        before = dict(self._newest)
        found = await self._rows(sql.LIST if status is None else sql.LIST_STATUS, asked)
        return self._with_unwritten(map(read_row, found), before, status, now)[:limit]

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
        before = dict(self._newest)
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
        return self._with_unwritten(rows, before, status, now)[:limit], full

    def _asked(self, status: str | None, now: float, limit: int) -> dict[str, Any]:
        # A job may be in both, with its old version and its new one.
        return {"status": status, "now": now, "most": limit + len(self._newest)}

    def _with_unwritten(
        self, rows: Iterable[Row], before: dict[str, Row], status: str | None, now: float
    ) -> list[Row]:
        """`rows` of a read and the uncommitted versions; `before` are those before the read."""
        waiting = before | self._newest
        if not waiting:
            return list(rows)
        merged = []
        for row in rows:
            other = waiting.get(row.job_id)
            if other is None or other.captured_at < row.captured_at:
                merged.append(row)
                waiting.pop(row.job_id, None)
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

    async def column(self, statement: str, params: Params = ()) -> list[Any]:
        """The first column of a query of `sql.py`."""
        return [row[0] for row in await self._rows(statement, params)]

    async def table(self, statement: str, params: Params = ()) -> list[Any]:
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
