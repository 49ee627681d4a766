"""Names for capture whatever Redis and the ledger may not agree on; what is so, it finds out."""

from __future__ import annotations

from proxy.clock import Clock
from proxy.jobs.ledger import Ledger
from proxy.jobs.model import KeyPattern
from proxy.jobs.named import Named
from proxy.jobs.redis_side import CommandError, Link, Refused

IDS_PAGE = 1000  # ids compared in one piece
SCAN_COUNT = 500


async def name_keys(link: Link, pattern: KeyPattern, named: Named) -> None:
    """Every key of the family. Raises `Refused` and `RedisLost`."""
    cursor: bytes | int = 0
    while True:
        await named.room()
        (reply,) = await link.call(("SCAN", cursor, "MATCH", pattern.glob(), "COUNT", SCAN_COUNT))
        if isinstance(reply, CommandError):
            raise Refused(f"cannot be scanned: {reply.text[:200]}")
        cursor, keys = reply
        found = (pattern.job_id(key) for key in keys)
        named.look_at_many([job_id for job_id in found if job_id is not None])
        if int(cursor) == 0:
            return


async def name_missing(
    link: Link, pattern: KeyPattern, named: Named, ledger: Ledger, clock: Clock
) -> None:
    """Every live job of the ledger that has no key. Raises `RedisLost`, and `LedgerSilent`: then
    the comparison is done again."""
    after = ""
    while ids := await ledger.live_ids(after, clock.time(), IDS_PAGE):
        after = ids[-1]
        replies = await link.call(*(("EXISTS", pattern.key(one)) for one in ids))
        named.look_at_many([one for one, there in zip(ids, replies, strict=True) if there == 0])
        await named.room()
