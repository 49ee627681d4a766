"""One mirror's Redis session: connect, restore, compare, follow changes, reconnect.

A session lasts as long as one connection. It first checks whether the server still has the data of
the last session (`restore_rules.continuity`). If not, or if a flush is detected later, every live
job is restored before a missing key is taken to mean anything. Then Redis and the store are
compared in full, once and every `sync_every` (`reconcile`). Changes are captured all the while.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Coroutine
from typing import Literal, TypeVar

from proxy.core.waiting import happened
from proxy.jobs.context import MirrorContext
from proxy.jobs.document import KeyPattern
from proxy.jobs.redis.absences import renew_mark
from proxy.jobs.redis.activity import Activity
from proxy.jobs.redis.capture import Capture
from proxy.jobs.redis.connection import RedisAccess, RedisConnection, RedisLost
from proxy.jobs.redis.reconcile import Compared, Reconciler
from proxy.jobs.redis.replies import Command, no_permission, refuses_writes
from proxy.jobs.redis.restore import Restorer
from proxy.jobs.redis.restore_rules import (
    Continuity,
    DataEpoch,
    RestoreCounts,
    continuity,
    same_history,
)
from proxy.jobs.redis.rights import PROBE_ID, MissingRight, missing, needed, write_probe
from proxy.jobs.requeue.requeuer import Requeuer
from proxy.jobs.store import sql
from proxy.jobs.store.records import Row
from proxy.jobs.store.schema import StoreSilent
from proxy.jobs.store.store import JobStore

log = logging.getLogger(__name__)

_T = TypeVar("_T")
State = Literal["starting", "live", "down", "stopped"]

HEARTBEAT = 0.5  # seconds between two heartbeats
IDLE_HEARTBEAT = 20.0  # the same while idle
HEARTBEAT_PATIENCE = 1.5  # seconds without a reply after which the server counts as hung
MASTER_LOOK = 5.0  # seconds between two queries to the Sentinels, which also announce a switch
FLUSH_LOOK = 5.0  # seconds between two checks for a flush that was not announced
IDLE_FLUSH_LOOK = 120.0  # the same while idle
RECONNECT = (0.05, 1.0)  # seconds: the first and the longest pause between two attempts


class RedisSession:
    """A mirror's connection task: `run` until cancelled. The rest may be called at any time."""

    def __init__(
        self,
        context: MirrorContext,
        access: RedisAccess,
        store: JobStore,
        *,
        counting_key: str | None = None,
    ) -> None:
        self.state: State = "starting"
        self.first_contact = asyncio.Event()  # Redis has answered, or failed to, at least once
        self.why = "not connected yet"
        self.since = context.clock.time()
        self.back_at: float | None = None  # monotonic: when Redis last came back after an outage
        self.known_until: float | None = None  # Unix: when Redis was lost; None if never reached
        self.refusing: str | None = None  # why Redis, although up, refuses all writes
        self.missing_rights: list[MissingRight] = []
        self.link: RedisConnection | None = None
        self.pattern = KeyPattern.parse(context.settings.key)
        self._name = context.name
        self._vitals = context.vitals
        self._settings = context.settings
        self._access = access
        self._store = store
        self._clock = context.clock
        self._metrics = context.metrics
        self.activity = Activity(context.clock, random.random)
        self._counting_key = counting_key
        self._probe_key = self.pattern.key(PROBE_ID)
        self._emit = context.emit
        self._epoch: DataEpoch | None = None
        requeued = context.settings.requeued
        self.requeue = (
            Requeuer(context, requeued, store, back_at=lambda: self.back_at, activity=self.activity)
            if requeued is not None
            else None
        )
        self.restorer = Restorer(context, self.pattern, store)
        self.capture = Capture(
            context,
            self.pattern,
            store,
            on_lost=lambda epoch: self.reconciler.lose(epoch, "flush"),
            on_other_key=self.requeue.changed if self.requeue else lambda key: None,
        )
        self.reconciler = Reconciler(
            context, self.pattern, store, self.capture, self.restorer, self.requeue
        )

    @property
    def whole(self) -> bool:
        """Whether Redis answers and holds everything that we know of."""
        return self.state == "live" and self._epoch is not None and not self._epoch.lost

    def _keys_changed(self, keys: list[bytes]) -> None:
        self.activity.touch()
        self.capture.changed(keys)

    # --- requests --------------------------------------------------------------------------------

    async def sync(self) -> Compared:
        """Compare Redis and the store in full. Raises `RedisLost` while Redis is unreachable,
        `CommandRefused` or `StoreSilent` if one of them refuses."""
        self._require_connection()
        return await self.reconciler.sync()

    async def restore(self) -> RestoreCounts:
        """Restore every live job that is missing. Raises the same as `sync`."""
        self._require_connection()
        return await self.reconciler.restore()

    async def put_one_back(self, row: Row) -> bool:
        """Restore one job if it is missing; returns whether it is in Redis now. Raises
        `RedisLost`."""
        if self.link is None:
            raise RedisLost(self.why)
        return await self.restorer.put_one_back(self.link, row)

    def _require_connection(self) -> None:
        if self.link is None:
            raise RedisLost(self.why)

    # --- sessions --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run one session after another until cancelled."""
        await self._load_meta()
        pause = RECONNECT[0]
        try:
            while True:
                began = time.monotonic()
                why = await self._session()
                self._disconnected(why)
                if time.monotonic() - began > RECONNECT[1]:
                    pause = RECONNECT[0]
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
                pause = min(pause * 2, RECONNECT[1])
        finally:
            self.reconciler.give_up("stopped")
            self.state, self.why = "stopped", "stopped"

    async def _session(self) -> str:
        """Run one connection from opening to loss; returns why it ended."""
        prefixes = [self.pattern.prefix, *(self.requeue.prefixes if self.requeue else ())]
        epoch: list[DataEpoch] = []

        def flushed() -> None:
            for one in epoch:
                self.reconciler.lose(one, "flush")

        link = RedisConnection(
            self._access,
            prefixes,
            self._vitals,
            on_changed=self._keys_changed,
            on_flushed=flushed,
            on_event=self.capture.happened,
        )
        try:
            await link.open()
            self._epoch = await self._begin(link)
            self.capture.known_all_until = self.reconciler.known_all_until
            epoch.append(self._epoch)
            self.link = link
            self._connected(link)
            name = f"mirror:{self._name}"
            maintenance = [
                (f"{name}:capture", self.capture.run(link, epoch[0])),
                (f"{name}:keep", self.reconciler.run(link, epoch[0])),
                (f"{name}:heartbeat", self._heartbeat(link, epoch[0])),
            ]
            if link.finder is not None:
                maintenance.append((f"{name}:master", self._follow_master(link)))
            if self.requeue is not None:
                maintenance.append((f"{name}:requeue", self.requeue.follow(link, epoch[0])))
            await _until_one_ends(maintenance)
        except RedisLost as lost:
            return str(lost)
        except Exception as unexpected:
            # A bug must not stop the mirror for good: log it and reconnect.
            log.exception("mirror session failed", extra={"mirror": self._name})
            self._vitals.tasks.died(f"mirror:{self._name}:session")
            return f"internal error: {unexpected!r}"
        finally:
            if self.link is not None:
                self.known_until = self._clock.time() - (time.monotonic() - link.last_read_at)
                if self.capture.known_all_until is None:
                    self.reconciler.set_known_until(self.known_until)
            self.link = self._epoch = None
            await link.close()
        return "closed"

    async def _begin(self, link: RedisConnection) -> DataEpoch:
        info = await link.info()
        if info.loading:
            raise RedisLost("still loading its data")
        if info.replica:
            raise RedisLost("READONLY: it is a replica and takes no writes")
        await self._check_rights(link)
        epoch = DataEpoch(info, cause="start")
        before = self.reconciler.last_info
        if (
            before is None
            or not same_history(before, info)
            or continuity(before, info) is Continuity.BROKEN
        ):
            same_server = before is not None and before.run_id == info.run_id
            epoch.lose("start" if before is None else "flush" if same_server else "restart")
            if self.state == "starting" and before is not None and not same_server:
                self._note_return()  # it restarted while this process was not running
        elif before is not None:
            # Keys evicted since then must still count as evicted, not as deleted.
            epoch.info = before
            epoch.old_data = not self.reconciler.compared
        return epoch

    async def _check_rights(self, link: RedisConnection) -> None:
        """Log one warning per missing right, and again only when the set changes."""
        rights = needed(self._probe_key, self._settings.index, self._counting_key)
        replies = await link.call(*(right.command for right in rights))
        lacking = missing(rights, replies, link.refused)
        if lacking != self.missing_rights:
            for right in lacking:
                log.warning(
                    "redis right missing",
                    extra={
                        "mirror": self._name,
                        "right": right.name,
                        "without": right.without,
                        "reason": link.refused.get(right.name),
                    },
                )
            if not lacking:
                log.info("redis rights complete", extra={"mirror": self._name})
        self.missing_rights = lacking

    def _connected(self, link: RedisConnection) -> None:
        came_back = self.state == "down"
        self.state, self.why, self.since = "live", "", self._clock.time()
        self.first_contact.set()
        if came_back:
            self._note_return()
            self._emit("redis_back", {"capture": link.mode})
        self._metrics.degraded("redis", False)
        log.info("mirror follows redis", extra={"mirror": self._name, "capture": link.mode})

    def _note_return(self) -> None:
        """Remember when Redis came back, across restarts of this process too: the breakers of the
        app and its workers may stay open for a while."""
        self.back_at = self._clock.monotonic()
        self._store.set_meta("redis_back_at", f"{self._clock.time():.3f}")

    def _disconnected(self, why: str) -> None:
        self.reconciler.give_up(why)
        if self.state != "down":
            self.since = self._clock.time()
            self._metrics.degraded("redis", True)
            log.warning("mirror lost redis", extra={"mirror": self._name, "reason": why})
            self._emit("redis_lost", {"reason": why})
        self.state, self.why = "down", why
        self.first_contact.set()

    async def _heartbeat(self, link: RedisConnection, epoch: DataEpoch) -> None:
        looked_at, beat_at = self._clock.monotonic(), -math.inf
        # A write without effect proves liveness like a PING, and also that writes are accepted.
        beat: Command = write_probe(self._probe_key)
        while True:
            now = self._clock.monotonic()
            if not self.activity.due(beat_at, HEARTBEAT, IDLE_HEARTBEAT):
                if await happened(link.lost, HEARTBEAT):
                    raise RedisLost(link.why_lost)
                continue
            beat_at = now
            (reply,) = await link.call(beat, patience=link.at_least(HEARTBEAT_PATIENCE))
            if no_permission(reply):
                beat = ("PING",)
            refusal = refuses_writes(reply)
            if refusal is not None and refusal.startswith("READONLY"):
                raise RedisLost("READONLY: it became a replica")
            self._note_write_refusal(refusal)
            self.capture.absences.evictions.report(time.monotonic())
            if self.activity.due(looked_at, FLUSH_LOOK, IDLE_FLUSH_LOOK):
                await self._check_for_flush(link, epoch)
                looked_at = self._clock.monotonic()
            if await happened(link.lost, HEARTBEAT):
                raise RedisLost(link.why_lost)

    def _note_write_refusal(self, refusal: str | None) -> None:
        before, self.refusing = self.refusing, refusal
        if (before is None) is (refusal is None):
            return
        self._metrics.degraded("redis", refusal is not None)
        if refusal is not None:
            log.error("redis refuses writes", extra={"mirror": self._name, "reason": refusal})
            self._emit("obstacle", {"reason": f"Redis refuses writes: {refusal}"})
        else:
            self._note_return()
            log.info("redis takes writes again", extra={"mirror": self._name})
            self._emit("obstacle_gone", {})

    async def _follow_master(self, link: RedisConnection) -> None:
        """Watch for a failover: a demoted master keeps its connections open for ten seconds."""
        assert link.finder is not None
        while await link.leads_to_master():
            await link.finder.switched(MASTER_LOOK)
        raise RedisLost(link.why_lost)

    async def leads_to_master(self) -> bool:
        """Whether we are connected to the current master; asks the Sentinels if there are any."""
        return self.link is not None and await self.link.leads_to_master()

    async def _check_for_flush(self, link: RedisConnection, epoch: DataEpoch) -> None:
        """Detect flushes by counters: no capture mode reports SWAPDB, only tracking reports
        FLUSHALL and FLUSHDB."""
        before = epoch.info
        info = await link.info()
        if info.replica:
            raise RedisLost("READONLY: it became a replica")
        flushes = info.flushes
        # Needed to distinguish a deletion from earlier evictions.
        await renew_mark(link, epoch, info)
        if epoch.lost or epoch.info is not before or None in (flushes, before.flushes):
            return  # already known, refreshed meanwhile, or not reported by this server
        if flushes != before.flushes:
            self.reconciler.lose(epoch, "flush")

    async def _load_meta(self) -> None:
        """Read back what the previous process knew about Redis."""
        try:
            meta = dict(await self._store.table(sql.META))
            if "redis_back_at" in meta:
                ago = self._clock.time() - float(meta["redis_back_at"])
                self.back_at = self._clock.monotonic() - max(0.0, ago)
        except (StoreSilent, TypeError, ValueError):
            self.reconciler.last_info = None
        else:
            self.reconciler.load(meta)


async def _until_one_ends(maintenance: list[tuple[str, Coroutine[object, object, None]]]) -> None:
    """Run all until one ends, usually by an exception; cancel the others and raise it."""
    tasks = [asyncio.create_task(coroutine, name=name) for name, coroutine in maintenance]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    # A bug matters more than the connection loss that it may have caused.
    failures = [one for one in outcomes if isinstance(one, Exception)]
    failures.sort(key=lambda failure: isinstance(failure, RedisLost))
    for failure in failures:
        raise failure
