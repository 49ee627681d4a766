"""One TCP, TLS or unix connection as both sides of the proxy see it: bounded reading and writing.

What arrives is kept in `inbox` until taken, unless `taker` takes it as it comes. Past the budget's
`allowance` the socket is no longer read, so that a fast sender meets the slow receiver's pace;
`write_paused` says that the peer has not taken all that was written. What waits in either direction
counts against the process' budget. Whoever waits for something to happen is notified by `notify`,
which subclasses define.
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

#: What a piece costs beside its bytes, so that a storm of tiny packets is bounded too.
_PIECE_COST = 64

#: Bytes up to which joining is cheaper than a vectored write.
_SMALL = 8 * 1024

#: Larger pieces that hold one request behind the other are cut to this size: taking a head off a
#: piece copies the rest of it.
_CUT = 16 * 1024

#: Pieces that are worth joining, if they are small: chunks of a byte come by the thousand.
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
        self.error: Exception | None = None  # why, if it did not end in an orderly way
        self.write_paused = False
        self.deadline = NEVER
        #: Is offered what arrives while `inbox` is empty; True when it has dealt with all of it.
        self.taker: Callable[[bytes], bool] | None = None
        self.inbox: list[bytes] = []
        self._inbox_size = 0  # bytes that are counted for it,
        self._unsent = 0  # and for what has been written and not been taken
        self._scanned = 0  # bytes of the inbox in which no head ends
        self._read_paused = False
        self.discarded = 0  # bytes that came when nobody wanted any more,
        self._discard_most: float = math.inf  # and where their reading rests
        self._later = False  # `notify` comes when its turn does

    @property
    def buffered(self) -> int:
        """Bytes that wait here, in either direction."""
        return self._inbox_size + self._unsent

    # --- what the event loop calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        # Whatever the kernel does not take at once is seen and counted.
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
        # Keep the writing half: a peer may close only its own. Over TLS the two end together.
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
        """All that has arrived, `b""` if nothing; reading goes on."""
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
        """The piece that begins with a whole head, and where that ends in it; None while it has not
        all come. Raises `ProtocolError`. What has been looked at once is not looked at again."""
        inbox = self.inbox
        front = inbox[0]
        end = find_head_end(front, line_limit, head_limit, self._scanned)
        while end < 0:
            self._scanned = len(front)
            if len(inbox) == 1:
                self._resume()  # a head has limits of its own, and must be able to end
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
        """Make one of the first `count` pieces."""
        joined = b"".join(self.inbox[:count])
        self.inbox[:count] = [joined]
        self._count(-_PIECE_COST * (count - 1))
        return joined

    def take_head(self, end: int, body: int | None) -> None:
        """Take off the head that ends at `end` of the first piece. `body` is the length of what
        follows it, None if that is not known."""
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
        """The content in what has arrived, piece by piece and uncopied.

        What stands behind the end of `body` stays, and so does what is more than one turn's work:
        `notify` comes again for that. Raises `ProtocolError`.
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
                # What is left for later turns is copied once, not in each of them anew.
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
        if self.inbox:  # else somebody was faster, and may have handed the connection on
            self.notify()

    def drop(self, most: float = math.inf) -> None:
        """The connection is over: nothing of what it sent is wanted any more. `discarded` counts
        what still comes; nobody is notified of it. It is not read beyond `most` bytes until
        `drop_more` is called."""
        self._discard_most = self.discarded + most
        self.inbox.clear()
        self._scanned = 0
        self._count(-self._inbox_size)
        self.taker = self._discard
        self._resume()

    def drop_more(self, most: float) -> None:
        """Read so much more of what nobody wants."""
        self._discard_most = self.discarded + most
        self._resume()

    def _discard(self, data: bytes) -> bool:
        self.discarded += len(data)
        if self.discarded >= self._discard_most and not self._read_paused:
            self._read_paused = True
            self.transport.pause_reading()
        return True

    def write(self, pieces: list[bytes]) -> None:
        """Write `pieces` in one go: small ones joined, because a copy of a few KB costs less than
        a vectored write; large ones as they are."""
        if len(pieces) == 1:
            self.transport.write(pieces[0])
        elif len(pieces[-1]) + len(pieces[0]) + len(pieces[-2]) <= _SMALL and len(pieces) < 8:
            self.transport.write(b"".join(pieces))
        else:
            self.transport.writelines(pieces)
        if self.write_paused:
            self._count_unsent(self.transport.get_write_buffer_size())

    def takes(self) -> bool:
        """Whether the peer has taken some of what waited for it since this was last asked."""
        before = self._unsent
        if self.write_paused:
            self._count_unsent(self.transport.get_write_buffer_size())
        return self._unsent < before

    @property
    def unsent(self) -> int:
        """Bytes that have been written and that the peer had not taken when this was last seen."""
        return self._unsent

    def _count(self, size: int) -> None:
        """The inbox has grown by `size` bytes, or shrunk."""
        self._inbox_size += size
        if size > 0:
            self.memory.inboxes.reserve(size)
        elif size < 0:
            self.memory.inboxes.release(-size)

    def _count_unsent(self, size: int) -> None:
        """So many bytes have not been taken by the peer."""
        change = size - self._unsent
        self._unsent = size
        if change > 0:
            self.memory.outboxes.reserve(change)
        elif change < 0:
            self.memory.outboxes.release(-change)

    def hold_reading(self) -> None:
        """Read nothing more until something of the inbox is taken or `read_on` is called."""
        if not (self._read_paused or self.lost or self.transport.is_closing()):
            self._read_paused = True
            self.transport.pause_reading()

    def read_on(self) -> None:
        """Read again, as far as the inbox has room."""
        if self._read_paused and self._inbox_size <= self.memory.allowance:
            self._resume()

    def _resume(self) -> None:
        if self._read_paused:
            self._read_paused = False
            if not self.lost and not self.transport.is_closing():
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
