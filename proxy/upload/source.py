"""The file inside the probe process: bytes from a socket as the file object that FFmpeg reads.

Rules:
1. A read blocks until bytes come; that is how FFmpeg keeps pace with a slow sender.
2. The head is read once, looked at, and given to FFmpeg again.
3. Nothing is kept but the last 64 KiB (tags and foreign trailers sit there), unless FFmpeg has to
   seek: then the file goes to the spool (spool.py), which keeps its structure and samples of its
   sound.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

KEEP = 64 * 1024
_READ = 256 * 1024


class Source:
    """Sequential reader. `receive` is a socket's `recv` or what behaves like it; `received` counts
    bytes so far."""

    def __init__(self, receive: Callable[[int], bytes], head_size: int) -> None:
        self._next = receive
        self.received = 0
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._pending = b""
        head = bytearray()
        while len(head) < head_size and (piece := self._receive(head_size - len(head))):
            head += piece
        self.head = bytes(head)
        self._pending = self.head

    def _receive(self, size: int) -> bytes:
        piece = self._next(min(size, _READ))
        self.received += len(piece)
        tail = self._tail
        tail.append(piece)
        self._tail_size += len(piece)
        while self._tail_size - len(tail[0]) >= KEEP:
            self._tail_size -= len(tail.popleft())
        return piece

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

    def unread(self, data: bytes) -> None:
        """Let `data` be what is read next."""
        self._pending = data + self._pending

    def drain(self, until: int | None = None) -> bool:
        """Read on: to the end, or until so many bytes of the file were received. Whether they
        were. (The walk may stop before trailing bytes that still count.)"""
        while until is None or self.received < until:
            if not self.read():
                return until is None
        return True
