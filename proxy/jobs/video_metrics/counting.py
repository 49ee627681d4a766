"""Counts pipeline events: each event exactly once in the whole fleet.

1. Events are stored together with the version that contains them (`sql.PUT`). Here they are
   settled: counted by us, counted by another sidecar, or too old to count.
2. One sidecar counts; it locks each event in Redis before it counts it (`lease.py`). The others
   only read locks and settle what another sidecar has locked.
3. A lock does not mean counted. An event that we find locked by ourselves was locked before a crash
   and is counted now. Event, outcome and totals are one transaction of the store, and a scrape sees
   committed totals only. So a crash at any point neither repeats nor loses an event.
4. If locks may be lost, every sidecar publishes what it has settled before anyone counts again.
5. Locks live twice as long as `NEWS`. Events that are older than `NEWS`, or than this store, are
   history and never counted. So neither an expired lock nor a sidecar with an empty store leads to
   an event being counted twice.
6. While Redis is unreachable, no sidecar locks events and none takes over.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from proxy.config.mirrors import JobFields
from proxy.core.waiting import happened, settled
from proxy.jobs.context import MirrorContext
from proxy.jobs.document import JobDocument
from proxy.jobs.redis.activity import Activity
from proxy.jobs.redis.connection import CommandRefused, RedisConnection, RedisLost
from proxy.jobs.store import sql
from proxy.jobs.store.schema import StoreSilent
from proxy.jobs.store.store import JobStore
from proxy.jobs.video_metrics.events import MOST_EVENTS, EventReader, PipelineEvent, measured_input
from proxy.jobs.video_metrics.lease import ANOTHERS, OURS, CountingLease
from proxy.jobs.video_metrics.metrics import Counted, PipelineMetrics
from proxy.jobs.video_metrics.totals import Draft, Example, Totals

log = logging.getLogger(__name__)

TICK = 1.0  # seconds between two checks without new events
BATCH_PAUSE = 0.1  # seconds in which new events accumulate before they are settled
BATCH = 256  # events settled at once: about three milliseconds of the loop's time
BETTER_WORD = 5.0  # seconds that an event waits for a more precise version
NEWS = 24 * 3600.0  # seconds after which an event is history
PRESUMED = 60.0  # seconds after which what the holder has not claimed was claimed in a lost Redis
SURVEY = 2.0  # seconds between two counts of active jobs
REMEMBERED = 8192  # jobs whose events are known to be in the store

MINE, THEIRS, HISTORY = OURS, ANOTHERS, 3  # outcomes, as `migrations.py` has them


@dataclass(frozen=True, slots=True)
class NewEvents:
    """Events of one version on their way into the store, as `sql.PUT` reads them."""

    job_id: str
    names: dict[str, bool]
    text: str


@dataclass(frozen=True, slots=True)
class _Pending:
    job_id: str
    event: str
    family: str
    labels: tuple[str, ...]
    value: float
    at: float
    due: float


class EventCounting:
    """One mirror's counting. What `await begin()` gives is a task's, to be cancelled at the end.

    `link` gives the connection to Redis while there is one.
    """

    def __init__(
        self,
        context: MirrorContext,
        fields: JobFields,
        store: JobStore,
        link: Callable[[], RedisConnection | None],
        metrics: PipelineMetrics,
        *,
        activity: Activity | None = None,
    ) -> None:
        self.since = math.inf  # Unix seconds: what happened before is history
        self._name = name = context.name
        self._reader = EventReader(fields)
        self._store = store
        self._clock = clock = context.clock
        self._totals = Totals(fields.stages, fields.validation_counts)
        self._shown = Counted(self._totals)
        metrics.show(name, self._shown)
        self._activity = activity
        self._claims = CountingLease(
            name,
            context.family,
            link,
            clock,
            key_prefix=context.key_prefix,
            activity=activity,
        )
        self._remembered: OrderedDict[str, dict[str, bool]] = OrderedDict()
        self._wake = asyncio.Event()
        self._loaded = False
        self._look_at_file = False
        self._surveyed_at = -math.inf
        self._obstacle: str | None = None

    # --- on the way into the store (synchronous) ------------------------------------------------

    def new_events(self, snapshot: JobDocument, now: float) -> NewEvents | None:
        """The events of a version that are not known to be in the store already."""
        known = self._remembered.get(snapshot.job_id)
        try:
            events = self._reader.events(snapshot, known)
        except Exception:
            # A bug here must cost only the document's metrics, never the job.
            log.exception("job not read for metrics", extra={"job_id": snapshot.job_id})
            return None
        return _new_events(snapshot.job_id, events, now) if events else None

    def measured(self, job_id: str, seconds: float) -> None:
        """Record the playing time of the upload of a job whose version is already queued."""
        now = self._clock.time()
        event = measured_input(seconds, now)
        if event is None:
            return
        new_events = _new_events(job_id, [event], now)
        params = {"job_id": job_id, "events": new_events.text, "most_events": MOST_EVENTS}

        def done(ok: bool) -> None:
            if ok:
                self.kept(new_events)

        self._store.execute(sql.ADD_EVENTS, params, done, key=job_id)

    def kept(self, new_events: NewEvents) -> None:
        """The version and its events are committed."""
        known = self._remembered.setdefault(new_events.job_id, {})
        known.update(new_events.names)
        self._remembered.move_to_end(new_events.job_id)
        if len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        self._wake.set()

    def store_has_gap(self) -> None:
        """The store may be another file now."""
        self._remembered.clear()
        self._look_at_file = True
        self._wake.set()

    @property
    def counts(self) -> bool:
        """Whether this sidecar holds the counting lease."""
        return self._claims.holds

    # --- lifecycle -------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Read what there is, before `run`; a store that is silent now is read later."""
        with suppress(StoreSilent):
            await self.load()

    async def load(self) -> None:
        """Take up what the store has; raises `StoreSilent`."""
        meta = dict(await self._store.table(sql.META))
        if "pipeline_owner" in meta and "pipeline_since" in meta:
            self._totals.load(await self._store.table(sql.TOTALS))
            self._claims.owner = meta["pipeline_owner"]
            self.since = float(meta["pipeline_since"])
        else:
            self.since = self._clock.time()
            self._begin_file()
            self._claims.newcomer = True
        self._loaded = True

    def _begin_file(self) -> None:
        """A store that was never counted from gets an owner of its own: what the one before had
        claimed must not look as if it were ours and still to be counted."""
        self._claims.owner = uuid.uuid4().hex[:16]
        self._store.set_meta("pipeline_owner", self._claims.owner)
        self._store.set_meta("pipeline_since", repr(self.since))
        self._store.execute(
            sql.SETTLE, {"settled": "[]", "totals": json.dumps(self._totals.rows())}
        )

    async def run(self) -> None:
        """Settle what comes, until cancelled."""
        while True:
            if await happened(self._wake, TICK):
                await asyncio.sleep(BATCH_PAUSE)
            self._wake.clear()
            try:
                await self._round()
            except (RedisLost, StoreSilent):
                self._claims.silent()  # the mirror itself reports both
            except CommandRefused as refused:
                self._blocked_by(str(refused))
                self._claims.stand_down()
            else:
                self._blocked_by(None)
            self._show()

    def _blocked_by(self, obstacle: str | None) -> None:
        if obstacle == self._obstacle:
            return
        self._obstacle = obstacle
        if obstacle is None:
            log.info("pipeline counted again", extra={"mirror": self._name})
        else:
            log.error("pipeline not counted", extra={"mirror": self._name, "reason": obstacle})

    # --- one round -------------------------------------------------------------------------------

    async def _round(self) -> None:
        if not self._loaded:
            await self.load()
        if self._look_at_file:
            await self._check_file()
        await self._ask_for_lease()
        if self._claims.must_publish:
            await self._publish()
        while True:
            now = self._clock.time()
            rows = await self._store.table(sql.PENDING, (now, BATCH))
            if rows and self._activity is not None:
                self._activity.touch()
            if not rows or not await self._settle([_read(row) for row in rows], now):
                break
            await self._ask_for_lease()
            await self._survey()
        await self._survey()

    async def _check_file(self) -> None:
        meta = dict(await self._store.table(sql.META))
        if meta.get("pipeline_owner") != self._claims.owner:
            self._begin_file()
        self._look_at_file = False

    async def _ask_for_lease(self) -> None:
        # A sidecar that cannot commit what it counts leaves the counting to another one.
        await self._claims.ask(able=self._store.degraded is None)
        self._show()

    async def _publish(self) -> None:
        """Claim whatever was settled lately, by whomever; what is claimed stays as it is."""
        after = ("", "")
        since = self._clock.time() - NEWS
        self._claims.must_publish = False  # first, as the lease may be lost again meanwhile
        try:
            while page := await self._store.table(sql.SETTLED, (*after, since, BATCH)):
                after = page[-1]
                await self._claims.claim(page, settled_before=True)
                await self._ask_for_lease()
        except BaseException:
            self._claims.must_publish = True
            raise

    # --- settling --------------------------------------------------------------------------------

    async def _settle(self, events: Sequence[_Pending], now: float) -> bool:
        """Whether a look at more events is worth while: nothing had to be left undecided."""
        oldest = max(self.since, now - NEWS)
        new_events = [event for event in events if event.at >= oldest]
        outcomes = [(event, HISTORY) for event in events if event.at < oldest]
        undecided = False
        draft = self._totals.draft()
        owners = await self._claims.claim([(event.job_id, event.event) for event in new_events])
        for event, owner in zip(new_events, owners, strict=True):
            if owner == MINE:
                draft.count(
                    event.family, event.labels, event.value,
                    Example(event.job_id, event.value, event.at),
                )  # fmt: skip
                outcomes.append((event, MINE))
            elif owner == THEIRS or self._presumed(event, now):
                outcomes.append((event, THEIRS))
            else:
                undecided = True
        return await self._commit(outcomes, draft) and not undecided

    def _presumed(self, event: _Pending, now: float) -> bool:
        """Whether another sidecar, which sees what we see, must have dealt with it long ago: its
        claim was lost with a Redis that is no more."""
        there = self._claims.other_since()
        return there is not None and min(there, now - event.due) > PRESUMED

    async def _commit(self, outcomes: list[tuple[_Pending, int]], draft: Draft) -> bool:
        """Whether outcomes and totals were written; waits as long as SQLite takes none."""
        if not outcomes:
            return True
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def done(ok: bool) -> None:
            # Here, not after the wait: it must be seen even when the wait was cancelled.
            if ok:
                draft.adopt()
            if not written.done():
                written.set_result(ok)

        self._store.execute(
            sql.SETTLE,
            {
                "settled": json.dumps([(one.job_id, one.event, how) for one, how in outcomes]),
                "totals": json.dumps(draft.rows()),
            },
            done,
        )
        # To the end, whatever Redis does: who settled these again meanwhile would count them twice.
        while not await settled(written, TICK):
            with suppress(RedisLost, CommandRefused):
                await self._ask_for_lease()
        return written.result()

    # --- what else is shown ----------------------------------------------------------------------

    async def _survey(self) -> None:
        now = self._clock.monotonic()
        if now - self._surveyed_at < SURVEY:
            return
        self._surveyed_at = now
        (self._shown.pending,) = await self._store.column(sql.PENDING_COUNT)
        if self.counts:
            (active,) = await self._store.column(sql.ACTIVE, (self._clock.time(),))
            self._shown.active = active
            self._show()

    def _show(self) -> None:
        self._shown.counting = self.counts
        if not self.counts:
            self._shown.active = None  # shown by the sidecar that counts


def _new_events(job_id: str, events: Sequence[PipelineEvent], now: float) -> NewEvents:
    names = {event.name: event.sure for event in events}
    return NewEvents(job_id, names, json.dumps([_stored(one, now) for one in events]))


def _stored(event: PipelineEvent, now: float) -> tuple[object, ...]:
    due = now if event.sure else now + BETTER_WORD
    at = now if event.at is None else event.at
    labels = json.dumps(event.labels)
    return (event.name, event.family, labels, event.value, at, due, int(event.sure))


def _read(row: Sequence[Any]) -> _Pending:
    job_id, event, family, labels, value, at, due = row
    return _Pending(job_id, event, family, tuple(json.loads(labels)), value, at, due)
