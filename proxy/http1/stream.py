"""One TCP, TLS or unix connection as both sides of the proxy see it: bounded reading and writing.

Input is kept in `inbox` until it is taken, unless `taker` accepts it at once. Above the budget's
`allowance`, the socket is not read, which slows a fast sender to the receiver's pace.
`write_paused` means that the peer has not taken everything that was written. Bytes waiting in
either direction count against the memory budget. Every event calls `notify`, which subclasses
define.
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
from collections.abc import Callable
from typing import cast

from proxy.core.memory.budget import MemoryBudget
from proxy.http1.bodies import PIECES_PER_TURN, Decoder
from proxy.http1.deadlines import NEVER
from proxy.http1.heads import find_head_end
from proxy.http1.turns import Turns

#: Overhead counted for each piece in bytes, so that floods of tiny packets are bounded too.
_PIECE_COST = 64

#: Up to this many bytes, joining is cheaper than a vectored write.
_SMALL = 8 * 1024

#: Larger pieces with pipelined requests are split to this size, because taking a head off a piece
#: copies the rest of it.
_CUT = 16 * 1024

#: More pieces than this are joined if they are small: one-byte chunks arrive by the thousand.
_MANY = 8


class Stream(asyncio.Protocol):
    """A connection with a bounded inbox."""

    __slots__ = (
        "_discard_most",
        "_inbox_size",
        "_later",
        "_read_paused",
        "_scanned",
        "_unsent",
        "deadline",
        "discarded",
        "eof",
        "error",
        "inbox",
        "lost",
        "memory",
        "taker",
        "transport",
        "turns",
        "write_paused",
    )

    def __init__(self, memory: MemoryBudget, turns: Turns) -> None:
        self.memory = memory
        self.turns = turns
        self.transport = cast(asyncio.Transport, None)
        self.eof = False  # the peer will send no more
        self.lost = False  # the connection is gone
        self.error: Exception | None = None  # why, if it did not end normally
        self.write_paused = False
        self.deadline = NEVER
        #: Called with input that arrives while `inbox` is empty; True if it has handled all of it.
        self.taker: Callable[[bytes], bool] | None = None
        self.inbox: list[bytes] = []
        self._inbox_size = 0  # bytes counted for the inbox
        self._unsent = 0  # bytes written and not yet taken by the peer
        self._scanned = 0  # bytes of the inbox known not to contain the end of a head
        self._read_paused = False
        self.discarded = 0  # bytes received and dropped after `drop`,
        self._discard_most: float = math.inf  # and where reading them pauses
        self._later = False  # `notify` is queued for a later turn

    @property
    def buffered(self) -> int:
        """Bytes buffered here, in both directions."""
        return self._inbox_size + self._unsent

    # --- what the event loop calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        # Be notified of every byte that the kernel does not take at once, so that it is counted.
        self.transport.set_write_buffer_limits(high=1, low=0)

    def data_received(self, data: bytes) -> None:
        taker = self.taker
        if taker is not None and taker(data):
            return
        self.inbox.append(data)
        self._count(len(data) + _PIECE_COST)
        if self._inbox_size > self.memory.allowance and not self._read_paused:
            self._read_paused = True
            self.transport.pause_reading()
        self.notify()

    def eof_received(self) -> bool:
        self.eof = True
        self.notify()
        # Keep the writing half open: a peer may half-close. With TLS both halves end together.
        return self.transport.get_extra_info("ssl_object") is None

    def connection_lost(self, error: Exception | None) -> None:
        self.eof = self.lost = True
        self.write_paused = False
        self._count_unsent(0)
        self.error = error
        self.notify()

    def pause_writing(self) -> None:
        self.write_paused = True
        self._count_unsent(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self.write_paused = False
        self._count_unsent(0)
        self.notify()

    # --- what their owners call ---

    def notify(self) -> None:
        """Something happened on this connection."""
        raise NotImplementedError

    def on_deadline(self) -> None:
        """`deadline` is past."""
        raise NotImplementedError

    def mark_greedy(self) -> None:
        """There is more work on this connection than a turn allows."""

    def take(self) -> bytes:
        """Take everything that has arrived (`b""` if nothing) and continue reading."""
        pieces = self.inbox
        if not pieces:
            return b""
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._scanned = 0
        self._count(-self._inbox_size)
        self.read_on()
        return data

    def find_head(self, line_limit: int, head_limit: int) -> tuple[bytes, int] | None:
        """The piece that begins with a complete head, and the index of its end; None while the head
        is incomplete. Raises `ProtocolError`. Bytes are scanned only once."""
        inbox = self.inbox
        front = inbox[0]
        end = find_head_end(front, line_limit, head_limit, self._scanned)
        while end < 0:
            self._scanned = len(front)
            if len(inbox) == 1:
                self._resume()  # a head has its own limits and must be able to complete
                return None
            count, size = 1, len(front)
            while count < len(inbox) and (count == 1 or size < _CUT):
                size += len(inbox[count])
                count += 1
            front = self.join(count)
            end = find_head_end(front, line_limit, head_limit, self._scanned)
        self._scanned = 0
        return front, end

    def join(self, count: int) -> bytes:
        """Join the first `count` pieces into one."""
        joined = b"".join(self.inbox[:count])
        self.inbox[:count] = [joined]
        self._count(-_PIECE_COST * (count - 1))
        return joined

    def take_head(self, end: int, body: int | None) -> None:
        """Remove the head that ends at `end` of the first piece. `body` is the length of the body
        that follows, None if unknown."""
        inbox = self.inbox
        front = inbox[0]
        behind = end + 4
        cut = len(front) if body is None else min(len(front), behind + body)
        pieces = [front[behind:cut]] if cut > behind else []
        pieces += [front[at : at + _CUT] for at in range(cut, len(front), _CUT)]
        inbox[:1] = pieces
        self._scanned = 0
        self._count(_PIECE_COST * (len(pieces) - 1) - behind)
        self.read_on()

    def read_body(self, body: Decoder) -> list[bytes]:
        """Decode the content that has arrived, in pieces and without copying.

        Bytes after the end of `body` stay in the inbox, and so does more than one turn's work:
        `notify` is called again for that. Raises `ProtocolError`.
        """
        pieces = self.inbox
        content: list[bytes] = []
        used = taken = 0
        while used < len(pieces):
            piece = pieces[used]
            more, rest = body.feed(piece)
            content += more
            taken += len(piece) - len(rest)
            if rest:
                # Split the rest now, so that later turns do not each copy all of it again.
                pieces[used : used + 1] = [rest[i : i + _CUT] for i in range(0, len(rest), _CUT)]
                self._count(_PIECE_COST * (-(-len(rest) // _CUT) - 1))
                break
            used += 1
            if body.done or len(content) >= PIECES_PER_TURN:
                break
        del pieces[:used]
        self._scanned = 0
        self._count(-taken - _PIECE_COST * used)
        self.read_on()
        if pieces and not body.done and not self._later:
            self._later = True
            self.mark_greedy()
            self.turns.later(self._go_on_reading)
        if len(content) > _MANY and taken < _MANY * _SMALL:
            return [b"".join(content)]
        return content

    def _go_on_reading(self) -> None:
        self._later = False
        if self.inbox:  # else it has been read, and the connection may have a new owner
            self.notify()

    def drop(self, most: float = math.inf) -> None:
        """Discard the inbox and all further input, counting it in `discarded` without notifying
        anyone. Reading pauses after `most` bytes until `drop_more` is called."""
        self._discard_most = self.discarded + most
        self.inbox.clear()
        self._scanned = 0
        self._count(-self._inbox_size)
        self.taker = self._discard
        self._resume()

    def drop_more(self, most: float) -> None:
        """Read and discard up to `most` further bytes."""
        self._discard_most = self.discarded + most
        self._resume()

    def _discard(self, data: bytes) -> bool:
        self.discarded += len(data)
        if self.discarded >= self._discard_most and not self._read_paused:
            self._read_paused = True
            self.transport.pause_reading()
        return True

    def write(self, pieces: list[bytes]) -> None:
        """Write `pieces` at once: small ones joined, because copying a few KB is cheaper than a
        vectored write; large ones as they are."""
        if len(pieces) == 1:
            self.transport.write(pieces[0])
        elif len(pieces[-1]) + len(pieces[0]) + len(pieces[-2]) <= _SMALL and len(pieces) < 8:
            self.transport.write(b"".join(pieces))
        else:
            self.transport.writelines(pieces)
        if self.write_paused:
            self._count_unsent(self.transport.get_write_buffer_size())

    def takes(self) -> bool:
        """Whether the peer has taken some of the unsent bytes since the last call."""
        before = self._unsent
        if self.write_paused:
            self._count_unsent(self.transport.get_write_buffer_size())
        return self._unsent < before

    @property
    def unsent(self) -> int:
        """Bytes written that the peer had not taken at the last check."""
        return self._unsent

    def _count(self, size: int) -> None:
        """Adjust the inbox's size by `size` bytes."""
        self._inbox_size += size
        if size > 0:
            self.memory.inboxes.reserve(size)
        elif size < 0:
            self.memory.inboxes.release(-size)

    def _count_unsent(self, size: int) -> None:
        """Set the number of bytes not yet taken by the peer."""
        change = size - self._unsent
        self._unsent = size
        if change > 0:
            self.memory.outboxes.reserve(change)
        elif change < 0:
            self.memory.outboxes.release(-change)

    def hold_reading(self) -> None:
        """Stop reading until some of the inbox is taken or `read_on` is called."""
        if not (self._read_paused or self.lost or self.transport.is_closing()):
            self._read_paused = True
            self.transport.pause_reading()

    def read_on(self) -> None:
        """Resume reading if the inbox has room."""
        if self._read_paused and self._inbox_size <= self.memory.allowance:
            self._resume()

    def _resume(self) -> None:
        if self._read_paused:
            self._read_paused = False
            if not self.lost and not self.transport.is_closing():
                self.transport.resume_reading()

    def close(self) -> None:
        """Close after sending the remaining output."""
        if not self.lost:
            self.transport.close()

    def abort(self) -> None:
        """Close now; remaining output is lost."""
        if not self.lost:
            self.transport.abort()

    def reset(self) -> None:
        """Close with a TCP reset, so that a body delimited by the connection is seen as
        truncated."""
        if not self.lost:
            raw = self.transport.get_extra_info("socket")
            if raw is not None and raw.family != socket.AF_UNIX:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
