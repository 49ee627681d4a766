"""Queues every job on which Redis and the store may disagree; capture then finds out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from proxy.core.clock import Clock
from proxy.jobs.document import KeyPattern
from proxy.jobs.redis.change_queue import ChangeQueue
from proxy.jobs.redis.connection import CommandError, CommandRefused, RedisConnection
from proxy.jobs.store.store import JobStore

IDS_PAGE = 1000  # IDs compared at once
SCAN_COUNT = 500


@dataclass(frozen=True, slots=True)
class Compared:
    """The result of a full comparison: `keys` in Redis, `copied` changed versions to SQLite,
    `missing` jobs only in SQLite, of which `deleted` are now known to be deleted."""

    keys: int
    copied: int
    deleted: int
    missing: int
    seconds: float


async def queue_keys(
    link: RedisConnection,
    pattern: KeyPattern,
    changes: ChangeQueue,
    on_odd_key: Callable[[bytes], None],
) -> int:
    """Queue every job with a key in Redis; returns how many. Keys without a valid job ID go to
    `on_odd_key`. Raises `CommandRefused` and `RedisLost`."""
    cursor: bytes | int = 0
    number = 0
    while True:
        await changes.room()
        (reply,) = await link.call(("SCAN", cursor, "MATCH", pattern.glob(), "COUNT", SCAN_COUNT))
        if isinstance(reply, CommandError):
            raise CommandRefused(f"cannot be scanned: {reply.text[:200]}")
        try:
            cursor, keys = reply
            last = int(cursor) == 0
            found = [(key, pattern.job_id(bytes(key))) for key in keys]
        except (TypeError, ValueError) as odd:
            raise CommandRefused(f"cannot be scanned: odd reply ({odd!s:.100})") from odd
        ours = [job_id for _, job_id in found if job_id is not None]
        number += len(ours)
        changes.fetch_later(ours)
        for key, job_id in found:
            if job_id is None:
                on_odd_key(bytes(key))
        if last:
            return number


async def queue_missing(
    link: RedisConnection, pattern: KeyPattern, changes: ChangeQueue, store: JobStore, clock: Clock
) -> tuple[int, int]:
    """Queue every live job of the store without a key; returns their number and the number of live
    jobs. Raises `RedisLost`, `CommandRefused` and `StoreSilent`; the caller then starts over."""
    after = ""
    missing = total = 0
    while ids := await store.live_ids(after, clock.time(), IDS_PAGE):
        after = ids[-1]
        replies = await link.call(*(("EXISTS", pattern.key(one)) for one in ids))
        refused = next((one for one in replies if isinstance(one, CommandError)), None)
        if refused is not None:
            raise CommandRefused(f"cannot be compared: {refused.text[:200]}")
        gone = [one for one, there in zip(ids, replies, strict=True) if there == 0]
        missing += len(gone)
        total += len(ids)
        changes.fetch_later(gone)
        await changes.room()
    return missing, total
