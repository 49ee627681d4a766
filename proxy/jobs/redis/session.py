"""Keeps one mirror in touch with Redis: connect, compare, restore, follow, and again.

A session is the life of one connection. It begins by asking whether the server still has the data
of the last session (`restore.continuity`); if not, or if a flush is told later, everything live is
put back before anything is concluded from absence. Then Redis and store are compared in full, once
and every `sync_every`. While the session lasts, changes are captured at once.
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
from proxy.jobs.events import Tell, silence
from proxy.jobs.metrics import MirrorMetrics
from proxy.jobs.redis.activity import Activity
from proxy.jobs.redis.capture import Capture, renew_mark
from proxy.jobs.redis.comparison import Compared, name_keys, name_missing
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

HEARTBEAT = 0.5  # seconds between two signs of life
IDLE_HEARTBEAT = 20.0  # the same while nothing happens
HEARTBEAT_PATIENCE = 1.5  # seconds without one: the server is hung
MASTER_LOOK = 5.0  # seconds between two questions to the Sentinels, who announce a switch as well
FLUSH_LOOK = 5.0  # seconds between two looks for a flush that nobody told
IDLE_FLUSH_LOOK = 120.0  # the same while nothing happens
RECONNECT = (0.05, 1.0)  # seconds: the first and the longest pause between two attempts
SCAN_PAUSE = (1.0, 10.0)  # without change messages: at least so long, and so many scan durations
ALL_GONE = 3  # jobs that are missing at least where a flush is guessed at
OBSTACLE_PAUSE = 0.5  # seconds between two attempts while store or server refuse


class RedisSession:
    """One mirror's task. `await run()` until cancelled; the rest may be called at any time."""

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
        tell: Tell = silence,
        counting_key: str | None = None,
    ) -> None:
        self.state: State = "starting"
        self.first_word = asyncio.Event()  # Redis has answered, or failed to, for the first time
        self.why = "not connected yet"
        self.since = clock.time()
        self.back_at: float | None = None  # monotonic: when Redis came back after having been away
        self.known_until: float | None = None  # Unix: when Redis was lost, None while never seen
        self.refusing: str | None = None  # why Redis, though it lives, takes no writes from anybody
        self.missing_rights: list[MissingRight] = []
        self.obstacle: str | None = None  # why nothing is restored or compared, though Redis lives
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
        self._tell = tell
        self._facts: ServerInfo | None = None
        self._known_all_until = 0.0  # Unix: when nothing in Redis was unknown to us
        self._compared = False  # whether all that `_facts` had was compared, too
        self._life: DataEpoch | None = None
        self._kick = asyncio.Event()
        self._sync_asked: list[asyncio.Future[Compared]] = []
        self._restore_asked: list[asyncio.Future[RestoreCounts]] = []
        requeued = settings.requeued
        self.requeue = (
            Requeuer(
                name,
                settings,
                requeued,
                store,
                clock,
                metrics,
                tell,
                key_prefix=key_prefix,
                back_at=lambda: self.back_at,
                activity=self.activity,
            )
            if requeued is not None
            else None
        )
        self.restorer = Restorer(name, self.pattern, settings.index, store, clock, metrics, tell)
        self.capture = Capture(
            name,
            self.pattern,
            settings.index,
            store,
            clock,
            metrics,
            max_value=settings.max_value,
            hold_deletes=settings.hold_deletes,
            on_lost=lambda life: self._lose(life, "flush"),
            on_other_key=self.requeue.changed if self.requeue else lambda key: None,
        )

    @property
    def whole(self) -> bool:
        """Whether Redis answers, and has all that we know of."""
        return self.state == "live" and self._life is not None and not self._life.lost

    def _changed(self, keys: list[bytes]) -> None:
        self.activity.stir()
        self.capture.changed(keys)

    # --- asked from outside ----------------------------------------------------------------------

    async def sync(self) -> Compared:
        """Compare Redis and the store in full, now. Raises `RedisLost` while Redis is away,
        `CommandRefused` and `StoreSilent` when one of them does not let us."""
        return await self._ask(self._sync_asked)

    async def restore(self) -> RestoreCounts:
        """Put back every live job that is missing. Raises as `sync`."""
        return await self._ask(self._restore_asked)

    async def put_one_back(self, row: Row) -> bool:
        """Whether one job is in Redis now, put back or there already. Raises `RedisLost`."""
        if self.link is None:
            raise RedisLost(self.why)
        return await self.restorer.put_one_back(self.link, row)

    def fill_gap(self, reason: str) -> None:
        """The store lost something: compare in full soon."""
        log.warning("store has a gap", extra={"mirror": self._name, "reason": reason})
        self._sync_asked.append(asyncio.get_running_loop().create_future())
        self._kick.set()

    async def _ask(self, asked: list[asyncio.Future[_T]]) -> _T:
        if self.link is None:
            raise RedisLost(self.why)
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        asked.append(future)
        self._kick.set()
        return await future

    # --- sessions --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Sessions, one after the other, until cancelled."""
        await self._load_facts()
        pause = RECONNECT[0]
        try:
            while True:
                began = time.monotonic()
                why = await self._session()
                self._gone(why)
                if time.monotonic() - began > RECONNECT[1]:
                    pause = RECONNECT[0]
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
                pause = min(pause * 2, RECONNECT[1])
        finally:
            self._give_up_waiting("stopped")
            self.state, self.why = "stopped", "stopped"

    async def _session(self) -> str:
        """One connection, from its opening to its loss; returns why it ended."""
        prefixes = [self.pattern.prefix, *(self.requeue.prefixes if self.requeue else ())]
        life: list[DataEpoch] = []

        def flushed() -> None:
            for one in life:
                self._lose(one, "flush")

        link = RedisConnection(
            self._factory,
            prefixes,
            self._vitals,
            on_changed=self._changed,
            on_flushed=flushed,
            mode=self._mode,
            on_event=self.capture.happened,
        )
        try:
            await link.open()
            self._life = await self._begin(link)
            self.capture.known_all_until = self._known_all_until
            life.append(self._life)
            self.link = link
            self._here(link)
            name = f"mirror:{self._name}"
            maintenance = [
                (f"{name}:capture", self.capture.run(link, life[0])),
                (f"{name}:keep", self._keep(link, life[0])),
                (f"{name}:heartbeat", self._heartbeat(link, life[0])),
            ]
            if link.finder is not None:
                maintenance.append((f"{name}:master", self._follow_master(link)))
            if self.requeue is not None:
                maintenance.append((f"{name}:requeue", self.requeue.follow(link, life[0])))
            await _until_one_ends(maintenance)
        except RedisLost as lost:
            return str(lost)
        except Exception as unexpected:
            # A fault of ours must not end the mirror for good: say it, and begin anew.
            log.exception("mirror session failed", extra={"mirror": self._name})
            self._vitals.tasks.died(f"mirror:{self._name}:session")
            return f"internal error: {unexpected!r}"
        finally:
            if self.link is not None:
                self.known_until = self._clock.time() - (time.monotonic() - link.heard_at)
                if self.capture.known_all_until is None:
                    self._knew_all(self.known_until)
            self.link = self._life = None
            await link.close()
        return "closed"

    async def _begin(self, link: RedisConnection) -> DataEpoch:
        facts = await link.facts()
        if facts.loading:
            raise RedisLost("still loading its data")
        if facts.replica:
            raise RedisLost("READONLY: it is a replica and takes no writes")
        await self._look_at_rights(link)
        life = DataEpoch(facts, cause="start")
        before = self._facts
        if (
            before is None
            or not same_history(before, facts)
            or continuity(before, facts) is Continuity.BROKEN
        ):
            same_server = before is not None and before.run_id == facts.run_id
            life.lose("start" if before is None else "flush" if same_server else "restart")
            if self.state == "starting" and before is not None and not same_server:
                self._note_return()  # it restarted while this process did not run
        elif before is not None:
            # What was evicted since then must still count as evicted, not as deleted.
            life.facts = before
            life.old_data = not self._compared
        return life

    async def _look_at_rights(self, link: RedisConnection) -> None:
        """One warning for each right that is missing, and again only when that changes."""
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

    def _here(self, link: RedisConnection) -> None:
        came_back = self.state == "down"
        self.state, self.why, self.since = "live", "", self._clock.time()
        self.first_word.set()
        if came_back:
            self._note_return()
            self._tell("redis_back", {"capture": link.mode})
        self._metrics.degraded("redis", False)
        log.info("mirror follows redis", extra={"mirror": self._name, "capture": link.mode})

    def _note_return(self) -> None:
        """Redis is back: the breakers of the app and its workers may be open still, also when this
        process is killed and started again meanwhile."""
        self.back_at = self._clock.monotonic()
        self._store.set_meta("redis_back_at", f"{self._clock.time():.3f}")

    def _gone(self, why: str) -> None:
        self._give_up_waiting(why)
        if self.state != "down":
            self.since = self._clock.time()
            self._metrics.degraded("redis", True)
            log.warning("mirror lost redis", extra={"mirror": self._name, "reason": why})
            self._tell("redis_lost", {"reason": why})
        self.state, self.why = "down", why
        self.first_word.set()

    def _give_up_waiting(self, why: str) -> None:
        _fail([*self._sync_asked, *self._restore_asked], RedisLost(why))
        self._sync_asked.clear()
        self._restore_asked.clear()

    def _lose(self, life: DataEpoch, cause: str) -> None:
        life.lose(cause)
        self._kick.set()

    async def _heartbeat(self, link: RedisConnection, life: DataEpoch) -> None:
        looked_at, beat_at = self._clock.monotonic(), -math.inf
        # A write that does nothing is a sign of life as good as a PING, and of more than life.
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
            self._takes_writes(refusal)
            self.capture.evictions.report(time.monotonic())
            if self.activity.due(looked_at, FLUSH_LOOK, IDLE_FLUSH_LOOK):
                await self._look_for_flush(link, life)
                looked_at = self._clock.monotonic()
            if await happened(link.lost, HEARTBEAT):
                raise RedisLost(link.why_lost)

    def _takes_writes(self, refusal: str | None) -> None:
        before, self.refusing = self.refusing, refusal
        if (before is None) is (refusal is None):
            return
        self._metrics.degraded("redis", refusal is not None)
        if refusal is not None:
            log.error("redis refuses writes", extra={"mirror": self._name, "reason": refusal})
            self._tell("obstacle", {"reason": f"Redis refuses writes: {refusal}"})
        else:
            self._note_return()
            log.info("redis takes writes again", extra={"mirror": self._name})
            self._tell("obstacle_gone", {})

    async def _follow_master(self, link: RedisConnection) -> None:
        """A master that lives on as the old one does not end its connections for ten seconds."""
        assert link.finder is not None
        while await link.leads_to_master():
            await link.finder.switched(MASTER_LOOK)
        raise RedisLost(link.why_lost)

    async def leads_to_master(self) -> bool:
        """Whether Redis' answers are the master's; asked anew where there are Sentinels."""
        return self.link is not None and await self.link.leads_to_master()

    async def _look_for_flush(self, link: RedisConnection, life: DataEpoch) -> None:
        """SWAPDB is told in no way of capture, and a flush only by tracking."""
        before = life.facts
        facts = await link.facts()
        if facts.replica:
            raise RedisLost("READONLY: it became a replica")
        flushes = facts.flushes
        # So that a deletion can be told from the evictions before it.
        await renew_mark(link, life, facts)
        if life.lost or life.facts is not before or None in (flushes, before.flushes):
            return  # known already, looked at anew meanwhile, or the server keeps silent about it
        if flushes != before.flushes:
            self._lose(life, "flush")

    # --- restore and comparison ------------------------------------------------------------------

    async def _keep(self, link: RedisConnection, life: DataEpoch) -> None:
        """Put back what was lost, compare, wait for the next reason to; until the link is lost."""
        while True:
            self._kick.clear()
            began = time.monotonic()
            restores, self._restore_asked = self._restore_asked, []
            syncs, self._sync_asked = self._sync_asked, []
            try:
                while life.lost:
                    await self._make_good(link, life)
                if restores:
                    # What was deleted, and not noticed yet, must not come back.
                    await self._compare(link, life)
                    _resolve(restores, await self.restorer.put_all_back(link, "manual"))
                compared = await self._compare(link, life)
                if compared is None:
                    self._sync_asked += syncs  # a loss came between; `_kick` is set
                else:
                    _resolve(syncs, compared)
            except (StoreSilent, CommandRefused) as obstacle:
                # Nothing can be given back or compared now; capture goes on meanwhile. It is tried
                # again, but who asked for it is not kept waiting.
                self._blocked_by(str(obstacle))
                _fail([*restores, *syncs], obstacle)
                await asyncio.sleep(OBSTACLE_PAUSE)
                continue
            except BaseException:  # also cancelled, when another part found the connection lost
                self._restore_asked += restores
                self._sync_asked += syncs
                raise
            self._blocked_by(None)
            pause = self._settings.sync_every
            if link.mode == "scanning":
                pause = min(pause, max(SCAN_PAUSE[0], SCAN_PAUSE[1] * (time.monotonic() - began)))
            await happened(self._kick, pause)

    def _blocked_by(self, obstacle: str | None) -> None:
        if obstacle == self.obstacle:
            return
        self.obstacle = obstacle
        if obstacle is None:
            log.info("mirror compares again", extra={"mirror": self._name})
            self._tell("obstacle_gone", {})
        else:
            log.error(
                "mirror cannot restore or compare",
                extra={"mirror": self._name, "reason": obstacle},
            )
            self._tell("obstacle", {"reason": obstacle})

    async def _make_good(self, link: RedisConnection, life: DataEpoch) -> None:
        """Put back what one loss took; a loss meanwhile leaves `life.lost` set.

        From the end on, a key that is missing was deleted. That has to be on the disk by then: else
        a kill of the proxy before the comparison is over would bring back what is deleted now.
        """
        losses = life.losses
        life.facts = await link.facts()
        life.mark = None
        await self.restorer.put_all_back(link, life.cause)
        if self.requeue is not None:
            await self.requeue.put_back(link, life)
        self._remember(life, compared=False)
        await self._store.flushed(FLUSH_PATIENCE)
        life.restored = losses

    async def _compare(self, link: RedisConnection, life: DataEpoch) -> Compared | None:
        """Look at every key of the family, and at every job of the store that has no key; None
        when a loss was found instead."""
        began, before = time.monotonic(), replace(self.capture.counts)
        facts = await link.facts()
        # A server that hides INFO is the same one for as long as the connection lasts.
        if facts.run_id is not None and continuity(life.facts, facts) is Continuity.BROKEN:
            self._lose(life, "flush")
        if life.lost:
            return None
        named = self.capture.named
        keys = await name_keys(link, self.pattern, named, self.capture.odd_key)
        absent, of = await name_missing(link, self.pattern, named, self._store, self._clock)
        if facts.run_id is None and link.mode != "tracking" and absent > max(of / 2, ALL_GONE):
            self._lose(life, "flush")  # nothing else tells of it
            return None
        await self.capture.named.drained()
        await self._store.flushed(FLUSH_PATIENCE)
        if life.lost:
            return None  # the comparison meant nothing; `_kick` is set
        life.old_data = False
        if not absent:
            life.facts = facts
        self._remember(life, compared=True)
        self.last_sync = self._clock.time()
        self.capture.known_all_until = None
        self._knew_all(self.last_sync)
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

    def _knew_all(self, moment: float) -> None:
        self._known_all_until = moment
        self._store.set_meta("known_all_until", f"{moment:.3f}")

    def _remember(self, life: DataEpoch, *, compared: bool) -> None:
        """The server as it was when nothing was missing; `compared`: nor anything outdated."""
        self._facts, self._compared = life.facts, compared
        self._store.set_meta("facts", json.dumps(asdict(life.facts)))
        self._store.set_meta("compared", str(int(compared)))

    async def _load_facts(self) -> None:
        """What was known of the server when the process last ran."""
        try:
            known = dict(await self._store.table(sql.META))
            if "redis_back_at" in known:
                ago = self._clock.time() - float(known["redis_back_at"])
                self.back_at = self._clock.monotonic() - max(0.0, ago)
            self._known_all_until = float(known.get("known_all_until", 0.0))
            self._facts = ServerInfo(**json.loads(known["facts"]))
            self._compared = known.get("compared", "1") == "1"
        except (StoreSilent, KeyError, TypeError, ValueError):
            self._facts = None


async def _until_one_ends(maintenance: list[tuple[str, Coroutine[object, object, None]]]) -> None:
    """Run all until one ends, by an exception as a rule; cancel the others and raise it."""
    tasks = [asyncio.create_task(coroutine, name=name) for name, coroutine in maintenance]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    # A fault of ours matters more than the loss of the connection that it may have caused.
    failures = [one for one in outcomes if isinstance(one, Exception)]
    failures.sort(key=lambda failure: isinstance(failure, RedisLost))
    for failure in failures:
        raise failure


def _fail(futures: Sequence[asyncio.Future[Any]], error: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
            future.exception()  # nobody may be waiting


def _resolve(futures: list[asyncio.Future[_T]], result: _T) -> None:
    for future in futures:
        if not future.done():
            future.set_result(result)
