"""A caller's connection, and the one place where its coroutine waits.

Each client connection is served by one coroutine. Whatever that coroutine may be waiting for — the
client, the upstream connection it uses, a free connection, a deadline — wakes it through `notify`;
it then looks at the state of things and decides. So nothing is ever cancelled, and no wake-up can
be missed: between looking and waiting no callback runs.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

from proxy.clock import Clock
from proxy.wire.codec import HeadMemo, RequestHead, find_head_end, parse_request
from proxy.wire.deadlines import NEVER, Sweeper
from proxy.wire.stream import Stream


class Limits:
    """What a client may send, in bytes and fields (config `limits`)."""

    __slots__ = ("fields", "head", "line", "memo")

    def __init__(self, line: int, head: int, fields: int) -> None:
        self.line = line
        self.head = head
        self.fields = fields
        self.memo = HeadMemo(parse_request)


class ClientStream(Stream):
    """A connection that a caller opened. `serve` is the coroutine function that serves it."""

    __slots__ = (
        "_future",
        "_loop",
        "_on_lost",
        "_serve",
        "_sweeper",
        "address",
        "clock",
        "cut",
        "draining",
        "eof_at",
        "host_ip",
        "requests",
        "secure",
        "task",
    )

    def __init__(
        self,
        clock: Clock,
        sweeper: Sweeper,
        serve: Callable[[ClientStream], Coroutine[Any, Any, None]],
        on_lost: Callable[[ClientStream], None],
    ) -> None:
        super().__init__()
        self.clock = clock
        self._sweeper = sweeper
        self._serve = serve
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None
        self.eof_at = NEVER
        self.address = "unix"
        self.host_ip = ""
        self.secure = False
        self.requests = 0
        self.draining = False  # the exchange in progress is the last one
        self.cut = False  # and its time is over

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self.host_ip = str(peer[0])
            self.address = (
                f"[{peer[0]}]:{peer[1]}" if ":" in self.host_ip else f"{peer[0]}:{peer[1]}"
            )
        self.secure = isinstance(transport.get_extra_info("ssl_object"), ssl.SSLObject)
        self._sweeper.add(self)
        self.task = self._loop.create_task(self._serve(self), name=f"client {self.address}")

    def eof_received(self) -> bool:
        self.eof_at = self.clock.monotonic()
        return super().eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._sweeper.discard(self)
        self._on_lost(self)

    def notify(self) -> None:
        future = self._future
        if future is not None:
            self._future = None
            if not future.done():
                future.set_result(None)

    def on_deadline(self) -> None:
        self.notify()

    def drain(self) -> None:
        """Let the exchange in progress be the last one."""
        self.draining = True
        self.notify()

    async def wait(self, deadline: float) -> None:
        """Until something happens, or `deadline` (monotonic) is past. Look again afterwards."""
        self.deadline = deadline
        self._future = future = self._loop.create_future()
        await future

    async def read_head(
        self, limits: Limits, idle: float, header_time: float
    ) -> RequestHead | None:
        """The next request's head; None when the client left or stayed silent between requests.

        `idle` seconds may pass before the first byte, `header_time` from there to the end of the
        head. Raises `ProtocolError`, and `TimeoutError` when a head was begun but not ended.
        """
        deadline = self.clock.monotonic() + (idle if self.requests else header_time)
        begun = False
        while True:
            if self._pieces:
                data = self.take()
                if data.startswith(b"\r\n"):
                    data = data[2:]  # one empty line is forgiven, RFC 9112 §2.2
                end = find_head_end(data, limits.line, limits.head)
                if end >= 0:
                    head = limits.memo.read(data, end, limits.fields)
                    if len(data) > end + 4:
                        self.untake(data[end + 4 :])
                    self.requests += 1
                    return head
                self.untake(data)
                if data and not begun:
                    begun = True
                    deadline = self.clock.monotonic() + header_time
            if self.eof or (self.draining and not begun):
                return None
            if self.clock.monotonic() >= deadline:
                if begun:
                    raise TimeoutError
                return None
            await self.wait(deadline)
