"""Names for capture whatever Redis and the store may not agree on; what is so, it finds out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from proxy.core.clock import Clock
from proxy.jobs.document import KeyPattern
from proxy.jobs.redis.change_queue import ChangeQueue
from proxy.jobs.redis.connection import CommandError, CommandRefused, RedisConnection
from proxy.jobs.store.store import JobStore

IDS_PAGE = 1000  # ids compared in one piece
SCAN_COUNT = 500


@dataclass(frozen=True, slots=True)
class Compared:
    """What a full comparison found. `keys` are in Redis; `copied` changed versions went to SQLite;
    `missing` were in SQLite alone, of which `deleted` are now known as deleted."""

    keys: int
    copied: int
    deleted: int
    missing: int
    seconds: float


async def name_keys(
    link: RedisConnection,
    pattern: KeyPattern,
    named: ChangeQueue,
    on_odd_key: Callable[[bytes], None],
) -> int:
    """Every key of the family, and how many of them were named; one whose id is none goes to
    `on_odd_key`. Raises `CommandRefused` and `RedisLost`."""
    cursor: bytes | int = 0
    number = 0
    while True:
        await named.room()
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
        named.look_at_many(ours)
        for key, job_id in found:
            if job_id is None:
                on_odd_key(bytes(key))
        if last:
            return number


async def name_missing(
    link: RedisConnection, pattern: KeyPattern, named: ChangeQueue, store: JobStore, clock: Clock
) -> tuple[int, int]:
    """Every live job of the store that has no key; how many, of how many.

    Raises `RedisLost`, `CommandRefused`, and `StoreSilent`: then the comparison is done again.
    """
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
        named.look_at_many(gone)
        await named.room()
    return missing, total
