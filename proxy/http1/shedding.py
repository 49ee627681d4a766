"""Load shedding: when the memory budget is nearly used up, close the connections that hold most.

Slowing down needs no code here: a connection is read only below the budget's `allowance`, which
shrinks as the budget fills. Shedding is for cases that this does not reach, such as a thousand
clients that each read nothing of a large response.

 1. At level `shed`, connections are closed in order of the memory they hold, in both directions and
    including their upstream connection, until enough is free. An unanswered request gets 503
    `overloaded`; a response that has begun is cut.
 2. A connection that holds less than a request needs is never closed or, with very many
    connections, one that holds less than its fair share.
 3. Memory outside the accounts counts too, as `unaccounted`: resident memory minus what is
    accounted for and what such a program needs anyway, up to half of the budget. An unforeseen
    consumer then shrinks the allowances instead of growing the process beyond its limit.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import os
from collections.abc import Callable

from proxy.core.memory.allocator import give_back_freed_memory
from proxy.core.memory.budget import LEAST, SHED_AT, Holding, Level, MemoryBudget
from proxy.http1.client import ClientStream
from proxy.http1.deadlines import Sweeper
from proxy.http1.upstream.connection import UpstreamStream

logger = logging.getLogger(__name__)

#: Seconds between two rounds of shedding, and between two checks of the resident memory.
_ROUND, _LOOK = 0.05, 0.25

#: Bytes of freed memory that are worth returning to the system.
_FREE = 16 * 1024 * 1024

#: Connections closed in one round; each costs as much as a request.
_AT_ONCE = 100

#: Checks to wait before the allocator is asked to return freed memory: that takes milliseconds, and
#: the memory may be reused soon. No wait while the process grows beyond its limit; if it stays
#: beyond the limit, the allocator is asked after every so many checks.
_PATIENCE = 20

#: A connection that holds less is never closed; with very many connections, the fair share of each
#: counts instead, but not less than the second value.
_SPARED, _LEAST_SPARED = 2 * LEAST, 4 * 1024

#: Bytes that the interpreter and the program need themselves.
_OWN = 48 * 1024 * 1024

#: The share of the limit to which shedding goes on.
_ENOUGH = SHED_AT - 0.10

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Shedding:
    """Keeps the process within `memory`; `shed` counts the connections closed for it."""

    def __init__(
        self, memory: MemoryBudget, sweeper: Sweeper, resident: Callable[[], int] | None = None
    ) -> None:
        self.shed = 0
        self._memory = memory
        self._sweeper = sweeper
        self._resident = resident or resident_bytes
        self._unaccounted = Holding(memory.account("unaccounted"))
        # Checks in a row that found the unaccounted memory well above its lowest value.
        self._looks_beyond = 0
        self._lowest_beyond = 1 << 60
        self._timers: dict[str, asyncio.Handle] = {}
        memory.changed.append(self._changed)

    def start(self) -> None:
        """Start checking the resident memory."""
        self._later("look", _LOOK, self._look)

    def stop(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def round(self) -> int:
        """Close the largest holders until enough memory is free; returns how many."""
        holders, going = self._holders()
        excess = self._memory.used - going - int(self._memory.limit * _ENOUGH)
        ended = 0
        for size, _, client in heapq.nlargest(_AT_ONCE, holders):
            if excess <= 0:
                break
            client.end_for_memory()
            excess -= size
            ended += 1
        self.shed += ended
        return ended

    def _holders(self) -> tuple[list[tuple[int, int, ClientStream]], int]:
        """The connections that hold enough to be closed, with sizes; and the bytes held by those
        already closing."""
        held: dict[ClientStream, int] = {}
        for member in self._sweeper.members:
            if isinstance(member, ClientStream):
                held[member] = held.get(member, 0) + member.buffered + member.held
            elif isinstance(member, UpstreamStream) and isinstance(member.owner, ClientStream):
                held[member.owner] = held.get(member.owner, 0) + member.buffered
        fair = int(self._memory.limit * _ENOUGH / 2 / max(1, len(held)))
        spared = max(_LEAST_SPARED, min(_SPARED, fair))
        going = sum(size for client, size in held.items() if client.shed)
        return [
            (size, id(client), client)
            for client, size in held.items()
            if size > spared and not client.shed
        ], going

    def _changed(self, level: Level, before: Level) -> None:
        facts = {
            "event": "memory_level",
            "level": level.label,
            "before": before.label,
            "used": self._memory.used,
            "limit": self._memory.limit,
            "holders": self._memory.accounts(),
        }
        logger.log(
            logging.INFO if level is Level.NORMAL else logging.WARNING,
            "memory level changed",
            extra=facts,
        )
        if level is Level.SHED:
            self._later("round", 0.0, self._rounds)

    def _rounds(self) -> None:
        del self._timers["round"]
        if self._memory.level is Level.SHED:
            if ended := self.round():
                logger.warning(
                    "connections shed for memory",
                    extra={"event": "memory_shed", "connections": ended},
                )
            self._later("round", _ROUND, self._rounds)

    def _look(self) -> None:
        self._later("look", _LOOK, self._look)
        elsewhere = self._unaccounted.size + self._memory.memory_files.used
        accounted = self._memory.used - elsewhere
        try:
            resident = self._resident()
        except OSError:
            return  # no free descriptor: keep the last value
        beyond = resident - accounted - _OWN
        self._unaccounted.set(min(max(0, beyond), self._memory.limit // 2))
        grown = beyond > self._lowest_beyond + _FREE
        over = resident > self._memory.limit and beyond > 2 * _FREE
        self._lowest_beyond = min(self._lowest_beyond, beyond)
        self._looks_beyond = self._looks_beyond + 1 if grown or over else 0
        if self._looks_beyond >= (1 if grown and over else _PATIENCE):
            self._looks_beyond = 0
            self._lowest_beyond = beyond  # if nothing is returned, the memory is in use
            asyncio.get_running_loop().run_in_executor(None, give_back_freed_memory)

    def _later(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        """Schedule `call` once, however often it is requested."""
        loop = asyncio.get_running_loop()
        if name not in self._timers or name == "look":
            self._timers[name] = loop.call_later(seconds, call)


def resident_bytes() -> int:
    """The process's resident memory in bytes."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE
