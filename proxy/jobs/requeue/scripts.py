"""The atomic changes to the broker. Pure: the scripts and their arguments.

A lock is a hash per job: how often it was requeued, when, and under which task ID. The script that
pushes also checks and takes the lock, so that one message results, however many sidecars try. A job
whose document has changed since it was judged is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from proxy.jobs.redis.replies import Command

CLAIM_LIFE = 48 * 3600.0  # seconds; a job's key lives 24 h
WORKERS_FRESH = 4.0  # seconds for which one sidecar's count of workers serves all

_CLAIM = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return {'changed', 0} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local attempts = tonumber(redis.call('HGET', KEYS[1], 'attempts') or '0')
if ARGV[6] ~= '1' then
  if attempts >= tonumber(ARGV[3]) then return {'exhausted', attempts} end
  local at = tonumber(redis.call('HGET', KEYS[1], 'at') or '0')
  local since = now - at
  if attempts > 0 and since >= 0 and since < tonumber(ARGV[4]) * 2 ^ math.min(attempts - 1, 3) then
    return {'spaced', attempts}
  end
end
"""

_TAKE = """
redis.call('HSET', KEYS[1], 'attempts', attempts + 1, 'at', now, 'task', ARGV[7])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('RPUSH', KEYS[3], ARGV[2])
return {'pushed', attempts + 1}
"""

PUSH_SCRIPT = _CLAIM + _TAKE

RESTORE_SCRIPT = (
    _CLAIM
    + """
if redis.call('HGET', KEYS[4], ARGV[8]) ~= ARGV[9] then return {'changed', 0} end
redis.call('HDEL', KEYS[4], ARGV[8])
redis.call('ZREM', KEYS[5], ARGV[8])
"""
    + _TAKE
)

# Two places, as kombu would take it out itself; a field that changed meanwhile stays.
DROP_TAKEN_SCRIPT = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
"""

COUNT_WORKERS_SCRIPT = """
local known = redis.call('GET', KEYS[1])
if known then return tonumber(known) end
local receivers = redis.call('PUBLISH', ARGV[1], ARGV[2])
redis.call('SET', KEYS[1], receivers, 'PX', ARGV[3])
return receivers
"""


@dataclass(frozen=True, slots=True)
class Pushed:
    """The outcome: `pushed`, `changed` (the job or its message), `exhausted` or `spaced`."""

    outcome: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Claim:
    """What a push must find. `document` is the job's value as it was judged; `spacing` seconds
    between the first two messages, then twice as long each time, up to eight times."""

    key: str
    job_key: str
    document: bytes
    attempts: int
    spacing: float
    force: bool = False

    def arguments(self, message: bytes, task_id: str) -> tuple[Any, ...]:
        """ARGV 1 to 7."""
        return (
            self.document,
            message,
            self.attempts,
            int(self.spacing * 1000),
            int(CLAIM_LIFE * 1000),
            int(self.force),
            task_id,
        )


def push(claim: Claim, queue: str, message: bytes, task_id: str) -> Command:
    """Push to the right of the queue, where it is taken next: it has already waited."""
    keys = (claim.key, claim.job_key, queue)
    return ("EVAL", PUSH_SCRIPT, len(keys), *keys, *claim.arguments(message, task_id))


def restore(
    claim: Claim,
    queue: str,
    message: bytes,
    task_id: str,
    *,
    unacked: str,
    index: str,
    tag: bytes,
    field: bytes,
) -> Command:
    """Move from `unacked` back into the queue, as kombu does, if `field` is unchanged."""
    keys = (claim.key, claim.job_key, queue, unacked, index)
    return (
        "EVAL", RESTORE_SCRIPT, len(keys), *keys,
        *claim.arguments(message, task_id), tag, field,
    )  # fmt: skip


def count_workers(key: str, channel: str, request: bytes) -> Command:
    """Count the subscribers of `channel` by publishing `request`; cached under `key`."""
    ttl = int(WORKERS_FRESH * 1000)
    return ("EVAL", COUNT_WORKERS_SCRIPT, 1, key, channel, request, ttl)


def drop_taken(unacked: str, index: str, tag: bytes, field: bytes) -> Command:
    """Remove from `unacked`."""
    return ("EVAL", DROP_TAKEN_SCRIPT, 2, unacked, index, tag, field)


def read_pushed(reply: Any) -> Pushed:
    """Raises `ValueError` for what is no reply of these scripts."""
    if not isinstance(reply, list) or len(reply) != 2 or not isinstance(reply[0], bytes):
        raise ValueError(f"unexpected reply {reply!r:.80}")
    return Pushed(reply[0].decode("ascii", "replace"), int(reply[1]))
