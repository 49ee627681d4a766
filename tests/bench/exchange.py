"""One plain exchange in a hot loop, without sockets: what the proxy's own Python costs a request.

The parts are the real ones, compiled from a real config: listener, route, pool, metrics, access
log. Only the two transports are stand-ins, which throw away what is written. What is left out is
the kernel, uvloop, and caches that other code has filled in between: in life it is half as much
again.
"""

from __future__ import annotations

import asyncio
import os
import socket
import weakref
from collections.abc import Callable
from random import Random

from proxy import __version__
from proxy.clock import SystemClock
from proxy.config.schema import Config
from proxy.pipeline.compile import Compiler
from proxy.pipeline.serve import Service
from proxy.stages.access_line import AccessLine
from proxy.stages.route_metrics import RouteMetrics
from proxy.telemetry.access import AccessLog
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.outputs import FileOutput
from proxy.telemetry.writer import LogWriter
from proxy.wire.client import ClientStream
from proxy.wire.deadlines import Sweeper
from proxy.wire.pool import UpstreamStream

_CONFIG = {
    "listeners": {
        "bench": {
            "bind": "127.0.0.1:0",
            "routes": [{"name": "all", "path": "/{rest:*}", "upstream": "app"}],
        }
    },
    "upstreams": {"app": {"targets": ["http://127.0.0.1:1"], "pool": {"keepalive": "1h"}}},
}

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


def hot_exchange() -> Callable[[], object]:
    """A function that carries one GET through a listener to an idle connection and back."""
    return asyncio.run(_build())  # an exchange itself needs no loop: nothing in it waits


async def _build() -> Callable[[], object]:
    clock = SystemClock()
    sweeper = Sweeper(clock)
    metrics = Metrics(__version__)
    writer = LogWriter(FileOutput(os.devnull))
    compiler = Compiler(
        (RouteMetrics(metrics), AccessLine(AccessLog(writer))),
        clock,
        sweeper,
        Random(1),
        lambda upstream: metrics.upstream(upstream).connected,
        lambda upstream: None,
    )
    plans = compiler.compile(Config.model_validate(_CONFIG))
    service = Service(plans.listeners["bench"])
    pool = plans.upstreams["app"].upstream.pools[0]
    ours, theirs = socket.socketpair()
    answer = _Transport(theirs)
    client = ClientStream(clock, sweeper, service, lambda _: None)
    client.connection_made(answer)
    upstream = UpstreamStream(pool)
    upstream.connection_made(_Transport(ours))
    pool.adopt(upstream)

    def exchange() -> bytes:
        client.data_received(REQUEST)
        upstream.data_received(RESPONSE)
        return answer.written

    def clean_up() -> None:
        client.eof_received()
        ours.close()
        theirs.close()
        writer.close(1.0)

    weakref.finalize(exchange, clean_up)
    for _ in range(2):
        if not exchange().endswith(RESPONSE[-101:]):
            raise AssertionError(f"not the answer: {answer.written!r}")
    return exchange
