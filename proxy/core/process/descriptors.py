"""The limit of file descriptors: raised to what the config may need; if that fails, fewer clients
are accepted than the config allows.

A process that runs out of descriptors closes new connections silently and cannot reach its
upstreams. One that knows its limit answers the first connection beyond it with a 503.
"""

from __future__ import annotations

import logging
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

_log = logging.getLogger("proxy.core.process.descriptors")

#: Descriptors for everything but proxied connections: standard streams, the event loop, log and
#: SQLite files, Redis, probe processes, admin and metrics connections, and as many again to spare.
OTHERS = 512

#: A listener is allowed at least so many connections, even if descriptors are scarce.
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
    """What a config may need: client connections by listener; and `others`, connections to
    upstreams and spool files."""

    clients: Mapping[str, int]
    others: int

    @property
    def total(self) -> int:
        return sum(self.clients.values()) + self.others + OTHERS


@dataclass(frozen=True)
class Fit:
    """`limit` is the process' new limit, `before` the old one, `clients` the connections that each
    listener may have: as many as it asked for, or fewer."""

    limit: int
    before: int
    clients: Mapping[str, int]


def fit(need: Need, limits: Limits | None = None) -> Fit:
    """Raise the limit as far as `need` requires and the kernel permits. If that is not enough, each
    listener gets proportionally fewer connections. The limit is never lowered."""
    limits = limits or ProcessLimits()
    before, hard = limits.get()
    soft = before
    for new_soft, new_hard in _attempts(need.total, before, hard):
        try:
            limits.set(new_soft, new_hard)
        except (OSError, ValueError):
            continue  # only root may raise the hard limit, and not beyond fs.nr_open
        soft = new_soft
        break
    asked = sum(need.clients.values())
    room = asked if soft == resource.RLIM_INFINITY else soft - need.others - OTHERS
    if room >= asked:
        return Fit(soft, before, dict(need.clients))
    # If the rest alone would take all descriptors, half of them are for clients.
    room = max(room, soft // 2)
    share = {
        name: min(count, max(_FEWEST, count * room // asked))
        for name, count in need.clients.items()
    }
    return Fit(soft, before, share)


def _attempts(total: int, soft: int, hard: int) -> list[tuple[int, int]]:
    """(soft, hard) limits to try, the best first; none if the present one is enough."""
    infinite = resource.RLIM_INFINITY
    if soft == infinite or soft >= total:
        return []
    if hard == infinite or hard >= total:
        return [(total, hard)]
    return [(total, total), (hard, hard)] if hard > soft else [(total, total)]


def report(need: Need, found: Fit) -> None:
    """Log the result."""
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
