"""Which Redis permissions a mirror needs, and how to test them without side effects.

Each right has a command that changes nothing (`XX` on a key that never exists, or a `DEL` of it);
the reply shows whether the ACL of our user allows it. `ACL DRYRUN` would be nicer, but needs
Redis 7 and admin rights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from proxy.jobs.redis.replies import Command, no_permission

PROBE_ID = "reliability-proxy-probe"
"""The ID of no job: its key is used to test permissions."""


@dataclass(frozen=True, slots=True)
class Right:
    """A required command. `without` describes what fails if it is refused."""

    name: str
    command: Command
    without: str


@dataclass(frozen=True, slots=True)
class MissingRight:
    """A right that our user lacks, and the consequence."""

    name: str
    without: str

    def __str__(self) -> str:
        return f"{self.name} ({self.without})"


#: Rights that the connection tests itself when it opens.
LINK_RIGHTS = {
    "client|tracking": "changes are found by scanning, seconds late, unless keyspace events are on",
    "hello": "changes are found by scanning, seconds late",
}


def write_probe(key: str) -> Command:
    """A write without effect (the key never exists), refused only if all writes are."""
    return ("SET", key, "", "XX", "PX", 1)


def needed(key: str, index: str | None, counting_key: str | None) -> Sequence[Right]:
    """The rights that a mirror needs, tested on the probe key `key`."""
    rights = [
        Right("info", ("INFO", "server"), "a deletion cannot be distinguished from an eviction or "
              "a loss, so jobs that are deleted past the proxy come back"),
        Right("scan", ("SCAN", 0, "MATCH", key, "COUNT", 1), "nothing can be compared"),
        Right("getrange", ("GETRANGE", key, 0, 0), "no job can be read"),
        Right("pttl", ("PTTL", key), "no job can be read"),
        Right("exists", ("EXISTS", key), "nothing can be compared"),
        Right("set", write_probe(key), "lost jobs cannot be put back, and a Redis that refuses "
              "writes is not known as such"),
        Right("del", ("DEL", key), "a deleted job that a worker writes again stays in Redis"),
        Right("eval", ("EVAL", "return 0", 1, key), "an outdated job in Redis is not replaced"),
        Right("get", ("GET", key), "an outdated job in Redis is not replaced"),
    ]  # fmt: skip
    if index is not None:
        rights += [
            Right("zadd", ("ZADD", index, "XX", 0, PROBE_ID), "restored jobs are in no list"),
            Right("zrem", ("ZREM", index, PROBE_ID), "removed jobs stay in the list"),
        ]
    if counting_key is not None:
        script = "return redis.call('EXISTS', KEYS[1])"
        rights.append(
            Right("counting", ("EVAL", script, 1, counting_key), "the pipeline is not counted: "
                  f"EVAL and EXISTS on keys {counting_key.partition('{')[0]}*")
        )  # fmt: skip
    return rights


def missing(
    rights: Iterable[Right], replies: Iterable[object], link_refused: Iterable[str]
) -> list[MissingRight]:
    """The rights that were refused for lack of permission; other errors do not count."""
    found = [MissingRight(name, LINK_RIGHTS[name]) for name in link_refused]
    found += [
        MissingRight(right.name, right.without)
        for right, reply in zip(rights, replies, strict=True)
        if no_permission(reply)
    ]
    if any(one.name == "eval" for one in found):
        return [one for one in found if one.name != "counting"]  # covered by `eval`
    return found
