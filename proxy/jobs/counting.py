"""Counts what jobs tell about the pipeline: each event once in the whole fleet, and for good.

1. Events lie in the ledger since the commit of the version that told them (`sql.PUT`). Here they
   are settled: counted by us, counted by another sidecar, or too old to be news.
2. One sidecar counts: who holds the lease in Redis. Who finds none gives the last holder a lease's
   time to come back, unless it was the holder itself, or its ledger is new and it knows nothing.
3. The lease saves work; what makes an event count once is its claim, a field in a hash of its job
   in Redis, taken by one atomic script that looks at the lease too. Who does not hold the lease
   only reads claims, and settles what another has claimed.
4. Claimed is not yet counted. An event that we find claimed by ourselves was claimed before a
   crash, and is counted now. Event, outcome and totals are one transaction of the ledger; a scrape
   sees totals that are committed. So a crash at any point neither repeats nor loses an event.
5. No lease may mean that Redis has lost its data. Who finds none, or starts, publishes as claimed
   what it knows to be settled; so whoever takes the lease then learns of it before it counts.
6. Claims outlive `NEWS` twice over, and what happened longer ago than that, or before this ledger
   began, is history: it is never counted. So neither a forgotten claim nor a sidecar with an empty
   ledger counts what may have been counted before.
7. While Redis is away nobody claims, and nobody takes over.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import uuid
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from proxy.clock import Clock
from proxy.config import schema
from proxy.jobs import sql
from proxy.jobs.ledger import Ledger
from proxy.jobs.ledger_file import LedgerSilent
from proxy.jobs.model import Snapshot
from proxy.jobs.pipeline_events import Event, EventReader
from proxy.jobs.pipeline_metrics import Counted, PipelineMetrics
from proxy.jobs.pipeline_totals import Draft, Example, Totals
from proxy.jobs.redis_side import Command, CommandError, Link, RedisLost
from proxy.jobs.waiting import happened, settled

log = logging.getLogger(__name__)

LEASE = 10.0  # seconds that a lease lasts without being renewed
RENEW = 3.0  # seconds between two renewals
TICK = 1.0  # seconds between two looks without news
GATHER = 0.1  # seconds in which news gathers before it is settled
BATCH = 256  # events settled in one piece: about three milliseconds of the loop's time
BETTER_WORD = 5.0  # seconds that an event waits for being told better
NEWS = 24 * 3600.0  # seconds after which an event is history
CLAIM_LIFE = 2 * NEWS
PRESUMED = 60.0  # seconds after which what the holder has not claimed was claimed in a lost Redis
SURVEY = 2.0  # seconds between two counts of active jobs
REMEMBERED = 8192  # jobs whose events are known to be in the ledger

MINE, THEIRS, HISTORY = 1, 2, 3  # outcomes, as `sql.MIGRATIONS` has them

# The holder's name, with a plus behind it when it is a new one.
LEASE_SCRIPT = """
local holder = redis.call('GET', KEYS[1])
if not holder and ARGV[3] == '1' then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return ARGV[1] .. '+'
end
if holder == ARGV[1] and ARGV[4] == '1' then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return holder or ''
"""

CLAIM_SCRIPT = """
local holds = redis.call('GET', KEYS[1]) == ARGV[1]
local told = {}
for i = 4, #ARGV, 2 do
  local key, event = KEYS[tonumber(ARGV[i])], ARGV[i + 1]
  local owner = redis.call('HGET', key, event)
  if not owner and (holds or ARGV[3] == '1') then
    redis.call('HSET', key, event, ARGV[1])
    redis.call('PEXPIRE', key, ARGV[2])
    owner = ARGV[1]
  end
  told[#told + 1] = (not owner and 0) or (owner == ARGV[1] and 1) or 2
end
return told
"""


class Refused(Exception):
    """Redis is there but does not let us claim."""


@dataclass(frozen=True, slots=True)
class News:
    """Events of one version on their way into the ledger, as `sql.PUT` reads them."""

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


class Counting:
    """One mirror's counting. What `await begin()` gives is a task's, to be cancelled at the end.

    `link` gives the connection to Redis while there is one.
    """

    def __init__(
        self,
        name: str,
        settings: schema.Mirror,
        fields: schema.JobFields,
        ledger: Ledger,
        link: Callable[[], Link | None],
        clock: Clock,
        metrics: PipelineMetrics,
        *,
        key_prefix: str = "",
    ) -> None:
        self.owner = ""
        self.since = math.inf  # Unix seconds: what happened before is history
        self._name = name
        self._reader = EventReader(fields)
        self._ledger = ledger
        self._link = link
        self._clock = clock
        self._totals = Totals(fields.stages, fields.validation_counts)
        self._shown = Counted(self._totals)
        metrics.show(name, self._shown)
        # By the keys that it counts, not by its name: another service may use the same Redis.
        family = settings.key.replace("{job_id}", "")
        self._lease_key = f"{key_prefix}pipeline:{{{family}}}:counting"
        self._claims_prefix = f"{key_prefix}pipeline:{{{family}}}:counted:"
        self._remembered: OrderedDict[str, dict[str, bool]] = OrderedDict()
        self._wake = asyncio.Event()
        self._loaded = False
        self._look_at_file = False
        self._holds = False
        self._may_take_at_once = False
        self._must_publish = True
        self._asked_at = -math.inf  # monotonic, as all times below
        self._free_since: float | None = None
        self._other: str | None = None  # the last other sidecar that was seen to hold the lease
        self._other_since = 0.0
        self._surveyed_at = -math.inf
        self._obstacle: str | None = None

    # --- on the way into the ledger (synchronous) ------------------------------------------------

    def news(self, snapshot: Snapshot, now: float) -> News | None:
        """What a version tells that is not known to be in the ledger already."""
        known = self._remembered.get(snapshot.job_id)
        try:
            events = self._reader.events(snapshot, known)
        except Exception:
            # A mistake of ours must cost a document's metrics, never the job.
            log.exception("job not read for metrics", extra={"job_id": snapshot.job_id})
            return None
        if not events:
            return None
        names = {event.name: event.sure for event in events}
        return News(snapshot.job_id, names, json.dumps([_stored(one, now) for one in events]))

    def kept(self, news: News) -> None:
        """The version and its events are committed."""
        known = self._remembered.setdefault(news.job_id, {})
        known.update(news.names)
        self._remembered.move_to_end(news.job_id)
        if len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        self._wake.set()

    def ledger_has_gap(self) -> None:
        """The ledger may be another file now."""
        self._remembered.clear()
        self._look_at_file = True
        self._wake.set()

    @property
    def counts(self) -> bool:
        """Whether this sidecar is the one that counts."""
        return self._holds

    # --- life ------------------------------------------------------------------------------------

    async def begin(self) -> Coroutine[Any, Any, None]:
        """What to run as a task; a ledger that is silent now is read later."""
        with suppress(LedgerSilent):
            await self.load()
        return self.run()

    async def load(self) -> None:
        """Take up what the ledger has; raises `LedgerSilent`."""
        meta = dict(await self._ledger.table(sql.META))
        if "pipeline_owner" in meta and "pipeline_since" in meta:
            self._totals.load(await self._ledger.table(sql.TOTALS))
            self.owner, self.since = meta["pipeline_owner"], float(meta["pipeline_since"])
        else:
            self.since = self._clock.time()
            self._begin_file()
            self._may_take_at_once = True
        self._loaded = True

    def _begin_file(self) -> None:
        """A ledger that was never counted from gets an owner of its own: what the one before had
        claimed must not look as if it were ours and still to be counted."""
        self.owner = uuid.uuid4().hex[:16]
        self._ledger.set_meta("pipeline_owner", self.owner)
        self._ledger.set_meta("pipeline_since", repr(self.since))
        self._ledger.execute(
            sql.SETTLE, {"settled": "[]", "totals": json.dumps(self._totals.rows())}
        )

    async def run(self) -> None:
        """Settle what comes, until cancelled."""
        while True:
            if await happened(self._wake, TICK):
                await asyncio.sleep(GATHER)
            self._wake.clear()
            try:
                await self._round()
            except (RedisLost, LedgerSilent):
                # Both are told of by the mirror itself. Who could not renew a lease has none.
                if self._clock.monotonic() - self._asked_at > LEASE:
                    self._stand_down()
                continue
            except Refused as refused:
                self._blocked_by(str(refused))
                self._stand_down()
                continue
            self._blocked_by(None)

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
        if self._must_publish:
            await self._publish()
        while True:
            now = self._clock.time()
            rows = await self._ledger.table(sql.PENDING, (now, BATCH))
            if not rows or not await self._settle([_read(row) for row in rows], now):
                break
            await self._ask_for_lease()
            await self._survey()
        await self._survey()

    async def _check_file(self) -> None:
        meta = dict(await self._ledger.table(sql.META))
        if meta.get("pipeline_owner") != self.owner:
            self._begin_file()
        self._look_at_file = False

    # --- the lease -------------------------------------------------------------------------------

    async def _ask_for_lease(self) -> None:
        now = self._clock.monotonic()
        if now - self._asked_at < (RENEW if self._holds else TICK):
            return
        # A sidecar that cannot commit what it counts leaves the counting to another one.
        able = self._ledger.degraded is None
        waited = self._free_since is not None and now - self._free_since >= LEASE
        may_take = able and (self._may_take_at_once or waited)
        holder = await self._call(
            "EVAL", LEASE_SCRIPT, 1, self._lease_key,
            self.owner, int(LEASE * 1000), int(may_take), int(able),
        )  # fmt: skip
        self._asked_at = now
        self._learn(bytes(holder).decode("ascii", "replace"), now)

    def _learn(self, holder: str, now: float) -> None:
        if holder.rstrip("+") == self.owner:
            self._must_publish = self._must_publish or holder.endswith("+")
            if not self._holds:
                log.info("counts the pipeline", extra={"mirror": self._name})
            self._holds = self._shown.counting = self._may_take_at_once = True
            self._other = self._free_since = None
            return
        self._stand_down()
        if not holder:
            if self._free_since is None:
                self._free_since, self._must_publish = now, True
            return
        self._free_since, self._may_take_at_once = None, False
        if holder != self._other:
            self._other, self._other_since = holder, now

    def _stand_down(self) -> None:
        if self._holds:
            log.info("counts the pipeline no more", extra={"mirror": self._name})
        self._holds = self._shown.counting = False
        self._shown.active = None

    async def _call(self, *command: Any) -> Any:
        link = self._link()
        if link is None:
            raise RedisLost("not connected")
        request: Command = command
        (reply,) = await link.call(request)
        if isinstance(reply, CommandError):
            raise Refused(reply.text[:200])
        return reply

    async def _publish(self) -> None:
        """Claim whatever was settled lately, by whomever; what is claimed stays as it is."""
        after = ("", "")
        since = self._clock.time() - NEWS
        self._must_publish = False  # first, as the lease may be lost again meanwhile
        try:
            while page := await self._ledger.table(sql.SETTLED, (*after, since, BATCH)):
                after = page[-1]
                await self._claim(page, settled_before=True)
                await self._ask_for_lease()
        except BaseException:
            self._must_publish = True
            raise

    # --- settling --------------------------------------------------------------------------------

    async def _settle(self, events: Sequence[_Pending], now: float) -> bool:
        """Whether a look at more events is worth while: nothing had to be left undecided."""
        oldest = max(self.since, now - NEWS)
        news = [event for event in events if event.at >= oldest]
        outcomes = [(event, HISTORY) for event in events if event.at < oldest]
        undecided = False
        draft = self._totals.draft()
        for event, owner in zip(news, await self._claims(news), strict=True):
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

    async def _claims(self, events: Sequence[_Pending]) -> list[int]:
        """To whom each event belongs: 0 nobody, 1 us, 2 another sidecar."""
        return await self._claim([(one.job_id, one.event) for one in events]) if events else []

    async def _claim(
        self, events: Sequence[tuple[str, str]], *, settled_before: bool = False
    ) -> list[int]:
        jobs = {job_id: at for at, job_id in enumerate(dict.fromkeys(e[0] for e in events), 2)}
        keys = [self._lease_key, *(f"{self._claims_prefix}{job_id}" for job_id in jobs)]
        pairs = [part for job_id, event in events for part in (jobs[job_id], event)]
        claimed = await self._call(
            "EVAL", CLAIM_SCRIPT, len(keys), *keys,
            self.owner, int(CLAIM_LIFE * 1000), int(settled_before), *pairs,
        )  # fmt: skip
        return [int(owner) for owner in claimed]

    def _presumed(self, event: _Pending, now: float) -> bool:
        """Whether another sidecar, which sees what we see, must have dealt with it long ago: its
        claim was lost with a Redis that is no more."""
        if self._holds or self._other is None or self._free_since is not None:
            return False
        there = self._clock.monotonic() - self._other_since
        return min(there, now - event.due) > PRESUMED

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

        self._ledger.execute(
            sql.SETTLE,
            {
                "settled": json.dumps([(one.job_id, one.event, how) for one, how in outcomes]),
                "totals": json.dumps(draft.rows()),
            },
            done,
        )
        # To the end, whatever Redis does: who settled these again meanwhile would count them twice.
        while not await settled(written, RENEW):
            with suppress(RedisLost, Refused):
                await self._ask_for_lease()
        return written.result()

    # --- what else is shown ----------------------------------------------------------------------

    async def _survey(self) -> None:
        now = self._clock.monotonic()
        if now - self._surveyed_at < SURVEY:
            return
        self._surveyed_at = now
        (self._shown.pending,) = await self._ledger.column(sql.PENDING_COUNT)
        if self._holds:
            (active,) = await self._ledger.column(sql.ACTIVE, (self._clock.time(),))
            self._shown.active = active if self._holds else None


def _stored(event: Event, now: float) -> tuple[object, ...]:
    due = now if event.sure else now + BETTER_WORD
    at = now if event.at is None else event.at
    labels = json.dumps(event.labels)
    return (event.name, event.family, labels, event.value, at, due, int(event.sure))


def _read(row: Sequence[Any]) -> _Pending:
    job_id, event, family, labels, value, at, due = row
    return _Pending(job_id, event, family, tuple(json.loads(labels)), value, at, due)
