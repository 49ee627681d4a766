"""The TLS handshakes of a listener.

asyncio's own server reports a TLS connection only after its handshake. Connections that never
finish it would be counted nowhere, and a few thousand of them can use up the process's
descriptors. Therefore they count from `accept` on (accept.py), and when the listener is full, the
oldest unfinished handshake is cancelled. If there is none, the new connection is refused after its
handshake.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Protocol

from proxy.http1.client import ClientStream

#: Handshakes that begin in one turn of the event loop. Each takes up to a millisecond of it, for a
#: signature that the client need not pay for.
HANDSHAKES = 4

#: Seconds that a TLS shutdown may take, including output that is still unsent. A client that reads
#: nothing, or has read everything, is closed earlier (`ClientStream.close`).
_TLS_SHUTDOWN = 3600.0


class Connections(Protocol):
    """The interface to the listener's connections that the handshakes need."""

    def vanish(self, client: ClientStream) -> None:
        """The handshake has ended: forget the connection unless it is being served."""
        ...

    def failed(self, client: ClientStream, error: BaseException) -> None:
        """The handshake has failed."""
        ...

    def full(self, handshakes: int) -> bool:
        """Whether the listener has no room for another connection beside so many handshakes."""
        ...


class TlsHandshakes:
    """The handshakes in progress. `timeout` is in seconds; `context` may be replaced."""

    def __init__(
        self, context: ssl.SSLContext, connections: Connections, timeout: Callable[[], float]
    ) -> None:
        self.context = context
        self._connections = connections
        self._timeout = timeout
        self._tasks: dict[ClientStream, asyncio.Task[None]] = {}  # in order of arrival
        self._closed = False

    def start(self, connection: socket.socket, client: ClientStream) -> None:
        """Begin a handshake, which may end the oldest one. `client` is served after it."""
        if self._tasks and self._connections.full(len(self._tasks)):
            oldest = next(iter(self._tasks))
            self._tasks[oldest].cancel()
            self.done(oldest)
        self._tasks[client] = asyncio.get_running_loop().create_task(
            self._handshake(connection, client), name="tls-handshake"
        )

    def done(self, client: ClientStream) -> None:
        """The handshake of `client` has ended and can no longer be cancelled."""
        self._tasks.pop(client, None)

    async def abort(self) -> None:
        """Cancel all of them. Failures are no longer reported."""
        self._closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _handshake(self, connection: socket.socket, client: ClientStream) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: client,
                connection,
                ssl=self.context,
                ssl_handshake_timeout=self._timeout(),
                ssl_shutdown_timeout=_TLS_SHUTDOWN,
            )
        except (OSError, asyncio.CancelledError) as error:  # TLS errors and time-outs are OSErrors
            connection.close()
            if not self._closed:
                self._connections.failed(client, error)
        finally:
            self.done(client)
            self._connections.vanish(client)
