"""A listening socket and the connections that came through it: open, drain, close."""

from __future__ import annotations

import asyncio
import socket
import ssl

from proxy.clock import Clock
from proxy.config.units import Bind
from proxy.pipeline.plan import ListenerPlan
from proxy.pipeline.serve import Service
from proxy.telemetry.tally import ListenerTally
from proxy.wire.client import ClientStream
from proxy.wire.deadlines import Sweeper

#: Connections that the kernel keeps for us while we are busy.
_BACKLOG = 4096

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\n"
    b"Connection: close\r\n\r\n"
)


class ListenerRuntime:
    """One address, as long as it is listened on. `service.plan` is what a reload replaces."""

    def __init__(
        self, plan: ListenerPlan, clock: Clock, sweeper: Sweeper, tally: ListenerTally
    ) -> None:
        self.service = Service(plan)
        self.clients: set[ClientStream] = set()
        self._tally = tally
        self._clock = clock
        self._sweeper = sweeper
        self._server: asyncio.Server | None = None
        self._empty: asyncio.Future[None] | None = None  # somebody waits for the last to go

    @property
    def addresses(self) -> list[str]:
        """`host:port` of every socket, with the real port where the config said 0."""
        names = [s.getsockname() for s in self._server.sockets] if self._server else []
        return [f"[{n[0]}]:{n[1]}" if ":" in n[0] else f"{n[0]}:{n[1]}" for n in names]

    async def open(self, bind: Bind, tls: ssl.SSLContext | None, reuse_port: bool) -> None:
        """Begin to listen. Raises `OSError` when the address cannot be had."""
        self._server = await asyncio.get_running_loop().create_server(
            self._accept,
            bind.host or None,
            bind.port,
            ssl=tls,
            reuse_address=True,
            reuse_port=reuse_port or None,
            backlog=_BACKLOG,
        )
        for listening in self._server.sockets:
            # An answer must not wait for the client's delayed acknowledgement of the head.
            if listening.family != socket.AF_UNIX:
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _accept(self) -> ClientStream:
        full = len(self.clients) >= self.service.plan.max_connections
        serve = _refuse if full else self.service
        client = ClientStream(self._clock, self._sweeper, serve, self._gone)
        self.clients.add(client)
        self._tally.opened()
        return client

    def _gone(self, client: ClientStream) -> None:
        self.clients.discard(client)
        self._tally.closed()
        if not self.clients and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    def drain(self) -> None:
        """Take no new connections; end each one we have after its current exchange."""
        if self._server is not None:
            self._server.close()
        for client in list(self.clients):
            client.drain()

    def cut(self) -> None:
        """End every exchange in progress: with a 503 where no answer has begun."""
        for client in list(self.clients):
            client.cut = True
            client.wake()

    async def drained(self) -> None:
        """Until the last connection is gone and its coroutine has ended."""
        while self.clients:
            if self._empty is None or self._empty.done():
                self._empty = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._empty)

    async def abort(self) -> None:
        """End every connection now."""
        for client in list(self.clients):
            client.abort()
        await self.drained()


async def _refuse(client: ClientStream) -> None:
    """What serves a connection that is one too many."""
    client.transport.write(_FULL)
    client.close()
