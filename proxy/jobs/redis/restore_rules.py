"""What is put back into Redis, and what its absence there means. Decisions here, no I/O.

1. A key may be missing because it expired, was deleted, was evicted, or was lost with all others.
   A deletion needs proof for that very key: the server's own word (a `del` event), or a server that
   is provably the same (`run_id`), was not flushed, and dropped nothing for want of memory between
   a moment at which the key was still there and now. Every doubt counts as an eviction or a loss,
   since a job too many can be deleted again.
2. Putting back never overwrites (`SET … NX`), so several sidecars may do it at once and the app may
   write meanwhile. An older value that is there is replaced only while it is still that very value.
3. What comes back has the life that was left to it, never more.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum

from proxy.jobs.document import to_timestamp
from proxy.jobs.redis.connection import Command, ServerInfo
from proxy.jobs.store.records import Row

EXPIRY_SLACK = 1.0  # seconds: two clocks and a rounded PTTL

REPLACE_SCRIPT = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[3] == '0' then redis.call('SET', KEYS[1], ARGV[2])
else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1
"""


class Continuity(Enum):
    """What became of a server's data between two looks at it."""

    SAME = "same"  # the same data, but for what clients did to single keys
    EVICTING = "evicting"  # the same, and keys were dropped for want of memory, or may have been
    BROKEN = "broken"  # restarted, flushed, replaced, or nobody can tell


def continuity(before: ServerInfo | None, now: ServerInfo) -> Continuity:
    """Compare two looks at a server (rule 1)."""
    if before is None or before.run_id is None or before.run_id != now.run_id:
        return Continuity.BROKEN
    if before.flushes is None or before.flushes != now.flushes:
        return Continuity.BROKEN
    if before.evicted is None or before.evicted != now.evicted:
        return Continuity.EVICTING
    if before.commands is not None and now.commands is not None and now.commands < before.commands:
        return Continuity.EVICTING  # the statistics began anew, so equal numbers mean nothing
    return Continuity.SAME


def same_history(before: ServerInfo, now: ServerInfo) -> bool:
    """Whether a server that was out of sight did not become a replica, and the master again,
    meanwhile: its data would be another's then."""
    return None in (before.replication, now.replication) or before.replication == now.replication


@dataclass(frozen=True, slots=True)
class Mark:
    """What the server said of itself, and a monotonic time before which all changes had been pushed
    that happened before it said so. What is pushed later happened later."""

    facts: ServerInfo
    at: float


@dataclass(slots=True)
class DataEpoch:
    """One connection's view of a server.

    `losses` counts how often the data were found gone, `restored` up to which loss they were put
    back. `old_data`: what is there may be older than the store. `cause` labels what gets restored.
    `facts` are those of the time when nothing was missing. A key that was found missing is
    explained by all that happened since then; one whose change was pushed after `mark` by what
    happened since the mark.
    """

    facts: ServerInfo
    cause: str
    losses: int = 0
    restored: int = 0
    old_data: bool = False
    mark: Mark | None = None

    @property
    def lost(self) -> bool:
        """Whether absence proves nothing, as not all was put back yet."""
        return self.restored < self.losses

    def lose(self, cause: str) -> None:
        """The data are gone, or may be."""
        self.losses += 1
        self.old_data = True
        self.cause = cause


class Absence(StrEnum):
    """Why a key that the store knows is not in Redis."""

    EXPIRED = "expired"
    DELETED = "deleted"
    EVICTED = "evicted"
    LOST = "lost"


#: Keyspace events that take a key away by somebody's will, or for want of memory.
_REMOVED = frozenset({"del", "rename_from", "move_from"})


def explain_absence(
    deadline: float | None, now: float, link: Continuity, event: str | None = None
) -> Absence:
    """Why a key is gone that Redis was to drop at `deadline` (Unix seconds, None: never).

    `event` is the last keyspace event of the key, where the server publishes them: it outweighs
    what the server's counters say, unless all was lost.
    """
    if deadline is not None and now >= deadline - EXPIRY_SLACK:
        return Absence.EXPIRED
    if link is not Continuity.BROKEN:
        if event in _REMOVED:
            return Absence.DELETED
        if event == "evicted":
            return Absence.EVICTED
    return {
        Continuity.SAME: Absence.DELETED,
        Continuity.EVICTING: Absence.EVICTED,
        Continuity.BROKEN: Absence.LOST,
    }[link]


@dataclass(frozen=True, slots=True)
class RestoreCounts:
    """What one restore did. `kept`: keys that were there already; `seconds` of wall time."""

    cause: str
    restored: int
    kept: int
    seconds: float


def remaining_ms(deadline: float | None, now: float) -> int | None:
    """Milliseconds of life left, 0 for a key that never expires, None for one that is over."""
    if deadline is None:
        return 0
    left = int((deadline - now) * 1000)
    return left if left > 0 else None


def put_back(row: Row, key: str, now: float) -> Command | None:
    """The command that restores one job where it is missing; None when its time is over."""
    left = remaining_ms(row.deadline, now)
    if left is None:
        return None
    return ("SET", key, row.raw, "NX", "PX", left) if left else ("SET", key, row.raw, "NX")


def replace(row: Row, key: str, present: bytes, present_ms: int, now: float) -> Command:
    """The command that replaces an outdated value by the store's, unless it changed meanwhile.

    `present_ms` is the PTTL of the outdated value, -1 when it never expires. The job keeps the
    longer of both lives.
    """
    left = remaining_ms(row.deadline, now)
    lasting = left == 0 or present_ms < 0
    life = 0 if lasting else max(left or 1, present_ms, 1)
    return ("EVAL", REPLACE_SCRIPT, 1, key, present, row.raw, life)


def index_entries(rows: list[Row], index: str) -> Command:
    """One ZADD for many jobs, score = creation; entries that are there keep their score."""
    pairs: list[object] = []
    for row in rows:
        pairs += (to_timestamp(row.created_at) or row.captured_at, row.job_id)
    return ("ZADD", index, "NX", *pairs)
