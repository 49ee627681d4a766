"""A listening socket and the connections that came through it: open, drain, close."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Coroutine
from typing import Any

from proxy.clock import Clock
from proxy.config.units import Bind
from proxy.errors import ProxyError
from proxy.memory_budget import MemoryBudget
from proxy.pipeline.fair_shares import FairShares
from proxy.pipeline.plan import ListenerPlan
from proxy.pipeline.serve import Service
from proxy.pipeline.tls_accept import TlsAcceptor
from proxy.telemetry.tally import ListenerTally
from proxy.wire.client import ClientStream
from proxy.wire.deadlines import Sweeper

#: Connections that the kernel keeps for us while we are busy.
_BACKLOG = 4096

#: Descriptors of each listening socket: the event loop accepts one connection from each in a turn,
#: and who comes behind a hundred others should not wait for a hundred turns.
_ACCEPTS = 8


class ListenerRuntime:
    """One address, as long as it is listened on. `service.plan` is what a reload replaces."""

    def __init__(
        self,
        plan: ListenerPlan,
        clock: Clock,
        sweeper: Sweeper,
        memory: MemoryBudget,
        tally: ListenerTally,
    ) -> None:
        self.service = Service(plan)
        self.clients: set[ClientStream] = set()
        self._tally = tally
        self._clock = clock
        self._sweeper = sweeper
        self._memory = memory
        self._server: asyncio.Server | TlsAcceptor | None = None
        self._accepting: list[asyncio.Server] = []  # on more descriptors of its sockets
        self._arrived: set[ClientStream] = set()  # counted, and not yet through their handshake
        self._draining = False
        self._empty: asyncio.Future[None] | None = None  # somebody waits for the last to go

    @property
    def addresses(self) -> list[str]:
        """`host:port` of every socket, with the real port where the config said 0."""
        names = [s.getsockname() for s in self._server.sockets] if self._server else []
        return [f"[{n[0]}]:{n[1]}" if ":" in n[0] else f"{n[0]}:{n[1]}" for n in names]

    async def open(self, bind: Bind, tls: ssl.SSLContext | None, reuse_port: bool) -> None:
        """Begin to listen. Raises `OSError` when the address cannot be had.

        A TLS client has as long for its handshake as for the head of its first request.
        """
        if tls is not None:
            sockets = TlsAcceptor.bound(bind, reuse_port)
            acceptor = TlsAcceptor(sockets, tls, self, lambda: self.service.plan.header_timeout)
            self._server = acceptor
            acceptor.start(_BACKLOG)
            return
        loop = asyncio.get_running_loop()
        server = self._server = await loop.create_server(
            self._stream,
            bind.host or None,
            bind.port,
            reuse_address=True,
            reuse_port=reuse_port or None,
            backlog=_BACKLOG,
        )
        for listening in server.sockets:
            for _ in range(_ACCEPTS - 1):
                again = socket.socket(fileno=os.dup(listening.fileno()))
                self._accepting.append(
                    await loop.create_server(self._stream, sock=again, backlog=_BACKLOG)
                )
            # An answer must not wait for the client's delayed acknowledgement of the head.
            if listening.family != socket.AF_UNIX:
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def use_tls(self, context: ssl.SSLContext) -> None:
        """Take new certificates. Handshakes under way and connections keep theirs."""
        if isinstance(self._server, TlsAcceptor):
            self._server.context = context

    def _stream(self) -> ClientStream:
        return ClientStream(self._clock, self._sweeper, self._memory, self._begin, self._gone)

    # --- TLS, before its handshake (`tls_accept.Connections`) ------------------------------------

    def arrive(self, address: str) -> ClientStream | None:
        """The stream of a connection from there, counted; None: close it at once."""
        client = self._stream()
        client.host_ip = address
        shares = self.service.plan.shares
        if shares is not None and not shares.arrive(client, self._clock.monotonic()):
            shares.disconnect(client)
            return None
        self._arrived.add(client)
        return client

    def vanish(self, client: ClientStream) -> None:
        """Its handshake is over: forget it, unless it has begun to be served."""
        if client in self._arrived:
            self._arrived.remove(client)
            FairShares.disconnect(client)

    def full(self, handshakes: int) -> bool:
        """Whether there is no place for another connection beside so many handshakes."""
        return len(self.clients) + handshakes >= self.service.plan.max_connections

    # --- connections ----------------------------------------------------------------------------

    def _begin(self, client: ClientStream) -> Coroutine[Any, Any, None]:
        """Count a connection in, and say what serves it."""
        plan = self.service.plan
        if isinstance(self._server, TlsAcceptor):
            self._arrived.discard(client)
            self._server.done(client)
        refusal: ProxyError | None = None
        if plan.shares is not None:
            refusal = plan.shares.connect(client, self._clock.monotonic())
        if len(self.clients) >= plan.max_connections:
            refusal = self.service.full()
        self.clients.add(client)
        self._tally.opened()
        if self._draining:
            client.drain()
        return self.service(client) if refusal is None else self.service.turn_away(client, refusal)

    def _gone(self, client: ClientStream) -> None:
        self.clients.discard(client)
        self._tally.closed()
        if client.share is not None:
            FairShares.disconnect(client)
        if not self.clients and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    def count_at(self, tally: ListenerTally) -> None:
        """From now on connections count there, those that are open too: the listener's name may
        have changed."""
        self._tally.open -= len(self.clients)
        tally.open += len(self.clients)
        self._tally = tally

    def drain(self) -> None:
        """Take no new connections; end each one we have after its current exchange."""
        self._draining = True
        for server in (self._server, *self._accepting):
            if server is not None:
                server.close()
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
        if isinstance(self._server, TlsAcceptor):
            await self._server.abort()
        for client in list(self.clients):
            client.abort()
        await self.drained()
