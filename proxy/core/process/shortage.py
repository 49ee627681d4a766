"""Shortages of our own: no file descriptor, no local port, no memory for a socket.

Such a failure looks like an upstream's (a connection that could not be opened) but is not: the
upstream never saw it. A breaker or health check that counted it would take a healthy service out of
use, through Redis even for the whole fleet. Rules:

1. A shortage is recognised by the error number (`_REASONS`), even if a library has wrapped the
   error: causes, contexts and the "Multiple exceptions" of `create_connection` are searched.
2. If one address refused or timed out, that outweighs a shortage at another: the upstream was
   asked, and failed. An address family that this host lacks counts as neither.
3. A failed name resolution is a shortage if no descriptor is available now: the C library reports a
   failed `open` or `socket` as "temporary failure in name resolution".
4. A shortage is an episode: one log line when it begins, one when it has been over for `_QUIET`
   seconds, one counter of episodes and one of failures. There is no line per failure.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

_log = logging.getLogger("proxy.core.process.shortage")

#: Seconds without another failure after which a shortage is over.
_QUIET = 10.0

DESCRIPTORS, SYSTEM_DESCRIPTORS, PORTS, MEMORY = (
    "no_descriptors",
    "no_system_descriptors",
    "no_local_ports",
    "no_memory",
)

_REASONS = {
    errno.EMFILE: DESCRIPTORS,
    errno.ENFILE: SYSTEM_DESCRIPTORS,
    errno.EADDRNOTAVAIL: PORTS,
    errno.ENOBUFS: MEMORY,
    errno.ENOMEM: MEMORY,
}

#: The text for each, for callers and the log.
DETAILS = {
    DESCRIPTORS: "this proxy has no file descriptor left",
    SYSTEM_DESCRIPTORS: "this host has no file descriptor left",
    PORTS: "this host has no local port or address left for the connection",
    MEMORY: "this host has no memory left for the connection",
}

#: Errors that concern the peer, not us.
_PEERS = {
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.EHOSTUNREACH,
    errno.EPIPE,
    errno.ETIMEDOUT,
}

_NUMBER = re.compile(r"\[Errno (-?\d+)\]")

#: How many wrapped errors are searched; errors may refer to each other in circles.
_DEPTH = 10


def descriptors_left() -> bool:
    """Whether a descriptor is available at this moment; asks the kernel, which takes 2 us."""
    try:
        os.close(os.open("/", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno not in (errno.EMFILE, errno.ENFILE)
    return True


def own_shortage(
    error: BaseException | None, left: Callable[[], bool] = descriptors_left
) -> str | None:
    """The shortage that caused `error` (rules 1 to 3); None for every other error."""
    reason = None
    for number, unresolved in _numbers(error):
        if number in _PEERS:
            return None
        if unresolved and reason is None:
            reason = MEMORY if number == socket.EAI_MEMORY else None if left() else DESCRIPTORS
        elif not unresolved:
            reason = reason or _REASONS.get(number)
    return reason


def _numbers(error: BaseException | None) -> Iterator[tuple[int, bool]]:
    """The error numbers in `error` and those it wraps, each with whether it comes from name
    resolution."""
    seen: list[BaseException] = []
    while error is not None and error not in seen and len(seen) < _DEPTH:
        seen.append(error)
        if isinstance(error, socket.gaierror):
            yield error.errno or 0, True
        elif isinstance(error, OSError) and error.errno == errno.EBUSY:
            yield errno.EBUSY, True  # how libuv reports a lookup that could not open anything
        elif isinstance(error, ExceptionGroup):
            for one in error.exceptions:
                yield from _numbers(one)
        elif isinstance(error, OSError):
            if error.errno is not None:
                yield error.errno, False
            else:
                yield from ((int(found), False) for found in _NUMBER.findall(str(error)))
        error = error.__cause__ or error.__context__


class Shortages:
    """The episodes of one proxy (rule 4). `clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}  # of the episodes that are not over
        self.episodes: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()

    def seen(self, reason: str, where: str) -> None:
        """Record a failure for lack of `reason`. `where`: what was attempted, for people."""
        self.failures[reason] += 1
        begins = reason not in self._last
        self._last[reason] = self._clock()
        if begins:
            self.episodes[reason] += 1
            facts = {"event": "shortage", "reason": reason, "where": where}
            _log.error("%s: %s failed", DETAILS[reason], where, extra=facts)

    def check(self, error: BaseException | None, where: str) -> str | None:
        """The result of `own_shortage(error)`, which is also recorded."""
        reason = own_shortage(error)
        if reason is not None:
            self.seen(reason, where)
        return reason

    def settle(self) -> None:
        """End the episodes that are over. Called regularly."""
        now = self._clock()
        for reason, last in list(self._last.items()):
            if now - last >= _QUIET:
                del self._last[reason]
                facts = {"event": "shortage_over", "reason": reason}
                _log.warning("over: %s", DETAILS[reason], extra=facts)

    def current(self) -> Iterable[str]:
        """The shortages that are not over yet."""
        return tuple(self._last)
