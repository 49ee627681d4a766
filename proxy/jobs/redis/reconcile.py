"""Keeps Redis and the store in agreement: restore after a loss, full comparison, on request too.

A comparison queues every job on which the two may disagree; capture then finds out what is true.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from proxy.core.clock import Clock
from proxy.core.waiting import happened
from proxy.jobs.context import MirrorContext
from proxy.jobs.document import KeyPattern
from proxy.jobs.redis.capture import Capture
from proxy.jobs.redis.change_queue import ChangeQueue
from proxy.jobs.redis.connection import CommandRefused, RedisConnection, RedisLost
from proxy.jobs.redis.replies import CommandError, ServerInfo
from proxy.jobs.redis.restore import FLUSH_PATIENCE, Restorer
from proxy.jobs.redis.restore_rules import Continuity, DataEpoch, RestoreCounts, continuity
from proxy.jobs.requeue.requeuer import Requeuer
from proxy.jobs.store.schema import StoreSilent
from proxy.jobs.store.store import JobStore

log = logging.getLogger(__name__)

_T = TypeVar("_T")

SCAN_PAUSE = (1.0, 10.0)  # between scans: at least so many seconds, and so many scan durations
ALL_GONE = 3  # more missing jobs than this may mean an undetectable flush
OBSTACLE_PAUSE = 0.5  # seconds between two attempts while the store or the server refuses
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


class Reconciler:
    """The restores and comparisons of one mirror. `run` lasts as long as one connection."""

    def __init__(
        self,
        context: MirrorContext,
        pattern: KeyPattern,
        store: JobStore,
        capture: Capture,
        restorer: Restorer,
        requeue: Requeuer | None,
    ) -> None:
        self.obstacle: str | None = None  # why restore and comparison fail although Redis is up
        self.last_sync: float | None = None
        self.last_info: ServerInfo | None = None  # from when nothing was missing
        self.compared = False  # whether a full comparison has followed `last_info`
        self.known_all_until = 0.0  # Unix: when we last knew every job in Redis
        self._name = context.name
        self._settings = context.settings
        self._pattern = pattern
        self._store = store
        self._clock = context.clock
        self._metrics = context.metrics
        self._emit = context.emit
        self._capture = capture
        self._restorer = restorer
        self._requeue = requeue
        self._recheck = asyncio.Event()
        self._sync_requests: list[asyncio.Future[Compared]] = []
        self._restore_requests: list[asyncio.Future[RestoreCounts]] = []

    def load(self, meta: Mapping[str, str]) -> None:
        """Read back what the previous process knew about the server."""
        try:
            self.known_all_until = float(meta.get("known_all_until", 0.0))
            self.last_info = ServerInfo(**json.loads(meta["facts"]))
            self.compared = meta.get("compared", "1") == "1"
        except (KeyError, TypeError, ValueError):
            self.last_info = None

    async def sync(self) -> Compared:
        """See `RedisSession.sync`."""
        return await self._request(self._sync_requests)

    async def restore(self) -> RestoreCounts:
        """See `RedisSession.restore`."""
        return await self._request(self._restore_requests)

    async def _request(self, requests: list[asyncio.Future[_T]]) -> _T:
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        requests.append(future)
        self._recheck.set()
        return await future

    def fill_gap(self, reason: str) -> None:
        """The store lost data: schedule a full comparison."""
        log.warning("store has a gap", extra={"mirror": self._name, "reason": reason})
        self._sync_requests.append(asyncio.get_running_loop().create_future())
        self._recheck.set()

    def give_up(self, why: str) -> None:
        """Fail all pending requests with `RedisLost`."""
        _fail([*self._sync_requests, *self._restore_requests], RedisLost(why))
        self._sync_requests.clear()
        self._restore_requests.clear()

    def lose(self, epoch: DataEpoch, cause: str) -> None:
        """The epoch's data is lost: schedule a restore."""
        epoch.lose(cause)
        self._recheck.set()

    async def run(self, link: RedisConnection, epoch: DataEpoch) -> None:
        """Restore what was lost, compare, wait for the next trigger; until the link is lost."""
        while True:
            self._recheck.clear()
            began = time.monotonic()
            restores, self._restore_requests = self._restore_requests, []
            syncs, self._sync_requests = self._sync_requests, []
            try:
                while epoch.lost:
                    await self._restore_lost(link, epoch)
                if restores:
                    # A deletion that we have not noticed yet must not be undone.
                    await self._compare(link, epoch)
                    _resolve(restores, await self._restorer.put_all_back(link, "manual"))
                compared = await self._compare(link, epoch)
                if compared is None:
                    self._sync_requests += syncs  # interrupted by a loss; `_recheck` is set
                else:
                    _resolve(syncs, compared)
            except (StoreSilent, CommandRefused) as obstacle:
                # Restore and comparison fail for now, capture continues. We try again, but callers
                # who requested it get the error at once.
                self._set_obstacle(str(obstacle))
                _fail([*restores, *syncs], obstacle)
                await asyncio.sleep(OBSTACLE_PAUSE)
                continue
            except BaseException:  # includes cancellation by a task that lost the connection
                self._restore_requests += restores
                self._sync_requests += syncs
                raise
            self._set_obstacle(None)
            pause = self._settings.sync_every
            if link.mode == "scanning":
                pause = min(pause, max(SCAN_PAUSE[0], SCAN_PAUSE[1] * (time.monotonic() - began)))
            await happened(self._recheck, pause)

    def _set_obstacle(self, obstacle: str | None) -> None:
        if obstacle == self.obstacle:
            return
        self.obstacle = obstacle
        if obstacle is None:
            log.info("mirror compares again", extra={"mirror": self._name})
            self._emit("obstacle_gone", {})
        else:
            log.error(
                "mirror cannot restore or compare",
                extra={"mirror": self._name, "reason": obstacle},
            )
            self._emit("obstacle", {"reason": obstacle})

    async def _restore_lost(self, link: RedisConnection, epoch: DataEpoch) -> None:
        """Restore what one loss took. Another loss meanwhile leaves `epoch.lost` set.

        Afterwards a missing key means a deletion. That fact must be on disk by then, or killing the
        proxy before the comparison ends would bring back jobs that are deleted from now on.
        """
        losses = epoch.losses
        epoch.info = await link.info()
        epoch.mark = None
        await self._restorer.put_all_back(link, epoch.cause)
        if self._requeue is not None:
            await self._requeue.put_back(link, epoch)
        self._remember(epoch, compared=False)
        await self._store.flushed(FLUSH_PATIENCE)
        epoch.restored = losses

    async def _compare(self, link: RedisConnection, epoch: DataEpoch) -> Compared | None:
        """Check every key of the family and every stored job that has no key; None if this revealed
        a loss instead."""
        began, before = time.monotonic(), replace(self._capture.counts)
        info = await link.info()
        # A server that hides INFO is the same one as long as the connection lasts.
        if info.run_id is not None and continuity(epoch.info, info) is Continuity.BROKEN:
            self.lose(epoch, "flush")
        if epoch.lost:
            return None
        changes = self._capture.changes
        keys = await queue_keys(link, self._pattern, changes, self._capture.odd_key)
        absent, of = await queue_missing(link, self._pattern, changes, self._store, self._clock)
        if info.run_id is None and link.mode != "tracking" and absent > max(of / 2, ALL_GONE):
            self.lose(epoch, "flush")  # the only sign of it on such a server
            return None
        await self._capture.changes.drained()
        await self._store.flushed(FLUSH_PATIENCE)
        if epoch.lost:
            return None  # the comparison is void; `_recheck` is set
        epoch.old_data = False
        if not absent:
            epoch.info = info
        self._remember(epoch, compared=True)
        self.last_sync = self._clock.time()
        self._capture.known_all_until = None
        self.set_known_until(self.last_sync)
        self._metrics.last_sync.set(self.last_sync)
        log.debug(
            "mirror compared", extra={"mirror": self._name, "seconds": time.monotonic() - began}
        )
        counts = self._capture.counts
        return Compared(
            keys=keys,
            copied=counts.captured - before.captured,
            deleted=counts.deleted - before.deleted,
            missing=absent,
            seconds=round(time.monotonic() - began, 3),
        )

    def set_known_until(self, moment: float) -> None:
        self.known_all_until = moment
        self._store.set_meta("known_all_until", f"{moment:.3f}")

    def _remember(self, epoch: DataEpoch, *, compared: bool) -> None:
        """Persist the server info from when nothing was missing; `compared`: nor outdated."""
        self.last_info, self.compared = epoch.info, compared
        self._store.set_meta("facts", json.dumps(asdict(epoch.info)))
        self._store.set_meta("compared", str(int(compared)))


def _fail(futures: Sequence[asyncio.Future[Any]], error: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
            future.exception()  # mark as retrieved: nobody may be waiting


def _resolve(futures: list[asyncio.Future[_T]], result: _T) -> None:
    for future in futures:
        if not future.done():
            future.set_result(result)


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
