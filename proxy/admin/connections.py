"""The connections of an admin or metrics port: few, and none for longer than it needs.

aiohttp gives a client all the time in the world for the head of its first request, and for taking
an answer. On ports that answer probes, a few hundred silent connections would be the end of the
process' descriptors, and of the probes' answers with it. Rules:

1. A request's head must be complete within `_HEAD` seconds: of the connection's start, or of its
   first byte. Between requests aiohttp closes a silent connection, after 30 s.
2. A client that takes nothing of an answer for `_STALLED` seconds is cut.
3. What it has not taken counts in the memory budget.
4. At most `MOST` connections are open. When there is one more, the one without a request that has
   been silent for longest goes; where all have a request, the new one does.
5. In one turn of the event loop only `_STARTS` requests begin, however many have come.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import cast

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy.admin.large_answers import Answers
from proxy.core.memory.budget import MemoryBudget

#: Connections to one port.
MOST = 128

#: Seconds; as a listener's `timeouts.header`, and what a status page's viewer has to take a frame.
_HEAD, _STALLED = 10.0, 30.0

#: Seconds between two looks at all of them.
_LOOK = 1.0

#: Requests of a port that begin in one turn of the event loop: one takes half a millisecond.
_STARTS = 4

_REASONS = ("full", "head", "stalled")


class Connection(asyncio.Protocol):
    """One connection: bounded here, served by aiohttp's protocol `inner`."""

    __slots__ = (
        "_connections",
        "_inner",
        "_unsent",
        "busy",
        "owes",
        "since",
        "stalled",
        "transport",
    )

    def __init__(self, inner: asyncio.Protocol, connections: Connections) -> None:
        self._inner = inner
        self._connections = connections
        self._unsent = connections.answers.holding()
        self.transport = cast(asyncio.Transport, None)
        self.busy = 0  # requests that are being handled
        self.owes = True  # the head of a request: the first one, or one that has begun
        self.since = 0.0  # when that began, or the last request ended; monotonic seconds
        self.stalled: float | None = None  # since when it takes nothing

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.since = self._connections.clock()
        if self._connections.add(self):
            self._inner.connection_made(transport)
        else:
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._unsent.clear()
        if self._connections.discard(self):
            self._inner.connection_lost(error)

    def data_received(self, data: bytes) -> None:
        if not (self.owes or self.busy):
            self.owes = True
            self.since = self._connections.clock()
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self.stalled = self._connections.clock()
        self._unsent.set(self.transport.get_write_buffer_size())
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self.stalled = None
        self._unsent.clear()
        self._inner.resume_writing()

    def late(self, now: float) -> str | None:
        """Why it has had its time, if it has."""
        if self.stalled is not None and now - self.stalled >= _STALLED:
            return "stalled"
        if self.owes and not self.busy and now - self.since >= _HEAD:
            return "head"
        return None


class Connections:
    """Of one port. `cut` counts those that were ended, by reason: `head`, `stalled`, `full`."""

    def __init__(
        self,
        answers: Answers | None = None,
        *,
        most: int = MOST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.answers = answers or Answers(MemoryBudget())
        self.clock = clock
        self.cut: Counter[str] = Counter()
        self.most = most
        self._open: dict[asyncio.BaseTransport, Connection] = {}
        self._leaving: set[Connection] = set()  # cut, and not yet gone
        self._timer: asyncio.TimerHandle | None = None
        self._starts = 0  # in this turn of the loop
        self._to_start: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._open.values())

    def bounded(self, server: Callable[[], asyncio.Protocol]) -> Callable[[], Connection]:
        """The protocol factory that bounds what `server` makes."""
        return lambda: Connection(server(), self)

    def middleware(self) -> Middleware:
        """Tells requests that are being handled from those that are awaited (rules 1 and 5)."""

        @web.middleware
        async def handled(request: web.Request, handler: Handler) -> web.StreamResponse:
            transport = request.transport
            connection = self._open.get(transport) if transport is not None else None
            if connection is None:
                return await handler(request)
            connection.busy += 1
            connection.owes = False
            try:
                await self._turn()
                return await handler(request)
            finally:
                connection.busy -= 1
                connection.since = self.clock()

        return handled

    async def _turn(self) -> None:
        """Wait until a request may begin to be handled."""
        if self._starts < _STARTS and not self._to_start:
            if not self._starts:
                asyncio.get_running_loop().call_soon(self._next_turn)
            self._starts += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._to_start.append(turn)
        await turn

    def _next_turn(self) -> None:
        self._starts = 0
        while self._to_start and self._starts < _STARTS:
            turn = self._to_start.popleft()
            if not turn.done():
                turn.set_result(None)
                self._starts += 1
        if self._starts:
            asyncio.get_running_loop().call_soon(self._next_turn)

    def add(self, connection: Connection) -> bool:
        """Take in a connection; False when there is no place for it."""
        if len(self._open) >= self.most:
            self.cut["full"] += 1
            silent = [one for one in self._open.values() if not one.busy]
            if not silent:
                return False
            oldest = min(silent, key=lambda one: one.since)
            del self._open[oldest.transport]
            self._leaving.add(oldest)
            oldest.transport.abort()
        self._open[connection.transport] = connection
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK, self._look)
        return True

    def discard(self, connection: Connection) -> bool:
        """A connection has ended; whether it had been taken in."""
        if connection in self._leaving:
            self._leaving.discard(connection)
            return True
        return self._open.pop(connection.transport, None) is not None

    def _look(self) -> None:
        self._timer = None
        self.cut_late()
        if self._open:
            self._timer = asyncio.get_running_loop().call_later(_LOOK, self._look)

    def cut_late(self) -> None:
        """End those that have had their time."""
        now = self.clock()
        for connection in list(self._open.values()):
            reason = connection.late(now)
            if reason is not None:
                self.cut[reason] += 1
                connection.transport.abort()

    def close_idle(self) -> None:
        """Close those without a request in progress."""
        for connection in list(self._open.values()):
            if not connection.busy:
                connection.transport.close()

    def close(self) -> None:
        """Look no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class ConnectionMetrics(Collector):
    """The gauges and counters of ports, by name. Made for one registry."""

    def __init__(self, ports: Mapping[str, Connections]) -> None:
        self._ports = ports

    def collect(self) -> Iterable[Metric]:
        """The families, read at a scrape."""
        there = GaugeMetricFamily(
            "proxy_admin_connections",
            "Open connections of the admin and metrics ports",
            labels=["port"],
        )
        cut = CounterMetricFamily(
            "proxy_admin_connections_cut",
            "Their connections that were ended for what they owed, or to make room",
            labels=["port", "reason"],
        )
        for name, connections in self._ports.items():
            there.add_metric([name], len(connections))
            for reason in _REASONS:
                cut.add_metric([name, reason], connections.cut[reason])
        return there, cut
