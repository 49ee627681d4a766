"""How a file travels to its probe process: in pieces, less what nobody there needs to see.

Rules:
1. Each piece has a header of 9 bytes: `D` and its length, or `G` and how many bytes of the file are
   left out at this place. The end of the stream is the end of the file.
2. What is left out was asked for, by place. So much of 50 MB of PCM never crosses: that they are
   there is all that counts.
3. The last 64 KiB of a file always come, and so do the 64 KiB before each place where it goes on:
   tags and foreign trailers are recognised there.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Final

KEEP: Final = 64 * 1024
#: Requests to leave something out that may be open at a time; a process has one or two.
MOST_ASKED: Final = 16

_HEADER = struct.Struct(">cQ")
_DATA, _GAP = b"D", b"G"


class Sender:
    """The proxy's side: what to write for each piece of the file."""

    def __init__(self) -> None:
        self._at = 0  # bytes of the file so far
        self._asked: deque[tuple[int, int]] = deque()
        self._kept: deque[bytes | memoryview] = deque()
        self._kept_size = 0
        self._left_out = 0

    def leave_out(self, start: int, end: int) -> None:
        """The bytes from `start` to before `end` of the file are not needed; those that are gone
        already do not count. Later requests lie behind earlier ones."""
        if start < end and len(self._asked) < MOST_ASKED:
            self._asked.append((start, end))

    def send(self, data: bytes) -> list[bytes | memoryview]:
        """The next bytes of the file."""
        if not self._asked:
            self._at += len(data)
            return [_HEADER.pack(_DATA, len(data)), data]
        out: list[bytes | memoryview] = []
        view = memoryview(data)
        while view:
            while self._asked and self._asked[0][1] <= self._at:
                self._asked.popleft()
            start, end = self._asked[0] if self._asked else (self._at + len(view),) * 2
            if self._at < start:
                size = min(start - self._at, len(view))
                out += (_HEADER.pack(_DATA, size), view[:size])
            else:
                size = min(end - self._at, len(view))
                self._keep(view[:size])
            self._at += size
            view = view[size:]
            if self._at == end:
                out += self.go_on()
        return out

    def go_on(self) -> list[bytes | memoryview]:
        """What is still to be written of what came last: at the end of the file, and inside."""
        out: list[bytes | memoryview] = []
        if self._left_out:
            out.append(_HEADER.pack(_GAP, self._left_out))
            self._left_out = 0
        for piece in self._kept:
            out += (_HEADER.pack(_DATA, len(piece)), piece)
        self._kept.clear()
        self._kept_size = 0
        return out

    def _keep(self, piece: memoryview) -> None:
        kept = self._kept
        kept.append(piece)
        self._kept_size += len(piece)
        while self._kept_size - len(kept[0]) >= KEEP:
            size = len(kept.popleft())
            self._kept_size -= size
            self._left_out += size


class Receiver:
    """The process's side. `receive` is a socket's `recv` or what behaves like it."""

    def __init__(self, receive: Callable[[int], bytes]) -> None:
        self._receive = receive
        self._left = 0  # bytes of the piece at hand

    def __call__(self, size: int) -> bytes | int:
        """Up to `size` bytes, or how many were left out here; empty at the end of the file."""
        while not self._left:
            header = b""
            while len(header) < _HEADER.size:
                more = self._receive(_HEADER.size - len(header))
                if not more:
                    return b""
                header += more
            kind, length = _HEADER.unpack(header)
            if kind == _GAP:
                return int(length)
            self._left = length
        piece = self._receive(min(size, self._left))
        self._left -= len(piece) or self._left
        return piece
