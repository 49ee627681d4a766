"""One mirror's Redis session: connect, restore, compare, follow changes, reconnect.

A session lasts as long as one connection. It first checks whether the server still has the data of
the last session (`restore_rules.continuity`). If not, or if a flush is detected later, every live
job is restored before a missing key is taken to mean anything. Then Redis and the store are
compared in full, once and every `sync_every`. Changes are captured all the while.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import time
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, TypeVar

from proxy.config.mirrors import Mirror as MirrorConfig
from proxy.core.clock import Clock
from proxy.core.vitals import Vitals
from proxy.jobs.document import KeyPattern
from proxy.jobs.events import EventSink, discard_event
from proxy.jobs.metrics import MirrorMetrics
from proxy.jobs.redis.activity import Activity
from proxy.jobs.redis.capture import Capture, renew_mark
from proxy.jobs.redis.comparison import Compared, queue_keys, queue_missing
from proxy.jobs.redis.connection import (
    CaptureMode,
    ClientFactory,
    Command,
    CommandRefused,
    RedisConnection,
    RedisLost,
    ServerInfo,
    no_permission,
    refuses_writes,
)
from proxy.jobs.redis.restore import FLUSH_PATIENCE, Restorer
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
from proxy.jobs.waiting import happened

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
SCAN_PAUSE = (1.0, 10.0)  # between scans: at least so many seconds, and so many scan durations
ALL_GONE = 3  # more missing jobs than this may mean an undetectable flush
OBSTACLE_PAUSE = 0.5  # seconds between two attempts while the store or the server refuses


class RedisSession:
    """A mirror's connection task: `run` until cancelled. The rest may be called at any time."""

    def __init__(
        self,
        name: str,
        settings: MirrorConfig,
        factory: ClientFactory,
        store: JobStore,
        clock: Clock,
        metrics: MirrorMetrics,
        *,
        mode: CaptureMode = "tracking",
        key_prefix: str = "",
        vitals: Vitals,
        emit: EventSink = discard_event,
        counting_key: str | None = None,
    ) -> None:
        self.state: State = "starting"
        self.first_contact = asyncio.Event()  # Redis has answered, or failed to, at least once
        self.why = "not connected yet"
        self.since = clock.time()
        self.back_at: float | None = None  # monotonic: when Redis last came back after an outage
        self.known_until: float | None = None  # Unix: when Redis was lost; None if never reached
        self.refusing: str | None = None  # why Redis, although up, refuses all writes
        self.missing_rights: list[MissingRight] = []
        self.obstacle: str | None = None  # why restore and comparison fail although Redis is up
        self.last_sync: float | None = None
        self.link: RedisConnection | None = None
        self.pattern = KeyPattern.parse(settings.key)
        self._name = name
        self._vitals = vitals
        self._settings = settings
        self._factory = factory
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._mode: CaptureMode = mode
        self.activity = Activity(clock, random.random)
        self._counting_key = counting_key
        self._probe_key = self.pattern.key(PROBE_ID)
        self._emit = emit
        self._last_info: ServerInfo | None = None
        self._known_all_until = 0.0  # Unix: when we last knew every job in Redis
        self._compared = False  # whether a full comparison has followed `_last_info`
        self._epoch: DataEpoch | None = None
        self._recheck = asyncio.Event()
        self._sync_requests: list[asyncio.Future[Compared]] = []
        self._restore_requests: list[asyncio.Future[RestoreCounts]] = []
        requeued = settings.requeued
        self.requeue = (
            Requeuer(
                name,
                settings,
                requeued,
                store,
                clock,
                metrics,
                emit,
                key_prefix=key_prefix,
                back_at=lambda: self.back_at,
                activity=self.activity,
            )
            if requeued is not None
            else None
        )
        self.restorer = Restorer(name, self.pattern, settings.index, store, clock, metrics, emit)
        self.capture = Capture(
            name,
            self.pattern,
            settings.index,
            store,
            clock,
            metrics,
            max_value=settings.max_value,
            hold_deletes=settings.hold_deletes,
            on_lost=lambda epoch: self._lose(epoch, "flush"),
            on_other_key=self.requeue.changed if self.requeue else lambda key: None,
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
        return await self._request(self._sync_requests)

    async def restore(self) -> RestoreCounts:
        """Restore every live job that is missing. Raises the same as `sync`."""
        return await self._request(self._restore_requests)

    async def put_one_back(self, row: Row) -> bool:
        """Restore one job if it is missing; returns whether it is in Redis now. Raises
        `RedisLost`."""
        if self.link is None:
            raise RedisLost(self.why)
        return await self.restorer.put_one_back(self.link, row)

    def fill_gap(self, reason: str) -> None:
        """The store lost data: schedule a full comparison."""
        log.warning("store has a gap", extra={"mirror": self._name, "reason": reason})
        self._sync_requests.append(asyncio.get_running_loop().create_future())
        self._recheck.set()

    async def _request(self, requests: list[asyncio.Future[_T]]) -> _T:
        if self.link is None:
            raise RedisLost(self.why)
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        requests.append(future)
        self._recheck.set()
        return await future

    # --- sessions --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run one session after another until cancelled."""
        await self._load_last_info()
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
            self._give_up_waiting("stopped")
            self.state, self.why = "stopped", "stopped"

    async def _session(self) -> str:
        """Run one connection from opening to loss; returns why it ended."""
        prefixes = [self.pattern.prefix, *(self.requeue.prefixes if self.requeue else ())]
        epoch: list[DataEpoch] = []

        def flushed() -> None:
            for one in epoch:
                self._lose(one, "flush")

        link = RedisConnection(
            self._factory,
            prefixes,
            self._vitals,
            on_changed=self._keys_changed,
            on_flushed=flushed,
            mode=self._mode,
            on_event=self.capture.happened,
        )
        try:
            await link.open()
            self._epoch = await self._begin(link)
            self.capture.known_all_until = self._known_all_until
            epoch.append(self._epoch)
            self.link = link
            self._connected(link)
            name = f"mirror:{self._name}"
            maintenance = [
                (f"{name}:capture", self.capture.run(link, epoch[0])),
                (f"{name}:keep", self._reconcile(link, epoch[0])),
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
                    self._set_known_until(self.known_until)
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
        before = self._last_info
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
            epoch.old_data = not self._compared
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
        self._give_up_waiting(why)
        if self.state != "down":
            self.since = self._clock.time()
            self._metrics.degraded("redis", True)
            log.warning("mirror lost redis", extra={"mirror": self._name, "reason": why})
            self._emit("redis_lost", {"reason": why})
        self.state, self.why = "down", why
        self.first_contact.set()

    def _give_up_waiting(self, why: str) -> None:
        _fail([*self._sync_requests, *self._restore_requests], RedisLost(why))
        self._sync_requests.clear()
        self._restore_requests.clear()

    def _lose(self, epoch: DataEpoch, cause: str) -> None:
        epoch.lose(cause)
        self._recheck.set()

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
            self.capture.evictions.report(time.monotonic())
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
            self._lose(epoch, "flush")

    # --- restore and comparison ------------------------------------------------------------------

    async def _reconcile(self, link: RedisConnection, epoch: DataEpoch) -> None:
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
                    _resolve(restores, await self.restorer.put_all_back(link, "manual"))
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
        await self.restorer.put_all_back(link, epoch.cause)
        if self.requeue is not None:
            await self.requeue.put_back(link, epoch)
        self._remember(epoch, compared=False)
        await self._store.flushed(FLUSH_PATIENCE)
        epoch.restored = losses

    async def _compare(self, link: RedisConnection, epoch: DataEpoch) -> Compared | None:
        """Check every key of the family and every stored job that has no key; None if this revealed
        a loss instead."""
        began, before = time.monotonic(), replace(self.capture.counts)
        info = await link.info()
        # A server that hides INFO is the same one as long as the connection lasts.
        if info.run_id is not None and continuity(epoch.info, info) is Continuity.BROKEN:
            self._lose(epoch, "flush")
        if epoch.lost:
            return None
        changes = self.capture.changes
        keys = await queue_keys(link, self.pattern, changes, self.capture.odd_key)
        absent, of = await queue_missing(link, self.pattern, changes, self._store, self._clock)
        if info.run_id is None and link.mode != "tracking" and absent > max(of / 2, ALL_GONE):
            self._lose(epoch, "flush")  # the only sign of it on such a server
            return None
        await self.capture.changes.drained()
        await self._store.flushed(FLUSH_PATIENCE)
        if epoch.lost:
            return None  # the comparison is void; `_recheck` is set
        epoch.old_data = False
        if not absent:
            epoch.info = info
        self._remember(epoch, compared=True)
        self.last_sync = self._clock.time()
        self.capture.known_all_until = None
        self._set_known_until(self.last_sync)
        self._metrics.last_sync.set(self.last_sync)
        log.debug(
            "mirror compared", extra={"mirror": self._name, "seconds": time.monotonic() - began}
        )
        counts = self.capture.counts
        return Compared(
            keys=keys,
            copied=counts.captured - before.captured,
            deleted=counts.deleted - before.deleted,
            missing=absent,
            seconds=round(time.monotonic() - began, 3),
        )

    def _set_known_until(self, moment: float) -> None:
        self._known_all_until = moment
        self._store.set_meta("known_all_until", f"{moment:.3f}")

    def _remember(self, epoch: DataEpoch, *, compared: bool) -> None:
        """Persist the server info from when nothing was missing; `compared`: nor outdated."""
        self._last_info, self._compared = epoch.info, compared
        self._store.set_meta("facts", json.dumps(asdict(epoch.info)))
        self._store.set_meta("compared", str(int(compared)))

    async def _load_last_info(self) -> None:
        """Read back what the previous process knew about the server."""
        try:
            known = dict(await self._store.table(sql.META))
            if "redis_back_at" in known:
                ago = self._clock.time() - float(known["redis_back_at"])
                self.back_at = self._clock.monotonic() - max(0.0, ago)
            self._known_all_until = float(known.get("known_all_until", 0.0))
            self._last_info = ServerInfo(**json.loads(known["facts"]))
            self._compared = known.get("compared", "1") == "1"
        except (StoreSilent, KeyError, TypeError, ValueError):
            self._last_info = None


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


def _fail(futures: Sequence[asyncio.Future[Any]], error: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
            future.exception()  # mark as retrieved: nobody may be waiting


def _resolve(futures: list[asyncio.Future[_T]], result: _T) -> None:
    for future in futures:
        if not future.done():
            future.set_result(result)
