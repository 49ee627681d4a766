"""What happens when the memory budget is nearly used up: the greediest connections go first.

Slowing needs no code here: a connection reads on only below the budget's `allowance`, which shrinks
as the budget fills. This is for what that does not reach, such as a thousand clients that each take
nothing of a large answer.

 1. At level `shed`, connections are ended in the order of what they hold, both their directions and
    their upstream connection's included, until enough is free. A request without an answer gets
    503 `overloaded`, an answer that has begun is cut.
 2. Whoever holds less than a request needs is never ended, nor, where there are very many, less
    than a fair share.
 3. What the process has beside its accounts counts too, as `unaccounted`: what is resident, less
    what is accounted for and what a program of this kind takes anyway, up to half of the budget. So
    a kind of holder that nobody thought of makes the allowances smaller instead of the process too
    large.
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
from proxy.http1.upstream.pool import UpstreamStream

logger = logging.getLogger(__name__)

#: Seconds between two rounds of shedding, and between two looks at the resident memory.
_ROUND, _LOOK = 0.05, 0.25

#: Bytes of freed memory that are worth asking for.
_FREE = 16 * 1024 * 1024

#: Connections that are ended in one round: each costs as much as a request.
_AT_ONCE = 100

#: Looks that freed memory is waited for before the allocator is asked for it, since that takes
#: milliseconds and memory that is used again at once is cheap; none while the process grows beyond
#: its limit. One that stays there is looked through every so many looks.
_PATIENCE = 20

#: A connection that holds less is never ended; where there are very many, the fair share of each
#: counts, but never less than this.
_SPARED, _LEAST_SPARED = 2 * LEAST, 4 * 1024

#: Bytes that the interpreter and the program may take without being asked what for.
_OWN = 48 * 1024 * 1024

#: The share of the limit to which shedding goes on.
_ENOUGH = SHED_AT - 0.10

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Shedding:
    """Keeps the process within `memory`; `shed` counts the connections that were ended for it."""

    def __init__(
        self, memory: MemoryBudget, sweeper: Sweeper, resident: Callable[[], int] | None = None
    ) -> None:
        self.shed = 0
        self._memory = memory
        self._sweeper = sweeper
        self._resident = resident or resident_bytes
        self._unaccounted = Holding(memory.account("unaccounted"))
        self._looks_beyond = 0  # in a row,
        self._lowest_beyond = 1 << 60  # above the lowest seen
        self._timers: dict[str, asyncio.Handle] = {}
        memory.changed.append(self._changed)

    def start(self) -> None:
        """Begin to look."""
        self._later("look", _LOOK, self._look)

    def stop(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def round(self) -> int:
        """End the greediest until enough is free; how many."""
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
        """Who holds more than is spared, and how much; and what those hold that are going."""
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
            return  # no descriptor to ask with: what was seen last still holds
        beyond = resident - accounted - _OWN
        self._unaccounted.set(min(max(0, beyond), self._memory.limit // 2))
        grown = beyond > self._lowest_beyond + _FREE
        over = resident > self._memory.limit and beyond > 2 * _FREE
        self._lowest_beyond = min(self._lowest_beyond, beyond)
        self._looks_beyond = self._looks_beyond + 1 if grown or over else 0
        if self._looks_beyond >= (1 if grown and over else _PATIENCE):
            self._looks_beyond = 0
            self._lowest_beyond = beyond  # if nothing comes of it, it is in use
            asyncio.get_running_loop().run_in_executor(None, give_back_freed_memory)

    def _later(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        """Once, however often it is asked for."""
        loop = asyncio.get_running_loop()
        if name not in self._timers or name == "look":
            self._timers[name] = loop.call_later(seconds, call)


def resident_bytes() -> int:
    """What the process has in memory now, without the pages of files that others may share."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE
