"""The file as the probe process sees it: a descriptor of the proxy's spool, read as it grows.

Rules:
1. A read of bytes that have not arrived waits for the proxy's message that they have. So FFmpeg
   keeps pace with a slow sender. A waiting process may be preempted (session.py).
2. All reads are `pread`: the file position is shared with the proxy and never used.
3. Bytes that are only waited for are not read (`skip`, `arrive`).
"""

from __future__ import annotations

import os
from collections.abc import Callable

ENDLESS = 1 << 62  # the end of a range that goes on to the end of the file
_READ = 256 * 1024
#: Bytes to wait for at a time: fewer messages between the two processes.
_STEP = 256 * 1024


class SpoolUnreadable(Exception):
    """The spool failed; the file is not to blame."""


class Source:
    """Reads from `position` on. `wait(size)` returns once `size` bytes or the whole file have
    arrived: (bytes so far, whether that is all). `received`: bytes known to have arrived."""

    def __init__(
        self, descriptor: int, received: int, whole: bool, wait: Callable[[int], tuple[int, bool]]
    ) -> None:
        self._descriptor = descriptor
        self._wait = wait
        self._whole = whole
        self._seeks = False
        self.received = received
        self.position = 0

    def arrive(self, until: int) -> bool:
        """Wait for `until` bytes of the file. Returns whether it has that many."""
        while self.received < until and not self._whole:
            self.received, self._whole = self._wait(max(until, self.received + _STEP))
        return self.received >= until

    def drain(self) -> None:
        """Wait for the end of the file."""
        self.arrive(ENDLESS)

    def at(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, fewer only at the end of the file. `position` does not move."""
        if not self.arrive(offset + size):
            size = max(0, self.received - offset)
        return self._read(offset, size)

    def _read(self, offset: int, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                piece = os.pread(self._descriptor, size - len(data), offset + len(data))
            except OSError as error:
                raise SpoolUnreadable(str(error)) from error
            if not piece:
                raise SpoolUnreadable("the spool ends before the file")
            data = data + piece if data else piece
        return data

    def some(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`; none only at the end of the file."""
        self.arrive(offset + 1)
        return self.at(offset, max(0, min(size, _READ, self.received - offset)))

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end of the file. `position` does not move."""
        return self.at(self.position, size)

    def skip(self, size: int) -> None:
        """Skip `size` bytes, at most to the end of the file."""
        self.arrive(self.position + size)
        self.position = min(self.position + size, self.received)

    def back(self, position: int) -> Source:
        """Go back to `position`. Returns itself."""
        self.position = position
        return self

    # --- as a file, for FFmpeg ----------------------------------------------------------------

    def read(self, size: int = _READ) -> bytes:
        """Up to `size` bytes, empty at the end of the file."""
        data = self.some(self.position, size)
        self.position += len(data)
        return data

    def rewind(self) -> None:
        """Wait for the end and go to the beginning. From now on FFmpeg may `seek`."""
        self.drain()
        self.position = 0
        self._seeks = True

    def seekable(self) -> bool:
        """Whether `rewind` was called. Until then FFmpeg must read in order."""
        return self._seeks

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As in a file object. Raises `ValueError` for a negative position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.received}
        position = base[whence] + offset
        if position < 0:
            raise ValueError("a negative position")
        self.position = position
        return position

    def tell(self) -> int:
        """The position of the next `read`."""
        return self.position


class Prefixed:
    """`before` and then the rest of `source`, as a file that cannot seek. It spares FFmpeg metadata
    that no decoder needs, such as comments and pictures, and that take time to parse."""

    def __init__(self, before: bytes, source: Source) -> None:
        self._before = before
        self._source = source

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, empty at the end."""
        if not self._before:
            return self._source.read(size)
        data, self._before = self._before[:size], self._before[size:]
        return data
