"""A listening socket and the connections that came through it: open, drain, close."""

from __future__ import annotations

import asyncio
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
from proxy.telemetry.tally import ListenerTally
from proxy.wire.client import ClientStream
from proxy.wire.deadlines import Sweeper

#: Connections that the kernel keeps for us while we are busy.
_BACKLOG = 4096

#: Seconds that the end of TLS may take, what is still to be sent before it included. Who takes
#: nothing, or has taken everything, is not waited for that long (`ClientStream.close`).
_TLS_SHUTDOWN = 3600.0


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
        self._server: asyncio.Server | None = None
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
        self._server = await asyncio.get_running_loop().create_server(
            lambda: ClientStream(self._clock, self._sweeper, self._memory, self._begin, self._gone),
            bind.host or None,
            bind.port,
            ssl=tls,
            ssl_handshake_timeout=self.service.plan.header_timeout if tls is not None else None,
            ssl_shutdown_timeout=_TLS_SHUTDOWN if tls is not None else None,
            reuse_address=True,
            reuse_port=reuse_port or None,
            backlog=_BACKLOG,
        )
        for listening in self._server.sockets:
            # An answer must not wait for the client's delayed acknowledgement of the head.
            if listening.family != socket.AF_UNIX:
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _begin(self, client: ClientStream) -> Coroutine[Any, Any, None]:
        """Count a connection in, and say what serves it.

        Not before it is made: the event loop tells nobody of a TLS handshake that fails, so who was
        counted from its first packet on would never be counted out.
        """
        plan = self.service.plan
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
