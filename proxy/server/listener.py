"""One listener's sockets and the connections accepted from them: open, drain, close."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Coroutine, Sequence
from typing import Any

from proxy.core.clock import Clock
from proxy.core.errors import ProxyError
from proxy.core.memory.budget import MemoryBudget
from proxy.core.process.shortage import Shortages
from proxy.core.text import host_port
from proxy.forward.routing.client_shares import ClientShares
from proxy.forward.routing.plan import ListenerPlan
from proxy.http1.client import ClientStream
from proxy.http1.deadlines import Sweeper
from proxy.server.accept import MOST, Acceptor
from proxy.server.connection import Service
from proxy.server.handshake_failures import HandshakeFailures
from proxy.server.listening import duplicate, stop_taking, waiting
from proxy.server.tls_accept import HANDSHAKES, TlsHandshakes
from proxy.telemetry.metrics.counters import ListenerTally

#: Connections that the kernel queues while the process is busy.
_BACKLOG = 4096

#: Seconds after the start of a drain in which clients can complete a TCP handshake that has begun
#: (two round trips), and the longest time for the accept queue to become empty.
_CONFIRMED, _LAST_CALL = 0.2, 5.0

#: Seconds that TLS handshakes in progress have after that: as long as a first request over plain
#: TCP.
_HANDSHAKES = 1.0

#: Seconds that a connection has for its first request before a full listener may close it.
_PROVE_WITHIN = 1.0


class ListenerRuntime:
    """One listener while it is open. A reload replaces `service.plan`."""

    def __init__(
        self,
        plan: ListenerPlan,
        clock: Clock,
        sweeper: Sweeper,
        memory: MemoryBudget,
        tally: ListenerTally,
        shortages: Shortages,
    ) -> None:
        self._shortages = shortages
        self.service = Service(plan)
        self.clients: set[ClientStream] = set()
        # Connections that have not sent a complete request head, oldest first, and since when.
        self._unproven: dict[ClientStream, float] = {}
        self._tally = tally
        self._clock = clock
        self._sweeper = sweeper
        self._memory = memory
        self.sockets: tuple[socket.socket, ...] = ()
        self._shared = False  # another process accepts from the same queue
        self._handshakes: TlsHandshakes | None = None
        self._acceptor: Acceptor | None = None
        self._opening: set[asyncio.Task[None]] = set()  # without TLS
        self._arrived: set[ClientStream] = set()  # counted, not served yet
        self._failures = HandshakeFailures(clock)
        self._draining = False
        self._paused = False  # for a successor, or until `resume`
        self._easing_until = 0.0  # monotonic
        self._emptying: asyncio.Task[None] | None = None
        self._empty: asyncio.Future[None] | None = None  # set when the last client has gone

    @property
    def addresses(self) -> list[str]:
        """`host:port` of every socket, with the real port where the config said 0."""
        names = [s.getsockname() for s in self.sockets]
        return [host_port(name[0], name[1]) for name in names]

    def open(
        self,
        sockets: Sequence[socket.socket],
        tls: ssl.SSLContext | None,
        *,
        shared: bool = False,
    ) -> None:
        """Listen on `sockets`, and own them from now on even if this fails. `shared`: another
        process holds them too. Raises `OSError`.

        The TLS handshake has the same time limit as a request head.
        """
        self.sockets = tuple(sockets)
        self._shared = shared
        if tls is not None:
            self._handshakes = TlsHandshakes(tls, self, lambda: self.service.plan.header_timeout)
        try:
            self._accept()
        except OSError:
            self.close()
            raise

    def _accept(self) -> None:
        """Accept connections, on duplicated descriptors: ours outlive a pause."""
        self._acceptor = Acceptor(
            [duplicate(one) for one in self.sockets],
            self,
            self._open if self._handshakes is None else self._handshakes.start,
            self._clock,
            self._shortages,
            per_turn=MOST if self._handshakes is None else HANDSHAKES,
        )
        self._acceptor.listen(_BACKLOG)

    def _open(self, connection: socket.socket, client: ClientStream) -> None:
        """Serve a connection without TLS."""
        task = asyncio.get_running_loop().create_task(
            self._opened(connection, client), name="new-connection"
        )
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _opened(self, connection: socket.socket, client: ClientStream) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: client, connection)
        except OSError:
            connection.close()
        finally:
            self.vanish(client)

    @property
    def connections(self) -> int:
        """The number of connections, those included that are not served yet, without those that
        have ended and wait for the client to close."""
        return sum(not client.ended for client in self.clients) + len(self._arrived)

    def use_tls(self, context: ssl.SSLContext) -> None:
        """Use new certificates. Connections and handshakes in progress keep theirs."""
        if self._handshakes is not None:
            self._handshakes.context = context

    def _stream(self) -> ClientStream:
        return ClientStream(self._clock, self._sweeper, self._memory, self._begin, self._gone)

    # --- before a connection is served (`Connections` of accept.py and tls_accept.py) -------------

    def arrive(self, peer: object) -> ClientStream | None:
        """Count a connection from `peer` and return its stream; None to close it at once."""
        client = self._stream()
        client.came_from(peer)
        shares = self.service.plan.shares
        if shares is not None and not shares.arrive(client, self._clock.monotonic()):
            shares.disconnect(client)
            return None
        self._arrived.add(client)
        return client

    def failed(self, client: ClientStream, error: BaseException) -> None:
        """The handshake has failed."""
        tally = self._tally
        self._failures.note(tally.name, tally.handshake_failures, client.host_ip, error)

    def discarded(self, reason: str) -> None:
        """Count a connection that was closed before it was served."""
        self._tally.discarded[reason] += 1

    def vanish(self, client: ClientStream) -> None:
        """Forget the connection unless it is being served."""
        if client in self._arrived:
            self._arrived.remove(client)
            ClientShares.disconnect(client)

    def full(self, handshakes: int) -> bool:
        """Whether there is no room for another connection beside so many handshakes."""
        return len(self.clients) + handshakes >= self.service.plan.max_connections

    # --- connections ----------------------------------------------------------------------------

    def _begin(self, client: ClientStream) -> Coroutine[Any, Any, None]:
        """Count a connection and return the coroutine that serves or refuses it."""
        plan = self.service.plan
        self._arrived.discard(client)
        if self._handshakes is not None:
            self._handshakes.done(client)
        refusal: ProxyError | None = None
        if plan.shares is not None:
            refusal = plan.shares.connect(client, self._clock.monotonic())
        if len(self.clients) >= plan.max_connections and not self._make_room():
            refusal = self.service.full()
        self.clients.add(client)
        if refusal is None:
            self._unproven[client] = self._clock.monotonic()
        self._tally.opened()
        if self._draining:
            client.drain(hurry=not self._paused)
        elif self._easing_until > (now := self._clock.monotonic()):
            client.drain(self._easing_until - now, hurry=False)
        return self.service(client) if refusal is None else self.service.turn_away(client, refusal)

    def _make_room(self) -> bool:
        """Close the oldest connection that has not sent its first request within `_PROVE_WITHIN`;
        whether there was one."""
        now = self._clock.monotonic()
        while self._unproven:
            client = next(iter(self._unproven))
            if not client.requests and now - self._unproven[client] < _PROVE_WITHIN:
                return False  # and all behind it are younger
            del self._unproven[client]
            if not client.requests:
                client.abort()
                return True
        return False

    def _gone(self, client: ClientStream) -> None:
        self.clients.discard(client)
        self._unproven.pop(client, None)
        self._tally.closed()
        if client.share is not None:
            ClientShares.disconnect(client)
        if not self.clients and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    def count_at(self, tally: ListenerTally) -> None:
        """Count all connections in `tally` from now on, also those open: the listener may have been
        renamed."""
        self._tally.open -= len(self.clients)
        tally.open += len(self.clients)
        self._tally = tally

    def drain(self) -> None:
        """Stop taking connections. Those open end after their current exchange, those waiting in
        the kernel after their first."""
        if self._shared:
            self.close()
        if not self._draining:
            self._draining = True
            for listening in self.sockets:
                stop_taking(listening)
            self._emptying = asyncio.get_running_loop().create_task(
                self._empty_queues(), name="last connections"
            )
        for client in list(self.clients):
            client.drain(hurry=not self._paused)

    async def _empty_queues(self) -> None:
        """Accept what the kernel has queued, then close. A connection enters the queue only when
        its client completes the TCP handshake, so the queue must stay empty for `_CONFIRMED`."""
        end = self._clock.monotonic() + _LAST_CALL
        empty_since = self._clock.monotonic()
        try:
            while (now := self._clock.monotonic()) < min(end, empty_since + _CONFIRMED):
                await asyncio.sleep(_CONFIRMED / 4)
                if any(waiting(listening) for listening in self.sockets):
                    empty_since = now
        finally:
            self.close()
        end = min(end, self._clock.monotonic() + _HANDSHAKES)
        while self._arrived and self._clock.monotonic() < end:  # noqa: ASYNC110 (each ends in its way)
            await asyncio.sleep(_CONFIRMED / 4)

    def ease(self, seconds: float) -> None:
        """Let every connection end with its next exchange, or after `seconds` without one. New
        connections are accepted for one exchange. Closing idle connections at once could cross with
        a request."""
        self._easing_until = self._clock.monotonic() + seconds
        for client in list(self.clients):
            client.drain(seconds, hurry=False)

    def pause(self) -> None:
        """Stop accepting but keep the sockets: new connections wait in the kernel. Open ones end
        after their current exchange."""
        self._draining = self._paused = True
        self._stop_accepting()
        for client in list(self.clients):
            client.drain(hurry=False)

    def resume(self) -> None:
        """Accept again. Raises `OSError`."""
        self._draining = self._paused = False
        self._easing_until = 0.0
        self._accept()

    def _stop_accepting(self) -> None:
        if self._acceptor is not None:
            self._acceptor.close()

    def close(self) -> None:
        """Close the sockets now. The kernel resets what waits in their queues, unless somebody else
        has them, too."""
        self._draining = True
        self._stop_accepting()
        for listening in self.sockets:
            listening.close()
        self.sockets = ()

    def cut(self) -> None:
        """End every exchange in progress: with a 503 where no answer has begun."""
        for client in list(self.clients):
            client.cut = True
            client.wake()

    async def emptied(self) -> None:
        """Until a drain has accepted what the kernel had, and has closed the sockets: a fifth of a
        second as a rule, `_LAST_CALL` and `_HANDSHAKES` at most."""
        if self._emptying is not None:
            await asyncio.wait({self._emptying})

    async def drained(self) -> None:
        """Until the last connection is gone and its coroutine has ended."""
        await self.emptied()
        while self.clients:
            if self._empty is None or self._empty.done():
                self._empty = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._empty)

    async def abort(self) -> None:
        """End everything now."""
        self.close()
        if self._emptying is not None:
            self._emptying.cancel()
        if self._acceptor is not None:
            self._acceptor.abort()
        if self._handshakes is not None:
            await self._handshakes.abort()
        await asyncio.gather(*self._opening)
        for client in list(self.clients):
            client.abort()
        await self.drained()
