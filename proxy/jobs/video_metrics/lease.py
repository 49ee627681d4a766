"""The counting lease and the event locks of one mirror, in Redis.

The lease saves work: one sidecar counts while the others watch. A sidecar that finds no lease gives
the last holder the duration of a lease to come back, unless it was the holder itself or is new
(`newcomer`). A lock makes an event count once: a field in a hash per job, set by an atomic script
that also checks the lease. A missing lease may mean that Redis has lost its data including locks,
so a sidecar that finds none, or starts, must publish what it has settled (`must_publish`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from proxy.core.clock import Clock
from proxy.jobs.redis.activity import Activity
from proxy.jobs.redis.connection import CommandRefused, RedisConnection, RedisLost
from proxy.jobs.redis.replies import Command, CommandError

log = logging.getLogger(__name__)

LEASE = 10.0  # seconds after which a lease expires unless renewed
RENEW = 3.0  # seconds between two renewals
LOOK = 1.0  # seconds between two checks of another sidecar's lease
IDLE_LEASE = 90.0  # a lease, while there is nothing to count
IDLE_RENEW = 30.0  # between two renewals, or two checks of another's lease, while idle
CLAIM_LIFE = 48 * 3600.0  # seconds; twice as long as an event counts as new

NOBODY, OURS, ANOTHERS = 0, 1, 2

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


def lease_key(family: str, key_prefix: str) -> str:
    """Where the lease of a family of job keys is, beside its claims."""
    return f"{key_prefix}pipeline:{{{family}}}:counting"


class CountingLease:
    """One sidecar's part in who counts. `link` gives the connection to Redis while there is one.

    `family` names the job keys that are counted, not the mirror: another service may use the same
    Redis. `owner` names this sidecar's store.
    """

    def __init__(
        self,
        mirror: str,
        family: str,
        link: Callable[[], RedisConnection | None],
        clock: Clock,
        *,
        key_prefix: str = "",
        activity: Activity | None = None,
    ) -> None:
        self._activity = activity
        self.owner = ""
        self.holds = False
        self.newcomer = False
        self.must_publish = True
        self._mirror = mirror
        self._link = link
        self._clock = clock
        self._lease_key = lease_key(family, key_prefix)
        self._claims_prefix = f"{key_prefix}pipeline:{{{family}}}:counted:"
        self._was_holder = False
        self._asked_at = -math.inf  # monotonic, as all times below
        self._free_since: float | None = None
        self._other: str | None = None
        self._other_since = 0.0

    # --- the lease -------------------------------------------------------------------------------

    async def ask(self, *, able: bool) -> None:
        """Take, renew or look at the lease, if it is time to. Raises `RedisLost`, `CommandRefused`.

        `able`: whether we could commit what we count; if not, the lease is left to others.
        """
        now, pace = self._clock.monotonic(), RENEW if self.holds else LOOK
        activity = self._activity
        due = activity.due(self._asked_at, pace, IDLE_RENEW) if activity is not None else None
        if not (now - self._asked_at >= pace if due is None else due):
            return
        lease = self._lease
        waited = self._free_since is not None and now - self._free_since >= LEASE
        may_take = able and (self._was_holder or self.newcomer or waited)
        reply = await self._call(
            "EVAL", LEASE_SCRIPT, 1, self._lease_key,
            self.owner, int(lease * 1000), int(may_take), int(able),
        )  # fmt: skip
        self._asked_at = now
        self._learn(bytes(reply).decode("ascii", "replace"), now)

    def _learn(self, holder: str, now: float) -> None:
        if holder.rstrip("+") == self.owner:
            self.must_publish = self.must_publish or holder.endswith("+")
            if not self.holds:
                log.info("took the counting lease", extra={"mirror": self._mirror})
            self.holds = self._was_holder = True
            self._other = self._free_since = None
            return
        self.stand_down()
        if not holder:
            if self._free_since is None:
                self._free_since, self.must_publish = now, True
            return
        self._free_since = None
        self._was_holder = self.newcomer = False
        if holder != self._other:
            self._other, self._other_since = holder, now

    @property
    def _lease(self) -> float:
        idle = self._activity is not None and self._activity.idle
        return IDLE_LEASE if idle else LEASE

    def stand_down(self) -> None:
        """We do not hold the lease, or cannot know."""
        if self.holds:
            log.info("lost the counting lease", extra={"mirror": self._mirror})
        self.holds = False

    def silent(self) -> None:
        """Redis did not answer: a lease that could not be renewed is lost."""
        if self._clock.monotonic() - self._asked_at > self._lease:
            self.stand_down()

    def other_since(self) -> float | None:
        """For how many seconds the same other sidecar has been seen to hold the lease."""
        if self.holds or self._other is None or self._free_since is not None:
            return None
        return self._clock.monotonic() - self._other_since

    # --- event locks -----------------------------------------------------------------------------

    async def claim(
        self, events: Sequence[tuple[str, str]], *, settled_before: bool = False
    ) -> list[int]:
        """The owner of each event (job, name), after locking those without one: while we hold the
        lease, or always if `settled_before`. Raises `RedisLost`, `CommandRefused`."""
        if not events:
            return []
        jobs = {job_id: at for at, job_id in enumerate(dict.fromkeys(e[0] for e in events), 2)}
        keys = [self._lease_key, *(f"{self._claims_prefix}{job_id}" for job_id in jobs)]
        pairs = [part for job_id, event in events for part in (jobs[job_id], event)]
        claimed = await self._call(
            "EVAL", CLAIM_SCRIPT, len(keys), *keys,
            self.owner, int(CLAIM_LIFE * 1000), int(settled_before), *pairs,
        )  # fmt: skip
        return [int(owner) for owner in claimed]

    async def _call(self, *command: Any) -> Any:
        link = self._link()
        if link is None:
            raise RedisLost("not connected")
        request: Command = command
        (reply,) = await link.call(request)
        if isinstance(reply, CommandError):
            raise CommandRefused(reply.text[:200])
        return reply
