"""Shortages of our own: no file descriptor, no local port, no memory for a socket.

Such a failure looks like an upstream's (a connection that could not be opened) and is not: the
upstream never saw it, and a breaker or health check that counted it would take a healthy service
out of use, through Redis for the whole fleet. Rules:

1. An error is a shortage by its number (`_REASONS`), also where a library has wrapped it: causes,
   contexts and the "Multiple exceptions" of `create_connection` are looked through.
2. One address that was refused or silent outweighs a shortage at another: the upstream was asked,
   and failed. An address family that this host does not have says nothing.
3. A name that could not be resolved is a shortage if there is no descriptor to be had now: the C
   library reports a failed `open` or `socket` as "temporary failure in name resolution".
4. A shortage is an episode: one log line when it begins, one when it has been over for `_QUIET`
   seconds, a counter of episodes and one of failures. Never a line per failure.
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

#: What is said of each, to callers and in the log.
DETAILS = {
    DESCRIPTORS: "this proxy has no file descriptor left",
    SYSTEM_DESCRIPTORS: "this host has no file descriptor left",
    PORTS: "this host has no local port or address left for the connection",
    MEMORY: "this host has no memory left for the connection",
}

#: Errors that say something about the peer, not about us.
_PEERS = {
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.EHOSTUNREACH,
    errno.EPIPE,
    errno.ETIMEDOUT,
}

_NUMBER = re.compile(r"\[Errno (-?\d+)\]")

#: How many wrappings are looked through; errors may refer to each other in circles.
_DEPTH = 10


def descriptors_left() -> bool:
    """Whether a descriptor can be had at this moment: asked of the kernel, 2 us."""
    try:
        os.close(os.open("/", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno not in (errno.EMFILE, errno.ENFILE)
    return True


def own_shortage(
    error: BaseException | None, left: Callable[[], bool] = descriptors_left
) -> str | None:
    """Which shortage of our own `error` comes from (rules 1 to 3); None for every other error."""
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
    """Error numbers in `error` and what it wraps; True beside those of name resolution."""
    seen: list[BaseException] = []
    while error is not None and error not in seen and len(seen) < _DEPTH:
        seen.append(error)
        if isinstance(error, socket.gaierror):
            yield error.errno or 0, True
        elif isinstance(error, OSError) and error.errno == errno.EBUSY:
            yield errno.EBUSY, True  # what libuv makes of a look-up that could open nothing
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
        """Something failed for a shortage. `where`: what was tried, for people."""
        self.failures[reason] += 1
        begins = reason not in self._last
        self._last[reason] = self._clock()
        if begins:
            self.episodes[reason] += 1
            facts = {"event": "shortage", "reason": reason, "where": where}
            _log.error("%s: %s failed", DETAILS[reason], where, extra=facts)

    def check(self, error: BaseException | None, where: str) -> str | None:
        """`own_shortage(error)`, put on record."""
        reason = own_shortage(error)
        if reason is not None:
            self.seen(reason, where)
        return reason

    def settle(self) -> None:
        """End the episodes that are over. Called now and then."""
        now = self._clock()
        for reason, last in list(self._last.items()):
            if now - last >= _QUIET:
                del self._last[reason]
                facts = {"event": "shortage_over", "reason": reason}
                _log.warning("over: %s", DETAILS[reason], extra=facts)

    def current(self) -> Iterable[str]:
        """The shortages that are not over."""
        return tuple(self._last)
