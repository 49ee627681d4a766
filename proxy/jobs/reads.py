"""Reads of jobs: what the mirror knows, and responses to clients in the app's own format."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

from proxy.config.mirrors import Mirror as MirrorConfig
from proxy.core.clock import Clock, iso_utc
from proxy.core.errors import StoreAway
from proxy.jobs.answers import Answer, Expired, Known, NoAnswer, Tombstoned
from proxy.jobs.creations import DOWN_RETRY_AFTER
from proxy.jobs.document import (
    UNKNOWN_STATUS,
    as_json,
    deleted_body,
    job_body,
    list_body,
    not_found_body,
    parse,
    valid_job_id,
)
from proxy.jobs.maintenance import Gone
from proxy.jobs.queue.queue import JobQueue
from proxy.jobs.redis.connection import RedisLost
from proxy.jobs.redis.session import RedisSession
from proxy.jobs.store.inspection import LIST_SIZE, at_most
from proxy.jobs.store.records import Row, Tombstone
from proxy.jobs.store.schema import StoreSilent
from proxy.jobs.store.store import JobStore

READ_PATIENCE = 0.5  # seconds that a read may wait for the store or for Redis

#: Job lists read concurrently for clients: each takes a few MB until it is sent.
_LISTS = 4

#: Rows of a list processed per turn of the event loop.
_ROWS_AT_ONCE = 100


class Reads:
    """The jobs of one mirror, for clients. Redis or SQLite trouble raises nothing here."""

    def __init__(
        self,
        settings: MirrorConfig,
        store: JobStore,
        session: RedisSession,
        gone: Gone,
        queue: JobQueue | None,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._store = store
        self._session = session
        self._gone = gone
        self._queue = queue
        self._clock = clock
        self._lists = asyncio.Semaphore(_LISTS)

    def is_gone(self, job_id: str) -> bool:
        """Whether the job was deleted through the proxy and must stay deleted. No I/O."""
        return job_id in self._gone

    async def lookup(self, job_id: str) -> Known | Tombstoned | Expired | NoAnswer | None:
        """What the mirror knows about a job; None when it knows nothing."""
        self._session.activity.touch()
        if not valid_job_id(job_id):
            return None
        found: Row | Tombstone | None
        silent = False
        waiting = self._store.unwritten(job_id)  # it may be committed during the read
        try:
            async with asyncio.timeout(READ_PATIENCE):
                found = await self._store.get(job_id)
        except (StoreSilent, TimeoutError):
            found, silent = None, True
        if isinstance(found, Tombstone):
            return Tombstoned(found.deleted_at, found.origin)
        if job_id in self._gone:
            return Tombstoned(self._clock.time(), "client")
        row = self._store.unwritten(job_id) or found
        if waiting is not None and (row is None or row.captured_at < waiting.captured_at):
            row = waiting
        if row is None:
            return NoAnswer() if silent else None
        if row.deadline is not None and row.deadline <= self._clock.time():
            return Expired(row.deadline)
        return Known(parse(job_id, row.raw), row, row.captured_at)

    def absence_unknown(self, job_id: str) -> StoreAway | None:
        """The error that replaces the app's 404 while our store does not answer; None if the 404
        can be trusted, because Redis is complete and the app can read it."""
        back_at = self._session.back_at
        # The app's breaker keeps it from reading Redis for a while after Redis is back.
        until = 0.0 if back_at is None else back_at + self._settings.app_breaker
        left = until - self._clock.monotonic()
        if self._session.whole and left <= 0:
            return None
        return StoreAway(
            f"Cannot tell whether job {job_id} exists right now; try again",
            retry_after=DOWN_RETRY_AFTER,
            reason="store_silent",
        )

    async def revive(self, job_id: str) -> bool:
        """Restore a live job if it is missing in Redis; returns whether it is there now."""
        known = await self.lookup(job_id)
        if not isinstance(known, Known):
            return False
        try:
            async with asyncio.timeout(READ_PATIENCE):
                return await self._session.put_one_back(known.row)
        except (RedisLost, TimeoutError):
            return False

    def forecast(self, job_id: str) -> bytes:
        """Header lines about the job's place in the queue, each preceded by a CRLF. No I/O."""
        return b"" if self._queue is None else self._queue.fields(job_id)

    def app_answer(self, known: Known) -> Answer | None:
        """The response to `GET /jobs/{id}`, in the format of the app version that wrote the job;
        None for an unreadable value."""
        body = job_body(known.snapshot)
        if body is None:
            return None
        fields = self.headers("sqlite", known.as_of)
        if self._queue is not None:
            fields += self._queue.field_pairs(known.snapshot.job_id)
        return Answer(200, fields, body)

    def headers(
        self, source: Literal["redis", "sqlite"], as_of: float
    ) -> tuple[tuple[str, str], ...]:
        """Headers of a response built here (`sqlite`) or read from Redis after a repair."""
        return (
            ("Content-Type", "application/json"),
            ("X-Job-Source", source),
            ("X-Job-As-Of", iso_utc(as_of)),
        )

    def not_found(self) -> Answer:
        """The app's 404 response."""
        fields = (("Content-Type", "application/json"),)
        return Answer(404, fields, not_found_body(self._session.capture.shape))

    def deleted_answer(self, job_id: str) -> Answer:
        """The app's response to a successful `DELETE`, for one that is forwarded later."""
        fields = (("Content-Type", "application/json"), ("X-Job-Source", "sqlite"))
        return Answer(200, fields, deleted_body(self._session.capture.shape, job_id))

    async def listing(
        self,
        status: str | None,
        limit: int | None,
        reserve: Callable[[int], None] | None = None,
    ) -> Answer | None:
        """The response to `GET /jobs` in the app's format, newest job first; None when the store
        does not answer. A header marks a list that was cut because it would be too large. `reserve`
        is called with the size in bytes before the documents are read; what it raises passes."""
        most = at_most(limit)
        try:
            async with self._lists:
                rows, cut = await self._store.listing_within(
                    status, self._clock.time(), most, LIST_SIZE, reserve
                )
                cut = cut or (limit is not None and limit > most == len(rows))
                return await self._list_of(rows, cut)
        except StoreSilent:
            return None

    async def _list_of(self, rows: list[Row], cut: bool) -> Answer:
        shape = self._session.capture.shape
        values = []
        for number, row in enumerate(rows, 1):
            if number % _ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)
            if row.job_id in self._gone:
                continue
            if row.status == UNKNOWN_STATUS and parse(row.job_id, row.raw).shape == "opaque":
                continue  # not JSON: it would break the whole list
            values.append(as_json(row.raw))
        as_of = self._session.known_until
        if self._session.state == "live":
            as_of = self._clock.time()
        elif as_of is None:  # this process has never reached Redis
            as_of = max((row.captured_at for row in rows), default=0.0)
        fields = self.headers("sqlite", as_of)
        if cut:
            fields = (*fields, ("X-Job-List-Capped", "true"))
        return Answer(200, fields, list_body(shape, values))
