"""What is restored into Redis, and what a missing key means. Pure decisions, no I/O.

1. A key may be missing because it expired, was deleted, was evicted, or was lost with all others.
   A deletion needs proof for that key: a `del` event from the server, or a server that is provably
   the same (`run_id`), was not flushed, and evicted nothing since the key was last seen. Every
   doubt counts as an eviction or a loss, because a job too many can be deleted again.
2. A restore never overwrites (`SET … NX`), so several sidecars may restore at once while the app
   writes. An outdated value is replaced only if it has not changed since we read it.
3. A restored key gets its remaining TTL, never more.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum

from proxy.jobs.document import to_timestamp
from proxy.jobs.redis.replies import Command, ServerInfo
from proxy.jobs.store.records import Row

EXPIRY_SLACK = 1.0  # seconds: two clocks and a rounded PTTL

REPLACE_SCRIPT = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[3] == '0' then redis.call('SET', KEYS[1], ARGV[2])
else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1
"""


class Continuity(Enum):
    """What happened to a server's data between two observations."""

    SAME = "same"  # the same data, apart from clients' own writes and deletions
    EVICTING = "evicting"  # the same, but keys were, or may have been, evicted
    BROKEN = "broken"  # restarted, flushed, replaced, or unknown


def continuity(before: ServerInfo | None, now: ServerInfo) -> Continuity:
    """Compare two observations of a server (rule 1)."""
    if before is None or before.run_id is None or before.run_id != now.run_id:
        return Continuity.BROKEN
    if before.flushes is None or before.flushes != now.flushes:
        return Continuity.BROKEN
    if before.evicted is None or before.evicted != now.evicted:
        return Continuity.EVICTING
    if before.commands is not None and now.commands is not None and now.commands < before.commands:
        return Continuity.EVICTING  # the statistics were reset, so equal numbers mean nothing
    return Continuity.SAME


def same_history(before: ServerInfo, now: ServerInfo) -> bool:
    """Whether the server kept its replication history while we were disconnected. If it became a
    replica and then master again, its data is another server's."""
    return None in (before.replication, now.replication) or before.replication == now.replication


@dataclass(frozen=True, slots=True)
class Mark:
    """Server info, and a monotonic time by which all changes before that info had been pushed.
    Changes pushed after `at` happened after `info`."""

    info: ServerInfo
    at: float


@dataclass(slots=True)
class DataEpoch:
    """A server's data as seen by one connection.

    `losses` counts how often the data was found lost, `restored` up to which loss it was restored.
    `old_data`: Redis may hold versions older than the store's. `cause` labels what gets restored.
    `info` dates from when nothing was missing: a missing key is explained by what happened since
    then, or, if its change was pushed after `mark`, by what happened since the mark.
    """

    info: ServerInfo
    cause: str
    losses: int = 0
    restored: int = 0
    old_data: bool = False
    mark: Mark | None = None

    @property
    def lost(self) -> bool:
        """Whether a missing key proves nothing, because the restore is not complete."""
        return self.restored < self.losses

    def lose(self, cause: str) -> None:
        """Record that the data is, or may be, lost."""
        self.losses += 1
        self.old_data = True
        self.cause = cause


class Absence(StrEnum):
    """Why a key that the store knows is not in Redis."""

    EXPIRED = "expired"
    DELETED = "deleted"
    EVICTED = "evicted"
    LOST = "lost"


#: Keyspace events by which a client removes a key.
_REMOVED = frozenset({"del", "rename_from", "move_from"})


def explain_absence(
    deadline: float | None, now: float, link: Continuity, event: str | None = None
) -> Absence:
    """Why a key that was to expire at `deadline` (Unix seconds, None: never) is missing.

    `event` is the key's last keyspace event, if the server publishes them. It takes precedence over
    the server's counters, unless all data was lost.
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
    """The result of one restore. `kept`: keys that were already there; `seconds`: wall time."""

    cause: str
    restored: int
    kept: int
    seconds: float


def remaining_ms(deadline: float | None, now: float) -> int | None:
    """Remaining TTL in milliseconds, 0 for a key that never expires, None for an expired one."""
    if deadline is None:
        return 0
    left = int((deadline - now) * 1000)
    return left if left > 0 else None


def put_back(row: Row, key: str, now: float) -> Command | None:
    """The command that restores one job if it is missing; None if it has expired."""
    left = remaining_ms(row.deadline, now)
    if left is None:
        return None
    return ("SET", key, row.raw, "NX", "PX", left) if left else ("SET", key, row.raw, "NX")


def replace(row: Row, key: str, present: bytes, present_ms: int, now: float) -> Command:
    """The command that replaces an outdated value with the store's, unless it changed meanwhile.

    `present_ms` is the PTTL of the outdated value, -1 if it never expires. The job keeps the longer
    of both TTLs.
    """
    left = remaining_ms(row.deadline, now)
    lasting = left == 0 or present_ms < 0
    ttl = 0 if lasting else max(left or 1, present_ms, 1)
    return ("EVAL", REPLACE_SCRIPT, 1, key, present, row.raw, ttl)


def index_entries(rows: list[Row], index: str) -> Command:
    """One ZADD for many jobs, score = creation time; existing entries keep their score."""
    pairs: list[object] = []
    for row in rows:
        pairs += (to_timestamp(row.created_at) or row.captured_at, row.job_id)
    return ("ZADD", index, "NX", *pairs)
