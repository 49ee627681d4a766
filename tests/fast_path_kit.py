"""A proxy without sockets, for scenarios of the fast path: one listener, one upstream `app`.

Transports write down what they are told, connections to the upstream are made on the spot, time is
moved by hand. It needs a running event loop, in which nothing but call-backs is ever due.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from proxy.config.schema import Config
from proxy.core.clock import Clock, ManualClock
from proxy.core.memory.budget import MemoryBudget
from proxy.forward import exchange
from proxy.forward.routing.binding import Binding, Stage
from proxy.forward.routing.compile import Compiler, Engine
from proxy.forward.routing.plan import Hooks, ListenerPlan, UpstreamPlan
from proxy.http1.client import ClientStream
from proxy.http1.deadlines import Sweeper
from proxy.http1.upstream.connection import UpstreamStream
from proxy.http1.upstream.pool import TargetPool
from proxy.resilience.circuit.circuit import CircuitBreaker
from proxy.server import fast_path
from proxy.server.connection import Service
from proxy.spool import Spool


def pieces(whole: bytes, cuts: list[int]) -> list[bytes]:
    """`whole` cut at these places, taken modulo its length."""
    places = sorted({cut % len(whole) for cut in cuts} - {0})
    return [whole[a:b] for a, b in zip([0, *places], [*places, len(whole)], strict=True)]


def spool(memory: MemoryBudget, clock: Clock) -> Spool:
    """A spool that nothing is expected to be written to."""
    return Spool(Path("/nonexistent"), 1024 * 1024, memory.account("spool"), clock)


@contextmanager
def same_ids() -> Iterator[None]:
    """Correlation IDs that both make alike."""
    numbers = count()
    with patch.object(exchange, "new_correlation_id", lambda: f"id-{next(numbers)}"):
        yield


def plain_shut() -> AbstractContextManager[object]:
    """While it lasts, no exchange is plain."""
    return patch.object(fast_path, "_prepare", lambda data, listener: None)


class Asking:
    """A stage that asks every route for `hooks`."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks

    def bind(self, binding: Binding) -> Hooks:
        return self._hooks


class Recorder(asyncio.Transport):
    """A transport that records every call, as (name, bytes)."""

    def __init__(self, name: str, writes: list[tuple[str, bytes]], peer: socket.socket) -> None:
        super().__init__({"socket": peer, "peername": ("127.0.0.1", 40000)})
        self.name = name
        self.closing = False
        self.written = b""
        self._writes = writes

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """There is no buffer."""

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        """Whoever reads is the test."""

    def resume_reading(self) -> None:
        """Whoever reads is the test."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.closing:
            self.written += bytes(data)
            self._writes.append((self.name, bytes(data)))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._writes.append((self.name, b"EOF"))

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self._end(b"CLOSE")

    def abort(self) -> None:
        self._end(b"ABORT")

    def _end(self, how: bytes) -> None:
        if not self.closing:
            self.closing = True
            self._writes.append((self.name, how))


class Rig:
    """The proxy, and one client that has connected. `connections` are those to the upstream, in
    the order in which they were opened; the first is there from the start. Call `close`."""

    def __init__(self, stages: Sequence[Stage] = (), **upstream: Any) -> None:
        self.clock = ManualClock()
        self.sweeper = Sweeper(self.clock)
        self.memory = MemoryBudget()
        self.writes: list[tuple[str, bytes]] = []
        self.breaker: CircuitBreaker | None = None
        self._config = Config.model_validate(
            {
                "listeners": {
                    "front": {
                        "bind": "127.0.0.1:0",
                        "routes": [{"name": "all", "path": "/{rest:*}", "upstream": "app"}],
                    }
                },
                "upstreams": {
                    "app": {
                        "targets": ["http://127.0.0.1:1"],
                        "pool": {"keepalive": "1h", "max_connections": 3},
                        **upstream,
                    }
                },
            }
        )
        plans = Compiler(
            stages,
            Engine(
                self.clock,
                self.sweeper,
                self.memory,
                spool(self.memory, self.clock),
                Random(1),
            ),
            lambda _: lambda _: None,
            self._breaker_of,
        ).compile(self._config)
        self.plan: UpstreamPlan = plans.upstreams["app"]
        self.listener: ListenerPlan = plans.listeners["front"]
        self.pool: TargetPool = self.plan.upstream.pools[0]
        self._sockets = socket.socketpair()
        self.connections: list[tuple[UpstreamStream, Recorder]] = []
        self.refused = 0  # dials that are to fail from now on
        # The instance's own, in place of the method: there is nobody to dial.
        self.pool._dial_for_waiting = self._dial  # type: ignore[method-assign]
        self.client = ClientStream(
            self.clock, self.sweeper, self.memory, Service(self.listener), lambda _: None
        )
        self.answer = Recorder("client", self.writes, self._sockets[1])
        self.client.connection_made(self.answer)
        self._connect()

    def _breaker_of(self, name: str) -> CircuitBreaker | None:
        rules = self._config.upstreams[name].breaker
        if rules is not None:
            self.breaker = CircuitBreaker(
                name, rules, clock=self.clock, owner="here", rng=Random(1)
            )
        return self.breaker

    def _connect(self) -> None:
        stream = UpstreamStream(self.pool)
        recorder = Recorder(f"upstream {len(self.connections)}", self.writes, self._sockets[0])
        stream.connection_made(recorder)
        self.connections.append((stream, recorder))
        self.pool.adopt(stream)

    def another_client(self) -> ClientStream:
        """One more that has connected; calls to it are recorded as `another`."""
        client = ClientStream(
            self.clock, self.sweeper, self.memory, Service(self.listener), lambda _: None
        )
        client.connection_made(Recorder("another", self.writes, self._sockets[1]))
        return client

    def _dial(self) -> None:
        while self.pool._waiting and self.pool._has_room():
            if not self.refused:
                self._connect()
                continue
            self.refused -= 1
            ticket = self.pool._waiting.popleft()
            ticket.error = ConnectionRefusedError(111, "refused on purpose")
            ticket.owner.wake()

    def pass_time(self, seconds: float) -> None:
        """Let that much time pass, and those who wait for it know."""
        self.clock.advance(seconds)
        self.sweeper.sweep()

    def close(self) -> None:
        """The client goes, if it is still there; then everything else."""
        if not self.client.lost:
            self.client.connection_lost(None)
        for one in self._sockets:
            one.close()
