"""One plain exchange in a hot loop, without sockets: what the proxy's own Python costs a request.

The parts are the real ones, compiled from a real config: listener, route, pool, metrics, access
log. Only the two transports are stand-ins, which throw away what is written. What is left out is
the kernel, uvloop, and caches that other code has filled in between: in life it is up to twice as
much.
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from random import Random

from proxy import __version__, extend
from proxy.config.schema import Config
from proxy.core.clock import Clock, SystemClock
from proxy.core.memory.budget import MemoryBudget
from proxy.forward.routing.compile import Compiler, Engine
from proxy.http1.client import ClientStream
from proxy.http1.deadlines import Sweeper
from proxy.http1.upstream.connection import UpstreamStream
from proxy.routes.access_log import AccessLine
from proxy.routes.extensions.runner import Extensions
from proxy.routes.metrics import RouteMetrics
from proxy.server.connection import Service
from proxy.spool import Spool
from proxy.telemetry.logs.access import AccessLog
from proxy.telemetry.logs.outputs import FileOutput
from proxy.telemetry.logs.writer import LogWriter
from proxy.telemetry.metrics.registry import Metrics


class Ends(extend.Stage):
    """A stage that observes how an exchange ended."""

    def bind(self, route: extend.Route) -> extend.Hooks:
        return extend.Hooks(finished=self.finished)

    def finished(self, request: extend.Request, outcome: extend.Outcome) -> None:
        """The least that it can be for."""
        self.status = outcome.status


class Looks(extend.Stage):
    """A stage that looks at a request and its answer, and lets both pass."""

    def bind(self, route: extend.Route) -> extend.Hooks:
        return extend.Hooks(request=self.request, response=self.response)

    def request(self, request: extend.Request) -> None:
        """As one that wants a key for some paths."""
        self.guarded = request.target.startswith("/admin")

    def response(self, request: extend.Request, response: extend.Response) -> None:
        """As one that marks some answers."""
        self.status = response.status


def _config(stage: type[extend.Stage] | None) -> Config:
    route: dict[str, object] = {"name": "all", "path": "/{rest:*}", "upstream": "app"}
    if stage is not None:
        route["use"] = [f"{stage.__module__}:{stage.__name__}"]
    upstream = {"targets": ["http://127.0.0.1:1"], "pool": {"keepalive": "1h"}}
    listener = {"bind": "127.0.0.1:0", "routes": [route]}
    return Config.model_validate({"listeners": {"bench": listener}, "upstreams": {"app": upstream}})


REQUEST = b"GET /jobs/mv_0123456789 HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n\r\n"
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Mon, 24 Nov 2025 10:00:00 GMT\r\n"
    b"Content-Type: application/json\r\nContent-Length: 101\r\nConnection: keep-alive\r\n\r\n"
    + b"x"
    * 101
)


class _Transport(asyncio.Transport):
    """Takes everything and remembers the last of it."""

    def __init__(self, peer: socket.socket) -> None:
        super().__init__({"socket": peer, "peername": ("127.0.0.1", 40000)})
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written = bytes(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """There is no buffer."""

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        """There is nothing to close."""


class HotExchange:
    """Call it to carry one GET through a listener to an idle connection and back. Whoever makes one
    owes it a `close`: a garbage collector may find its sockets before it finds their owner."""

    def __init__(self, clock: Clock, stage: type[extend.Stage] | None = None) -> None:
        self._closed = False
        self.sweeper = sweeper = Sweeper(clock)
        metrics = Metrics(__version__)
        self._writer = LogWriter(FileOutput(os.devnull))
        memory = MemoryBudget()
        compiler = Compiler(
            (
                RouteMetrics(metrics),
                Extensions(metrics.registry),
                AccessLine(AccessLog(self._writer)),
            ),
            Engine(
                clock,
                sweeper,
                memory,
                Spool(Path("/tmp"), 1024 * 1024, memory.account("spool"), clock),
                Random(1),
            ),
            lambda upstream: metrics.upstream(upstream).connected,
            lambda upstream: None,
        )
        plans = compiler.compile(_config(stage))
        pool = plans.upstreams["app"].upstream.pools[0]
        self._ours, self._theirs = socket.socketpair()
        self.answer = _Transport(self._theirs)
        service = Service(plans.listeners["bench"])
        self.client = ClientStream(clock, sweeper, memory, service, lambda _: None)
        self.client.connection_made(self.answer)
        self.upstream = UpstreamStream(pool)
        self.upstream.connection_made(_Transport(self._ours))
        pool.adopt(self.upstream)

    def __call__(self) -> bytes:
        self.client.data_received(REQUEST)
        self.upstream.data_received(RESPONSE)
        return self.answer.written

    def close(self) -> None:
        """End the connection, and give back sockets and thread."""
        if self._closed:
            return
        self._closed = True
        self.client.eof_received()
        self._ours.close()
        self._theirs.close()
        self._writer.close(1.0)


def hot_exchange(
    clock: Clock | None = None, stage: type[extend.Stage] | None = None
) -> HotExchange:
    """A new one, tried."""

    async def build() -> HotExchange:
        # Streams ask for the loop; an exchange itself needs none.
        return HotExchange(clock or SystemClock(), stage)

    hot = asyncio.run(build())
    for _ in range(2):
        if not hot().endswith(RESPONSE[-101:]):
            raise AssertionError(f"not the answer: {hot.answer.written!r}")
    return hot
