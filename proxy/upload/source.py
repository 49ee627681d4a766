"""The file inside the probe process: bytes from a socket as the file object that FFmpeg reads.

Rules:
1. A read blocks until bytes come; that is how FFmpeg keeps pace with a slow sender.
2. The head is read once, looked at, and given to FFmpeg again.
3. Nothing is kept but the last 64 KiB (tags and foreign trailers sit there), unless FFmpeg has to
   seek: then everything goes to the spool, a file without a name.
"""

from __future__ import annotations

import socket
from typing import IO

KEEP = 64 * 1024
_READ = 256 * 1024


class Source:
    """Sequential reader. `received` counts bytes so far; `tail` is the end of what was read."""

    def __init__(self, sock: socket.socket, head_size: int) -> None:
        self._sock = sock
        self.received = 0
        self._tail: list[bytes] = []
        self._pending = b""
        head = bytearray()
        while len(head) < head_size and (piece := self._receive(head_size - len(head))):
            head += piece
        self.head = bytes(head)
        self._pending = self.head

    def _receive(self, size: int) -> bytes:
        piece = self._sock.recv(min(size, _READ))
        self.received += len(piece)
        self._tail.append(piece)
        while len(self._tail) > 1 and sum(map(len, self._tail[1:])) >= KEEP:
            del self._tail[0]
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

    def drain(self) -> None:
        """Read on to the end: the walk may stop before trailing bytes that still count."""
        while self.read():
            pass

    def spool(self, into: IO[bytes]) -> IO[bytes]:
        """Everything, as a file to seek in. Returns `into`, rewound."""
        while piece := self.read():
            into.write(piece)
        into.seek(0)
        return into


def is_sequential_mp4(head: bytes) -> bool:
    """Whether the index (`moov`) comes before the media (`mdat`), so that FFmpeg need not seek.

    Walks the boxes (ISO/IEC 14496-12 §4.2: 32-bit size, 1 for a 64-bit size behind the type, 0 for
    "to the end"). Where `head` ends before either is seen, the answer is no: seeking always works.
    """
    at = 0
    while at + 8 <= len(head):
        size, kind = int.from_bytes(head[at : at + 4], "big"), head[at + 4 : at + 8]
        if kind in (b"moov", b"mdat"):
            return kind == b"moov"
        if size == 1:
            size = int.from_bytes(head[at + 8 : at + 16], "big")
        if size < 8:
            return False
        at += size
    return False
