"""Bounds the connections of an admin or metrics port in number and time.

aiohttp waits forever for the head of a client's first request, and for a client to receive a
response. On ports that answer probes, a few hundred idle connections would use up the process'
descriptors, and probes would fail. Rules:

1. A request's head must be complete within `_HEAD` seconds, from the connection's start or from the
   head's first byte. Between requests aiohttp closes an idle connection after 30 s.
2. A client that receives nothing of a response for `_STALLED` seconds is disconnected.
3. The bytes it has not received count in the memory budget.
4. At most `MOST` connections are open. One more replaces the connection that has been idle longest;
   if all have a request, the new one is closed.
5. At most `_STARTS` requests begin in one turn of the event loop.
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

#: Seconds: the default of a listener's `timeouts.header`; and the time to receive a response.
_HEAD, _STALLED = 10.0, 30.0

#: Seconds between two checks of all connections.
_CHECK_EVERY = 1.0

#: Requests of a port that begin in one turn of the event loop; one takes half a millisecond.
_STARTS = 4

_REASONS = ("full", "head", "stalled")


class Connection(asyncio.Protocol):
    """One connection, served by aiohttp's protocol `inner` and bounded here."""

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
        self.owes = True  # a request's head is expected: the first one, or one that has begun
        self.since = 0.0  # when that began, or the last request ended; monotonic seconds
        self.stalled: float | None = None  # since when the client receives nothing

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
        """Why the connection is to be closed; None if it is in time."""
        if self.stalled is not None and now - self.stalled >= _STALLED:
            return "stalled"
        if self.owes and not self.busy and now - self.since >= _HEAD:
            return "head"
        return None


class Connections:
    """The connections of one port. `cut` counts the closed ones by reason: `head`, `stalled`,
    `full`."""

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
        self._leaving: set[Connection] = set()  # aborted, but not yet gone
        self._timer: asyncio.TimerHandle | None = None
        self._starts = 0  # in this turn of the loop
        self._to_start: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._open.values())

    def bounded(self, server: Callable[[], asyncio.Protocol]) -> Callable[[], Connection]:
        """A protocol factory whose connections are bounded here and served by `server`."""
        return lambda: Connection(server(), self)

    def middleware(self) -> Middleware:
        """Marks connections whose request is being handled (rules 1 and 5)."""

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
        """Add a connection; False if there is no room for it."""
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
            self._timer = asyncio.get_running_loop().call_later(_CHECK_EVERY, self._check)
        return True

    def discard(self, connection: Connection) -> bool:
        """Remove a connection that has ended; returns whether it had been added."""
        if connection in self._leaving:
            self._leaving.discard(connection)
            return True
        return self._open.pop(connection.transport, None) is not None

    def _check(self) -> None:
        self._timer = None
        self.cut_late()
        if self._open:
            self._timer = asyncio.get_running_loop().call_later(_CHECK_EVERY, self._check)

    def cut_late(self) -> None:
        """Close the connections that are late."""
        now = self.clock()
        for connection in list(self._open.values()):
            reason = connection.late(now)
            if reason is not None:
                self.cut[reason] += 1
                connection.transport.abort()

    def close_idle(self) -> None:
        """Close the connections without a request in progress."""
        for connection in list(self._open.values()):
            if not connection.busy:
                connection.transport.close()

    def close(self) -> None:
        """Stop checking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class ConnectionMetrics(Collector):
    """Metrics of the connections, by port."""

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
