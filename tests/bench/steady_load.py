"""Requests at a fixed rate, half of them on connections of their own, half on kept ones.

A request fails when it gets no 200, is refused, reset or cut, also on a kept connection, where a
client would be allowed to ask again. Latency counts from the scheduled moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from proxy.demo.redis_server import RedisServer, free_port
from tests.bench import small_upstream
from tests.bench.stats import quantile
from tests.http1.process import ProxyProcess

_REQUEST = b"GET /small HTTP/1.1\r\nHost: bench\r\n\r\n"


class _Exchange(asyncio.Protocol):
    """One connection of a caller, with one request at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._answer: asyncio.Future[bytes] | None = None
        self._data = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def ask(self) -> asyncio.Future[bytes]:
        """Send; the head of the answer, when all of it is there."""
        assert self.transport is not None
        self._data = b""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(_REQUEST)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, body = self._data.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if end and self._answer is not None and len(body) >= int(length or 0):
            self._answer.set_result(head)
            self._answer = None

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._load.kept.discard(self)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError(f"cut: {error}"))


class Load:
    """Asks on schedule, whether or not earlier requests have been answered."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.kept: set[_Exchange] = set()  # idle
        self.failed: Counter[str] = Counter()
        self.seconds: list[float] = []

    async def run(self, requests: int, rate: float) -> None:
        """All of them."""
        began = time.monotonic()
        running: set[asyncio.Task[None]] = set()
        for number in range(requests):
            due = began + number / rate
            wait = due - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            elif not number % 16:
                await asyncio.sleep(0)
            task = asyncio.create_task(self._one(due, keep=number % 2 == 0))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)

    async def _one(self, due: float, *, keep: bool) -> None:
        try:
            exchange = self.kept.pop() if keep and self.kept else await self._connected()
            async with asyncio.timeout(60):
                head = await exchange.ask()
            if not head.startswith(b"HTTP/1.1 200 "):
                self.failed[head.partition(b"\r\n")[0].decode()] += 1
            if exchange.transport is not None:
                if keep and b"connection: close" not in head.lower():
                    self.kept.add(exchange)
                else:
                    exchange.transport.close()
        except OSError as error:
            self.failed[f"{type(error).__name__} {error}"] += 1
        self.seconds.append(time.monotonic() - due)

    def summary(self, what: str) -> str:
        """Some lines: how many failed, how long they waited, and each kind of failure."""
        slowest = sorted(self.seconds)
        lines = [
            f"{sum(self.failed.values())} failed of {len(self.seconds)} requests {what}; waited:"
            f" median {quantile(slowest, 0.5) * 1e3:.1f} ms, 99 %"
            f" {quantile(slowest, 0.99) * 1e3:.0f} ms, slowest {slowest[-1] * 1e3:.0f} ms"
        ]
        lines += [f"  {count} x {kind}" for kind, count in self.failed.most_common()]
        return "\n".join(lines)

    async def _connected(self) -> _Exchange:
        loop = asyncio.get_running_loop()
        made = await loop.create_connection(lambda: _Exchange(self), "127.0.0.1", self._port)
        return made[1]


@dataclass(frozen=True)
class LoadSite:
    """A proxy with a mirror and a trace before a small upstream, and the port of its listener."""

    directory: Path
    proxy: ProxyProcess
    port: int


@contextlib.contextmanager
def load_site() -> Iterator[LoadSite]:
    """All of it, stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        redis = RedisServer(directory / "redis")
        redis.start()
        port, upstream_port = free_port(), free_port()
        command = small_upstream.command(upstream_port, directory, root=os.geteuid() == 0)
        upstream = subprocess.Popen(command)
        route = {"name": "all", "path": "/{rest:*}", "upstream": "app"}
        config = {
            "listeners": {"front": {"bind": f"127.0.0.1:{port}", "routes": [route]}},
            "upstreams": {"app": {"targets": [f"http://127.0.0.1:{upstream_port}"]}},
            "redis": {"url": redis.url},
            "mirrors": {
                "make_video": {
                    "key": "make_video:job:{job_id}",
                    "sqlite": str(directory / "jobs.db"),
                }
            },
            "trace": {"sqlite": str(directory / "trace.db")},
        }
        try:
            proxy = ProxyProcess(directory, config)
            try:
                yield LoadSite(directory, proxy, port)
            finally:
                proxy.stop()
        finally:
            upstream.terminate()
            upstream.wait()
            redis.kill()
