"""A connection to a target: reads response heads, and asks the kernel about input and resets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
from typing import TYPE_CHECKING

from proxy.core.memory.budget import MOST
from proxy.http1.client import ClientStream
from proxy.http1.deadlines import NEVER
from proxy.http1.response_head import ResponseHead
from proxy.http1.stream import Stream
from proxy.http1.upstream.abandoned import Abandoned

if TYPE_CHECKING:
    from proxy.http1.upstream.pool import TargetPool


# An upstream's head may be larger than a client's: it limits its cookies and links itself.
_STATUS_LINE_LIMIT = 8 * 1024
_HEAD_LIMIT = 64 * 1024
MAX_FIELDS = 256

#: Errors that a reset by the peer causes; the second after a later write.
_RESET = (errno.ECONNRESET, errno.EPIPE)


class UpstreamStream(Stream):
    """A connection opened to a target. `owner` is the client whose exchange uses it, or the
    stand-in for a client that has left."""

    __slots__ = ("_poll", "idle_until", "owner", "pool", "reused", "since", "unwanted")

    def __init__(self, pool: TargetPool) -> None:
        super().__init__(pool.memory, pool.sweeper.turns)
        self.pool = pool
        self.owner: ClientStream | Abandoned | None = None
        self.since = 0.0  # monotonic: when its owner got it
        self.reused = False  # it has already carried an exchange
        self.unwanted = False  # its client reads the response slowly, and others wait
        self.idle_until = NEVER
        self._poll = select.poll()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        raw = transport.get_extra_info("socket")
        self._poll.register(raw.fileno(), select.POLLIN | select.POLLRDHUP)

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None and not isinstance(self.owner, Abandoned | None):
            self._read_last_words()
        super().connection_lost(error)
        self.taker = None
        self.pool.sweeper.discard(self)
        self.pool.forget(self)

    def _read_last_words(self) -> None:
        """Read what the kernel still holds of a connection that ended with a failed write.

        An app that refuses an upload answers and closes without reading the rest, which resets the
        connection. The event loop stops reading at the first write that fails, although the
        response arrived before the reset. Over TLS it has been read by now (tls_dial.py).
        """
        if self.transport.get_extra_info("ssl_object") is not None:
            return
        descriptor = self.transport.get_extra_info("socket").fileno()
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as raw:
            while self._inbox_size <= MOST:
                data = raw.recv(MOST, socket.MSG_DONTWAIT)
                if not data:
                    break
                self.data_received(data)

    def notify(self) -> None:
        if self.owner is not None:
            self.owner.notify()
        else:
            self.pool.retire(self)

    def mark_greedy(self) -> None:
        if self.owner is not None:
            self.owner.mark_greedy()

    def on_deadline(self) -> None:
        if self.owner is None:
            self.pool.retire(self)
        elif isinstance(self.owner, Abandoned):
            self.owner.on_deadline(self.pool.now())

    def read_head(self) -> ResponseHead | None:
        """The response head, or None while it is incomplete. Raises `ProtocolError`."""
        if not self.inbox:
            return None
        found = self.find_head(_STATUS_LINE_LIMIT, _HEAD_LIMIT)
        if found is None:
            return None
        data, end = found
        head = self.pool.memo.read(data, end, MAX_FIELDS)
        self.take_head(end, None)
        return head

    def saw_reset(self) -> bool:
        """Whether the peer has reset this connection; asks the kernel if the event loop does not
        know. Not known over TLS."""
        if isinstance(self.error, (ConnectionResetError, BrokenPipeError)):
            return True
        if self.lost:
            return False
        raw = self.transport.get_extra_info("socket")
        if raw is None or self.transport.get_extra_info("ssl_object") is not None:
            return False
        return raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in _RESET

    def has_pending_input(self) -> bool:
        """Whether the kernel has bytes or EOF that the event loop has not reported yet.

        Costs half a microsecond and keeps responses apart: bytes that an upstream sent before the
        request must never be taken for the response.
        """
        return bool(self._poll.poll(0))
