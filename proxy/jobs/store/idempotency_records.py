"""Storage for the records of idempotent creations: the mirror's SQLite file and its Redis.

Records are opaque here. Those in SQLite are durable and local to this sidecar; those in Redis are
shared by the fleet and carry the claims. The caller decides what a `ConnectionError` (Redis is
unreachable or refuses) means; while SQLite does not answer, it counts as empty.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from proxy.core.clock import Clock
from proxy.core.waiting import settled
from proxy.jobs.document import valid_job_id
from proxy.jobs.redis.connection import RedisConnection, RedisLost
from proxy.jobs.redis.replies import CommandError
from proxy.jobs.store import sql
from proxy.jobs.store.schema import StoreSilent
from proxy.jobs.store.store import JobStore

log = logging.getLogger(__name__)

COMMIT_PATIENCE = 1.0  # seconds that a record may wait for SQLite
CREATED_PATIENCE = 1.0
# Seconds by which the app's clock may be behind: after a gap it has a say in `first_seen`. Wide, as
# this only bounds the search; what decides is when we saw the first version.
CLOCK_SKEW = 3600.0
MOST_CREATED = 200  # jobs searched for the one of a lost answer,
CREATED_SIZE = 4 * 1024 * 1024  # and bytes of their documents
_PAGE = 128 * 1024  # bytes of documents that are read and parsed at a time, or one document

EXTEND = """
for i, key in ipairs(KEYS) do
  local value = redis.call('GET', key)
  if not value then
    redis.call('SET', key, ARGV[i + 1], 'PX', ARGV[1])
  elseif value == ARGV[i + 1] then
    redis.call('PEXPIRE', key, ARGV[1])
  end
end
return 1
"""

WITHDRAW = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


class AnswerStore:
    """Records by id. `family` is what the names of the job keys have in common. `link` gives the
    connection to Redis while there is one; `whole` says whether Redis has all that the mirror knows
    of, and the mirror all that Redis has."""

    def __init__(
        self,
        family: str,
        store: JobStore,
        link: Callable[[], RedisConnection | None],
        whole: Callable[[], bool],
        clock: Clock,
        *,
        key_prefix: str = "",
    ) -> None:
        self._store = store
        self._link = link
        self._whole = whole
        self._clock = clock
        self._prefix = f"{key_prefix}idempotency:{family}"
        self._refusal = ""

    # --- SQLite ----------------------------------------------------------------------------------

    async def read(self, record_id: str) -> bytes | None:
        """A record that has not expired; also None while SQLite does not answer."""
        try:
            rows = await self._store.table(sql.GET_ANSWER, (record_id, self._clock.time()))
        except StoreSilent:
            return None
        return bytes(rows[0][0]) if rows else None

    async def write(self, record_id: str, data: bytes, expires_at: float) -> bool:
        """Whether it was committed within `COMMIT_PATIENCE`."""
        committed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def done(ok: bool) -> None:
            if not committed.done():
                committed.set_result(ok)

        now = self._clock.time()
        params = {"id": record_id, "record": data, "expires_at": expires_at, "now": now}
        self._store.execute(sql.PUT_ANSWER, params, done, f"\0answer:{record_id}")
        return await settled(committed, COMMIT_PATIENCE) and committed.result()

    def erase(self, record_id: str) -> None:
        """Forget it, soon."""
        self._store.execute(sql.DROP_ANSWER, {"id": record_id}, None, f"\0answer:{record_id}")

    async def jobs_created(self, since: float) -> list[tuple[str, Mapping[str, Any]]] | None:
        """(ID, document) of each live job first seen since then; None if that is unknown."""
        if not self._whole() or not await self._store.flushed(CREATED_PATIENCE):
            return None
        params = {"since": since, "earliest": since - CLOCK_SKEW, "most": MOST_CREATED}
        try:
            rows = await self._store.table(sql.CREATED_SINCE, params)
        except StoreSilent:
            return None
        if len(rows) >= MOST_CREATED or sum(size for _, size in rows) > CREATED_SIZE:
            return None
        created: list[tuple[str, Mapping[str, Any]]] = []
        try:
            for page in _pages(rows):
                found = await self._store.table(sql.DOCUMENTS, (json.dumps(page),))
                created += [(job_id, _document(data)) for job_id, data in found]
        except StoreSilent:
            return None
        return created

    # --- Redis -----------------------------------------------------------------------------------

    async def claim(self, record_id: str, data: bytes, lease: float) -> bytes | None:
        """Claim a record; None if the claim is ours now, else the present value (empty: just
        removed)."""
        key = self._prefix + record_id
        taken, found = await self._call(
            ("SET", key, data, "NX", "PX", int(lease * 1000)), ("GET", key)
        )
        return None if taken == b"OK" else found or b""

    async def extend(self, claims: Mapping[str, bytes], lease: float) -> None:
        """Renew claims, each only if unchanged; lost ones are set again."""
        keys = [self._prefix + record_id for record_id in claims]
        await self._call(("EVAL", EXTEND, len(keys), *keys, int(lease * 1000), *claims.values()))

    async def share(self, record_id: str, data: bytes, keep: float) -> None:
        """Publish the record to every sidecar."""
        await self._call(("SET", self._prefix + record_id, data, "PX", int(keep * 1000)))

    async def withdraw(self, record_id: str, data: bytes) -> None:
        """Remove a claim if it is unchanged."""
        await self._call(("EVAL", WITHDRAW, 1, self._prefix + record_id, data))

    async def mark_job(self, job_id: str, keep: float) -> bool:
        """Record that a job's creator got its answer; returns whether that is new."""
        if not valid_job_id(job_id):
            return False
        (taken,) = await self._call(
            ("SET", f"{self._prefix}job:{job_id}", "1", "NX", "PX", int(keep * 1000))
        )
        return bool(taken == b"OK")

    async def unmarked(self, job_ids: Sequence[str]) -> list[str]:
        """The jobs whose creators have not got an answer."""
        if not job_ids:
            return []
        found = await self._call(*(("EXISTS", f"{self._prefix}job:{one}") for one in job_ids))
        return [job_id for job_id, marked in zip(job_ids, found, strict=True) if not marked]

    async def _call(self, *commands: tuple[Any, ...]) -> list[Any]:
        link = self._link()
        if link is None:
            raise ConnectionError("Redis is away")
        try:
            replies = await link.call(*commands)
        except RedisLost as error:
            raise ConnectionError(str(error)) from error
        for reply in replies:
            if isinstance(reply, CommandError):
                if reply.text != self._refusal:
                    self._refusal = reply.text
                    log.error("Redis refuses idempotency records", extra={"reason": reply.text})
                raise ConnectionError(reply.text)
        self._refusal = ""
        return replies


def _pages(rows: Sequence[tuple[str, int]]) -> Iterator[list[str]]:
    """Job IDs, as many at a time as have documents of `_PAGE` bytes together, but at least one."""
    page: list[str] = []
    size = 0
    for job_id, length in rows:
        if page and size + length > _PAGE:
            yield page
            page, size = [], 0
        page.append(job_id)
        size += length
    if page:
        yield page


def _document(data: object) -> Mapping[str, Any]:
    try:
        document = json.loads(data if isinstance(data, str | bytes) else "")
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
