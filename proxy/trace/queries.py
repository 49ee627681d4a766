"""Queries of the trace: events in its file and events still waiting to be written."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from typing import Any

from proxy.core.sqlite.file import Silent, SqliteFile
from proxy.trace import sql
from proxy.trace.events import Severity, TraceEvent

log = logging.getLogger(__name__)

#: The columns of `sql.NAMES`; a row that is not written yet has its lane in addition.
Row = tuple[Any, ...]


class TraceQueries:
    """The queries for one response. Each returns at most `limit` events, the newest, in the order
    in which they were recorded. While the file does not answer, only events that wait to be
    written are found, and `silent` has the reason."""

    def __init__(self, file: SqliteFile, waiting: Callable[[], Iterable[Row]]) -> None:
        self.silent: str | None = None
        self._file = file
        self._waiting = waiting

    async def by_correlation(self, correlation_id: str, limit: int) -> list[TraceEvent]:
        """Events with that correlation ID."""
        return await self._read(
            sql.BY_CORRELATION, (correlation_id, limit), lambda row: row[5] == correlation_id
        )

    async def by_job(self, job_id: str, limit: int) -> list[TraceEvent]:
        """Events with that job ID."""
        return await self._read(sql.BY_JOB, (job_id, limit), lambda row: row[6] == job_id)

    async def state_changes(self, start: float, end: float, limit: int) -> list[TraceEvent]:
        """Events of breakers, mirrors and the proxy between two times (Unix seconds)."""
        first, last = int(start * 1e6), int(end * 1e6)
        return await self._read(
            sql.NEWS,
            (first, last, limit),
            lambda row: row[2] in sql.NEWS_SOURCES and first <= row[0] <= last,
        )

    async def calls(self, service: str, start: float, end: float, limit: int) -> list[TraceEvent]:
        """Exchanges with an upstream that ended between two times (Unix seconds)."""
        first, last = int(start * 1e6), int(end * 1e6)
        return await self._read(
            sql.CALLS,
            (service, first, last, limit),
            lambda row: row[2] == "exchange" and row[7] == service and first <= row[0] <= last,
        )

    async def recent(self, least: Severity, limit: int) -> list[TraceEvent]:
        """The newest events of at least that severity."""
        return await self._read(sql.RECENT[least], (limit,), lambda row: row[4] >= least)

    async def _read(
        self, statement: str, params: tuple[Any, ...], wanted: Callable[[Row], bool]
    ) -> list[TraceEvent]:
        # In this order, an event committed in between is found twice instead of not at all.
        found = {row[0]: row for row in self._waiting() if wanted(row)}
        try:
            found.update((row[0], tuple(row)) for row in await self._file.rows(statement, params))
        except Silent as silent:
            self.silent = str(silent)
            log.warning("trace read failed", extra={"reason": self.silent})
        return [read_event(found[number]) for number in sorted(found)[-params[-1] :]]


def read_event(row: Row) -> TraceEvent:
    """The event of a row with the columns that `sql` selects."""
    number, at, source, kind, severity, correlation_id, job_id, service, duration, facts = row[:10]
    return TraceEvent(
        at=at,
        source=source,
        kind=kind,
        severity=Severity(severity),
        correlation_id=correlation_id,
        job_id=job_id,
        service=service,
        duration=duration,
        facts=json.loads(facts),
        id=number,
    )
