"""What a mirror must be allowed to do in Redis, and how to find out without doing anything.

Each right has a command that changes nothing (`XX` on a key that is never there, a `DEL` of it), so
that the server's answer tells whether the access list of our user has it. `ACL DRYRUN` would be
nicer, but came with Redis 7 and is an administrator's command.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from proxy.jobs.redis.connection import Command, no_permission

PROBE_ID = "reliability-proxy-probe"
"""An id that no job has: the key that questions of rights are about."""


@dataclass(frozen=True, slots=True)
class Right:
    """One command that is needed. `without` says what does not work where it is refused."""

    name: str
    command: Command
    without: str


@dataclass(frozen=True, slots=True)
class MissingRight:
    """A right that our user does not have, and what that means."""

    name: str
    without: str

    def __str__(self) -> str:
        return f"{self.name} ({self.without})"


#: What no mirror works without, what each lack costs. `client|tracking` and `hello` are found out
#: by the link itself.
LINK_RIGHTS = {
    "client|tracking": "changes are found by scanning, seconds late, unless keyspace events are on",
    "hello": "changes are found by scanning, seconds late",
}


def write_probe(key: str) -> Command:
    """A write that is refused when all are, and else does nothing: the key is never there."""
    return ("SET", key, "", "XX", "PX", 1)


def needed(key: str, index: str | None, counting_key: str | None) -> Sequence[Right]:
    """The rights of a mirror whose probe key is `key`."""
    rights = [
        Right("info", ("INFO", "server"), "a deletion cannot be told from an eviction or a loss, "
              "so jobs that are deleted past the proxy come back"),
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
    """Which rights were refused for want of permission; any other error is not about rights."""
    found = [MissingRight(name, LINK_RIGHTS[name]) for name in link_refused]
    found += [
        MissingRight(right.name, right.without)
        for right, reply in zip(rights, replies, strict=True)
        if no_permission(reply)
    ]
    if any(one.name == "eval" for one in found):
        return [one for one in found if one.name != "counting"]  # said already
    return found
