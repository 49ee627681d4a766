"""Accepts the connections of a listener, and counts each of them from `accept` on.

The kernel's queue of complete connections is first come, first served, and when it is full, the
kernel drops SYNs: their clients try again only after a second. asyncio's own servers accept one
connection per turn of the event loop. Therefore:

1. The queue is emptied as fast as possible, bounded by time per turn. Connections then wait here,
   where clients take turns (newcomers.py), and are started within a share of each turn.
2. A connection counts towards its client's share from `accept` on. One of a client that has twice
   as many as allowed is closed at once.
3. A connection that its client has reset already is closed: nobody would read its answer. A flood
   of those costs a few microseconds each.
4. When descriptors run out, `accept` pauses briefly; connections wait in the kernel meanwhile.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from proxy.core.clock import Clock
from proxy.core.process.shortage import Shortages
from proxy.forward.routing.client_shares import client_key
from proxy.http1.client import ClientStream
from proxy.server.listening import was_reset
from proxy.server.newcomers import Newcomers

#: Seconds per turn of the event loop for accepting connections, and for starting them.
_ACCEPTING, _STARTING = 0.001, 0.002

#: Connections that may wait here to be started; as many as in the kernel's queue.
MOST = 4096

#: Seconds for which `accept` pauses after a shortage.
_PAUSE = 0.1


class Connections(Protocol):
    """The interface to the listener's connections that the acceptor needs."""

    def arrive(self, peer: object) -> ClientStream | None:
        """Count a connection from `peer` and return its stream; None to close it at once."""
        ...

    def vanish(self, client: ClientStream) -> None:
        """Forget the connection unless it is being served."""
        ...

    def discarded(self, reason: str) -> None:
        """Count a connection that was closed before it was served: `reset` by its client, or
        `crowded` out by others."""
        ...


class Acceptor:
    """The listening `sockets` of one listener. `start` takes over a connection: it completes the
    TLS handshake, if any, and serves the connection. `per_turn`: how many are started in one turn
    of the event loop, if their work follows later and a share of time does not bound it."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        connections: Connections,
        start: Callable[[socket.socket, ClientStream], None],
        clock: Clock,
        shortages: Shortages,
        *,
        per_turn: int = MOST,
    ) -> None:
        self._per_turn = per_turn
        self._sockets = tuple(sockets)
        self._connections = connections
        self._start = start
        self._clock = clock
        self._shortages = shortages
        self._loop = asyncio.get_running_loop()
        self._newcomers = Newcomers[tuple[socket.socket, ClientStream]](MOST)
        self._starting = False  # `_start_some` is scheduled
        self._held_back: list[socket.socket] = []  # not accepted from while the queue is full
        self._closed = False

    def __len__(self) -> int:
        """The number of connections that wait to be started."""
        return len(self._newcomers)

    def listen(self, backlog: int) -> None:
        """Begin. Raises `OSError`."""
        for one in self._sockets:
            one.setblocking(False)
            # Inherited by connections: a response's body must not wait for the client's delayed ACK
            # of its head.
            if one.family != socket.AF_UNIX:
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.listen(backlog)
            self._loop.add_reader(one, self._accept, one)

    def close(self) -> None:
        """Stop accepting; connections that wait here are still started."""
        if not self._closed:
            self._closed = True
            for one in self._sockets:
                self._loop.remove_reader(one)
                one.close()

    def abort(self) -> None:
        """Stop accepting and close the connections that wait here."""
        self.close()
        while self._newcomers:
            self._discard(*self._newcomers.next())

    def _accept(self, listening: socket.socket) -> None:
        until = self._clock.monotonic() + _ACCEPTING
        while True:
            try:
                connection, peer = listening.accept()
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                if self._shortages.check(error, "accepting connections") is not None:
                    self._loop.remove_reader(listening)
                    self._loop.call_later(_PAUSE, self._accept_again, listening)
                    break
                # Else the client has left already (ECONNABORTED and its like).
            else:
                self._take(connection, peer)
            if self._newcomers.full:
                self._loop.remove_reader(listening)
                self._held_back.append(listening)
                break
            if self._clock.monotonic() >= until:
                break
        if not self._starting:
            self._start_some(waited=False)

    def _accept_again(self, listening: socket.socket) -> None:
        if not self._closed:
            self._loop.add_reader(listening, self._accept, listening)

    def _take(self, connection: socket.socket, peer: object) -> None:
        if was_reset(connection):
            connection.close()
            self._connections.discarded("reset")
            return
        client = self._connections.arrive(peer)
        if client is None:
            connection.close()
            return
        address = client.host_ip
        who = client_key(address) if ":" in address else address
        loses = self._newcomers.add(who, (connection, client))
        if loses is not None:
            self._discard(*loses)
            self._connections.discarded("crowded")

    def _discard(self, connection: socket.socket, client: ClientStream) -> None:
        connection.close()
        self._connections.vanish(client)

    def _start_some(self, *, waited: bool = True) -> None:
        """Start connections as long as this turn's share lasts; the rest in the next turn."""
        self._starting = False
        until = self._clock.monotonic() + _STARTING
        for _ in range(min(self._per_turn, len(self._newcomers))):
            connection, client = self._newcomers.next()
            if waited and was_reset(connection):
                self._discard(connection, client)
                self._connections.discarded("reset")
            else:
                connection.setblocking(False)
                self._start(connection, client)
            if self._clock.monotonic() >= until:
                break
        if self._newcomers:
            self._starting = True
            self._loop.call_soon(self._start_some)
        while self._held_back and not self._newcomers.full:
            self._accept_again(self._held_back.pop())
