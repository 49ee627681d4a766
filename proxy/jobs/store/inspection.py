"""Reads jobs for operators and for the trace, beyond what clients may see."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from proxy.core.clock import Clock, iso_utc
from proxy.jobs.document import sql_time, valid_job_id
from proxy.jobs.maintenance import Maintenance
from proxy.jobs.store import sql
from proxy.jobs.store.records import Overview, Row, Tombstone
from proxy.jobs.store.store import JobStore

LIST_LIMIT = (50, 1000)  # the default and the maximum
LIST_SIZE = 4 * 1024 * 1024  # bytes of a list for clients; its values are whole documents
SHORT = 64 * 1024  # bytes of the longest document that `overview` reads
_AT_ONCE = 100  # lines built per turn of the event loop
LIVES_AT_MOST = 2 * 86400.0  # seconds: twice what the app gives a key, which each write renews


def at_most(limit: int | None) -> int:
    """The number of jobs in a list for which a client gave this limit."""
    return min(LIST_LIMIT[0] if limit is None else max(1, limit), LIST_LIMIT[1])


class Inspection:
    """Reads the jobs of one mirror."""

    def __init__(self, store: JobStore, maintenance: Maintenance, clock: Clock) -> None:
        self._store = store
        self._maintenance = maintenance
        self._clock = clock

    async def jobs(
        self, status: str | None = None, limit: int | None = None, stranded: bool = False
    ) -> list[dict[str, Any]]:
        """One line per job, for `jobs list`. Raises `StoreSilent`."""
        most = at_most(limit)
        if stranded:
            rows = [
                row for row in await self._maintenance.stranded() if status in (None, row.status)
            ][:most]
        else:
            rows = await self._store.listing(status, self._clock.time(), most)
        lines: list[dict[str, Any]] = []
        for start in range(0, len(rows), _AT_ONCE):
            lines += map(_brief, rows[start : start + _AT_ONCE])
            await asyncio.sleep(0)
        return lines

    async def contemporaries(
        self, start: float, end: float, look_back: float, most: int
    ) -> list[str] | None:
        """Jobs that may have been worked on between two times (Unix seconds), including expired and
        deleted ones; None if there are more than `most` or the store cannot tell. A deleted job may
        be worked on for `look_back` seconds after its last version. Raises `StoreSilent`."""
        asked = {
            "start": start,
            "end": end,
            "end_at": sql_time(end),
            "earliest": start - LIVES_AT_MOST,
            "most": most + 1,
        }
        found: list[str] = await self._store.column(sql.WORKED_ON, asked)
        gone = await self._store.table(sql.DELETED_SINCE, (start - look_back, LIST_LIMIT[1]))
        if len(gone) == LIST_LIMIT[1]:
            return None
        for job_id, first, last in gone:
            if first is not None and first <= end and last >= start - look_back:
                found.append(job_id)
        return found if len(found) <= most else None

    async def overview(self, limit: int) -> Overview:
        """The jobs that an operator wants to see first, at most `limit` per list; documents over
        `SHORT` bytes are omitted. Raises `StoreSilent`."""
        now = self._clock.time()
        stranded = (await self._maintenance.stranded())[:limit]
        documents = await self._store.documents([row.job_id for row in stranded], SHORT)
        return Overview(
            recent=await self._store.listing(None, now, limit, SHORT),
            failed=await self._store.listing("failed", now, limit, SHORT),
            stranded=[replace(row, raw=documents.get(row.job_id, b"")) for row in stranded],
        )

    async def show(self, job_id: str) -> dict[str, Any] | None:
        """Everything known about a job, with its versions; None if it is unknown. `data` of old
        versions is None if the newer ones are large. Raises `StoreSilent`."""
        if not valid_job_id(job_id):
            return None
        found = self._store.unwritten(job_id) or await self._store.get(job_id)
        versions = [
            {
                "version": number,
                "seen": iso_utc(seen),
                "status": status,
                "progress": progress,
                "data": None if raw is None else raw.decode("utf-8", "replace"),
            }
            for number, seen, status, progress, raw in await self._store.versions(job_id)
        ]
        if found is None:
            return None
        if isinstance(found, Tombstone):
            deletion = {"deleted": iso_utc(found.deleted_at), "origin": found.origin}
            return {"job_id": job_id, **deletion, "pass_on": found.pass_on, "versions": versions}
        raw = found.raw.decode("utf-8", "replace")
        return {**_brief(found), "data": raw, "versions": versions}


def _brief(row: Row) -> dict[str, Any]:
    return {
        "job_id": row.job_id,
        "status": row.status,
        "progress": row.progress,
        "created_at": row.created_at,
        "first_seen": iso_utc(row.first_seen),
        "changed": iso_utc(row.captured_at),
        "expires": iso_utc(row.deadline) if row.deadline is not None else None,
        "version": row.version,
    }
