"""How many file descriptors the process may have: raised to what the config can need, or else fewer
clients than the config allows.

A process that runs out of descriptors closes new connections without a word and cannot reach its
upstreams. One that knows how many it has refuses the connection that is one too many with a 503.
"""

from __future__ import annotations

import logging
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

_log = logging.getLogger("proxy.core.process.descriptors")

#: What the process has open beside connections: standard streams, the event loop's, log and SQLite
#: files, Redis connections, probe processes, the admin's and the metrics' connections, and as many
#: again for what comes and goes.
OTHERS = 512

#: The fewest connections that a listener keeps where descriptors are too few for all.
_FEWEST = 16


class Limits(Protocol):
    """The process' limit, as `resource` has it."""

    def get(self) -> tuple[int, int]:
        """Soft and hard."""
        ...

    def set(self, soft: int, hard: int) -> None:
        """Raises `OSError` or `ValueError`."""
        ...


class ProcessLimits:
    """RLIMIT_NOFILE of this process."""

    def get(self) -> tuple[int, int]:
        return resource.getrlimit(resource.RLIMIT_NOFILE)

    def set(self, soft: int, hard: int) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@dataclass(frozen=True)
class Need:
    """What a config can need: client connections by listener, and what else goes with its requests:
    connections to upstreams, files of the spool."""

    clients: Mapping[str, int]
    others: int

    @property
    def total(self) -> int:
        return sum(self.clients.values()) + self.others + OTHERS


@dataclass(frozen=True)
class Fit:
    """`limit` is the process' limit now, `before` what it was, `clients` the connections that each
    listener may have: what was asked for, or less."""

    limit: int
    before: int
    clients: Mapping[str, int]


def fit(need: Need, limits: Limits | None = None) -> Fit:
    """Raise the limit as far as `need` asks and the kernel lets; what is missing then is taken from
    the listeners, in proportion. The limit is never lowered."""
    limits = limits or ProcessLimits()
    before, hard = limits.get()
    soft = before
    for new_soft, new_hard in _attempts(need.total, before, hard):
        try:
            limits.set(new_soft, new_hard)
        except (OSError, ValueError):
            continue  # only the superuser raises the hard limit, and not beyond fs.nr_open
        soft = new_soft
        break
    asked = sum(need.clients.values())
    room = asked if soft == resource.RLIM_INFINITY else soft - need.others - OTHERS
    if room >= asked:
        return Fit(soft, before, dict(need.clients))
    # So few descriptors that the rest alone would take them all: half of them are for clients.
    room = max(room, soft // 2)
    share = {
        name: min(count, max(_FEWEST, count * room // asked))
        for name, count in need.clients.items()
    }
    return Fit(soft, before, share)


def _attempts(total: int, soft: int, hard: int) -> list[tuple[int, int]]:
    """(soft, hard) limits to try, the best first; none where there are enough already."""
    infinite = resource.RLIM_INFINITY
    if soft == infinite or soft >= total:
        return []
    if hard == infinite or hard >= total:
        return [(total, hard)]
    return [(total, total), (hard, hard)] if hard > soft else [(total, total)]


def report(need: Need, found: Fit) -> None:
    """Log what came of it."""
    facts: dict[str, object] = {
        "event": "descriptors",
        "limit": found.limit,
        "before": found.before,
        "needed": need.total,
    }
    fewer = {name: count for name, count in found.clients.items() if count < need.clients[name]}
    if not fewer:
        _log.info("file descriptors", extra=facts)
        return
    _log.warning(
        "too few file descriptors: client connections are limited to what there is; raise the "
        "limit (ulimit -n, LimitNOFILE) to %d, or lower limits.connections",
        need.total,
        extra=facts | {"connections": fewer},
    )
