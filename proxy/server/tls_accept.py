"""Accepts the connections of a TLS listener and counts each of them from `accept` on.

asyncio's own server reports a TLS connection only after its handshake. Connections that never
finish it would be counted nowhere, and a few thousand of them can use up the process's
descriptors. Therefore:

1. A connection counts towards the listener's limit and its client's share from `accept` on.
2. When the listener is full, the oldest unfinished handshake is cancelled. If there is none, the
   new connection is refused after its handshake.
3. A connection of a client that has twice as many as allowed is closed without a handshake.
4. When descriptors run out, `accept` pauses briefly; connections wait in the kernel meanwhile.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Protocol

from proxy.core.process.shortage import Shortages
from proxy.http1.client import ClientStream

#: Connections accepted in one turn of the event loop.
_PER_TURN = 64

#: Seconds for which `accept` pauses after a shortage.
_PAUSE = 0.1

#: Seconds that a TLS shutdown may take, including output that is still unsent. A client that reads
#: nothing, or has read everything, is closed earlier (`ClientStream.close`).
_TLS_SHUTDOWN = 3600.0


class Connections(Protocol):
    """The interface to the listener's connections that the acceptor needs."""

    def arrive(self, address: str) -> ClientStream | None:
        """Count a connection from `address` and return its stream; None to close it at once."""
        ...

    def vanish(self, client: ClientStream) -> None:
        """The handshake has ended: forget the connection unless it is being served."""
        ...

    def failed(self, client: ClientStream, error: BaseException) -> None:
        """The handshake has failed."""
        ...

    def full(self, handshakes: int) -> bool:
        """Whether the listener has no room for another connection beside so many handshakes."""
        ...


class TlsAcceptor:
    """The listening `sockets` of one listener. `handshake_timeout` is in seconds."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        context: ssl.SSLContext,
        connections: Connections,
        handshake_timeout: Callable[[], float],
        shortages: Shortages,
    ) -> None:
        self.sockets = tuple(sockets)
        self.context = context
        self._connections = connections
        self._handshake_timeout = handshake_timeout
        self._shortages = shortages
        self._loop = asyncio.get_running_loop()
        self._handshakes: dict[ClientStream, asyncio.Task[None]] = {}  # in order of arrival
        self._closed = False

    @property
    def handshakes(self) -> int:
        """The number of handshakes in progress."""
        return len(self._handshakes)

    def start(self, backlog: int) -> None:
        """Listen. Raises `OSError`."""
        for one in self.sockets:
            one.setblocking(False)
            one.listen(backlog)
            self._loop.add_reader(one, self._accept, one)

    def close(self) -> None:
        """Stop accepting; handshakes in progress continue."""
        if not self._closed:
            self._closed = True
            for one in self.sockets:
                self._loop.remove_reader(one)
                one.close()

    async def abort(self) -> None:
        """Stop accepting and cancel all handshakes."""
        self.close()
        tasks = list(self._handshakes.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_PER_TURN):
            try:
                connection, peer = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if self._shortages.check(error, "accepting connections") is not None:
                    self._loop.remove_reader(listening)
                    self._loop.call_later(_PAUSE, self._go_on, listening)
                    return
                continue  # the client has left already (ECONNABORTED and its like)
            self._take(connection, peer)

    def _go_on(self, listening: socket.socket) -> None:
        if not self._closed:
            self._loop.add_reader(listening, self._accept, listening)

    def _take(self, connection: socket.socket, peer: object) -> None:
        client = self._connections.arrive(str(peer[0]) if isinstance(peer, tuple) else "")
        if client is None:
            connection.close()
            return
        if self._handshakes and self._connections.full(len(self._handshakes)):
            oldest = next(iter(self._handshakes))
            self._handshakes[oldest].cancel()
            self.done(oldest)
        connection.setblocking(False)
        # Do not let a response's body wait for the client's delayed ACK of its head.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._handshakes[client] = self._loop.create_task(
            self._handshake(connection, client), name="tls-handshake"
        )

    def done(self, client: ClientStream) -> None:
        """The handshake of `client` has ended and can no longer be cancelled."""
        self._handshakes.pop(client, None)

    async def _handshake(self, connection: socket.socket, client: ClientStream) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: client,
                connection,
                ssl=self.context,
                ssl_handshake_timeout=self._handshake_timeout(),
                ssl_shutdown_timeout=_TLS_SHUTDOWN,
            )
        except (OSError, asyncio.CancelledError) as error:  # TLS errors and time-outs are OSErrors
            connection.close()
            if not self._closed:
                self._connections.failed(client, error)
        finally:
            self.done(client)
            self._connections.vanish(client)
