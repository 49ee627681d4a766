"""The file inside the probe process: bytes from a socket as the file object that FFmpeg reads.

Rules:
1. A read blocks until bytes come; that is how FFmpeg keeps pace with a slow sender.
2. The head is read once, looked at, and given to FFmpeg again.
3. Nothing is kept but the last 64 KiB (tags and foreign trailers sit there), unless FFmpeg has to
   seek: then the file goes to the spool (spool.py), which keeps its structure and samples of its
   sound.
4. What is of no interest can be asked away (`leave_out`): those who ask `take`, and are told how
   much did not come; those who `read` must not have asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from proxy.upload.transfer import KEEP

_READ = 256 * 1024
#: Bytes below which it is not worth asking: they are on their way before the answer is.
_WORTH_ASKING = 512 * 1024


class Source:
    """Sequential reader. `receive` gives the next bytes, up to so many, or the number of bytes that
    were left out; `ask` asks for that, by start and end in the file. `received` counts the bytes of
    the file so far, with those that were left out."""

    def __init__(
        self,
        receive: Callable[[int], bytes | int],
        head_size: int,
        ask: Callable[[int, int], None] | None = None,
    ) -> None:
        self._next = receive
        self._ask = ask
        self._asked = 0  # everything before that place
        self.received = 0
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._pending = b""
        head = bytearray()
        while len(head) < head_size and (piece := self._receive(head_size - len(head))):
            head += piece
        self.head = bytes(head)
        self._pending = self.head

    @property
    def position(self) -> int:
        """Where in the file the next `read` begins."""
        return self.received - len(self._pending)

    def leave_out(self, start: int, end: int) -> None:
        """The bytes from `start` to before `end` need not come. Asked once only, each behind the
        one before."""
        start = max(start, self._asked)
        if self._ask is not None and end - max(start, self.received) >= _WORTH_ASKING:
            self._asked = end
            self._ask(start, end)

    def take(self, size: int = _READ) -> bytes | int:
        """Up to `size` bytes, or how many were left out at this place; empty at the end."""
        if self._pending:
            piece, self._pending = self._pending[:size], self._pending[size:]
            return piece
        return self._fetch(size)

    def _fetch(self, size: int) -> bytes | int:
        taken = self._next(min(size, _READ))
        if isinstance(taken, int):
            self.received += taken
            self._tail.clear()
            self._tail_size = 0
        else:
            self._remember(taken)
        return taken

    def _receive(self, size: int) -> bytes:
        while isinstance(taken := self._fetch(size), int):
            pass
        return taken

    def _remember(self, piece: bytes) -> None:
        self.received += len(piece)
        tail = self._tail
        tail.append(piece)
        self._tail_size += len(piece)
        while self._tail_size - len(tail[0]) >= KEEP:
            self._tail_size -= len(tail.popleft())

    @property
    def tail(self) -> bytes:
        """The last bytes received, up to 64 KiB."""
        return b"".join(self._tail)[-KEEP:]

    def read(self, size: int = _READ) -> bytes:
        """Up to `size` bytes, empty at the end of the file."""
        if self._pending:
            piece, self._pending = self._pending[:size], self._pending[size:]
            return piece
        return self._receive(size)

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, less only at the end of the file; they will be read again."""
        while len(self._pending) < size and (piece := self._receive(_READ)):
            self._pending += piece
        return self._pending[:size]

    def skip(self, size: int) -> None:
        """Read over `size` bytes, or to the end of the file."""
        while size > 0 and (piece := self.read(min(size, _READ))):
            size -= len(piece)

    def skip_to(self, offset: int) -> bool:
        """Go to that place of the file, or to its end; whether it has so many bytes. What lies
        between is not asked for."""
        self.leave_out(self.received, offset)
        while self.position < offset:
            if not self.take(min(offset - self.position, _READ)):
                return False
        return True

    def unread(self, data: bytes) -> None:
        """Let `data` be what is read next."""
        self._pending = data + self._pending

    def drain(self, until: int | None = None) -> bool:
        """Read on: to the end, or until so many bytes of the file were received. Whether they
        were. (The walk may stop before trailing bytes that still count.)"""
        while until is None or self.received < until:
            if not self.take():
                return until is None
        return True
