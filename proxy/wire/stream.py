"""One TCP, TLS or unix connection as both sides of the proxy see it: bounded reading and writing.

What arrives is kept in `inbox` until taken, unless `taker` takes it as it comes. Past `HIGH_WATER`
the socket is no longer read, so that a fast sender meets the slow receiver's pace; `write_paused`
says that the other direction is full. Whoever waits for something to happen is told by `notify`,
which subclasses define.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import cast

from proxy.memory_budget import MemoryBudget
from proxy.wire.bodies import PIECES_PER_TURN, Decoder
from proxy.wire.deadlines import NEVER

#: Bytes that may wait unread (and, apart, unwritten) on one connection.
HIGH_WATER = 256 * 1024

#: What a piece costs beside its bytes, so that a storm of tiny packets is bounded too.
_PIECE_COST = 64

#: Bytes up to which joining is cheaper than a vectored write.
_SMALL = 8 * 1024


class Stream(asyncio.Protocol):
    """A connection with a bounded inbox."""

    __slots__ = (
        "_inbox_size",
        "_read_paused",
        "deadline",
        "eof",
        "error",
        "inbox",
        "lost",
        "memory",
        "taker",
        "transport",
        "write_paused",
    )

    def __init__(self, memory: MemoryBudget) -> None:
        self.memory = memory
        self.transport = cast(asyncio.Transport, None)
        self.eof = False  # the peer will send no more
        self.lost = False  # the connection is gone
        self.error: Exception | None = None  # why, if it did not end in an orderly way
        self.write_paused = False
        self.deadline = NEVER
        #: Is offered what arrives while `inbox` is empty; True when it has dealt with all of it.
        self.taker: Callable[[bytes], bool] | None = None
        self.inbox: list[bytes] = []
        self._inbox_size = 0
        self._read_paused = False

    # --- what the event loop calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        taker = self.taker
        if taker is not None and taker(data):
            return
        self.inbox.append(data)
        self._inbox_size += len(data) + _PIECE_COST
        if self._inbox_size > HIGH_WATER and not self._read_paused:
            self._read_paused = True
            self.transport.pause_reading()
        self.notify()

    def eof_received(self) -> bool:
        self.eof = True
        self.notify()
        # Keep the writing half: a peer may close only its own. Over TLS the two end together.
        return self.transport.get_extra_info("ssl_object") is None

    def connection_lost(self, error: Exception | None) -> None:
        self.eof = self.lost = True
        self.write_paused = False
        self.error = error
        self.notify()

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        self.notify()

    # --- what their owners call ---

    def notify(self) -> None:
        """Something happened on this connection."""
        raise NotImplementedError

    def on_deadline(self) -> None:
        """`deadline` is past."""
        raise NotImplementedError

    def take(self) -> bytes:
        """All that has arrived, `b""` if nothing; reading goes on."""
        pieces = self.inbox
        if not pieces:
            return b""
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._inbox_size = 0
        self._read_on()
        return data

    def read_body(self, body: Decoder) -> list[bytes]:
        """The content in what has arrived, piece by piece and uncopied.

        What stands behind the end of `body` stays, and so does what is more than one turn's work:
        `notify` comes again for that. Raises `ProtocolError`.
        """
        pieces = self.inbox
        self.inbox = []
        self._inbox_size = 0
        content: list[bytes] = []
        for number, piece in enumerate(pieces):
            more, rest = body.feed(piece)
            content += more
            enough = body.done or len(content) >= PIECES_PER_TURN
            if rest or (enough and number + 1 < len(pieces)):
                for left in reversed(pieces[number + 1 :]):
                    self.untake(left)
                self.untake(rest)
                if not body.done:
                    asyncio.get_running_loop().call_soon(self.notify)
                break
        self._read_on()
        return content

    def untake(self, data: bytes) -> None:
        """Put back what was taken too much."""
        if data:
            self.inbox.insert(0, data)
            self._inbox_size += len(data) + _PIECE_COST

    def write(self, pieces: list[bytes]) -> None:
        """Write `pieces` in one go: small ones joined, because a copy of a few KB costs less than
        a vectored write; large ones as they are."""
        if len(pieces) == 1:
            self.transport.write(pieces[0])
        elif len(pieces[-1]) + len(pieces[0]) + len(pieces[-2]) <= _SMALL and len(pieces) < 8:
            self.transport.write(b"".join(pieces))
        else:
            self.transport.writelines(pieces)

    def _read_on(self) -> None:
        if self._read_paused and self._inbox_size <= HIGH_WATER:
            self._read_paused = False
            if not self.lost:
                self.transport.resume_reading()

    def close(self) -> None:
        """Send what is still to be written, then close."""
        if not self.lost:
            self.transport.close()

    def abort(self) -> None:
        """Close now; what is still to be written is lost."""
        if not self.lost:
            self.transport.abort()

    def reset(self) -> None:
        """Close with a TCP reset, so that a body which ends with its connection is seen as cut."""
        if not self.lost:
            raw = self.transport.get_extra_info("socket")
            if raw is not None and raw.family != socket.AF_UNIX:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
