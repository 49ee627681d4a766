"""The file inside the probe process: a descriptor of the proxy's spool, read as it grows.

Rules:
1. A read of bytes that are not there yet waits until the proxy says that they are; that is how
   FFmpeg keeps pace with a slow sender. While a process waits it can be taken off (session.py).
2. The descriptor's own position is never used: `pread` takes none from anybody.
3. What only has to be there is not read (`skip`, `arrive`).
"""

from __future__ import annotations

import os
from collections.abc import Callable

ENDLESS = 1 << 62  # the end of a range that goes on to the end of the file
_READ = 256 * 1024
#: Bytes that are waited for at once: fewer turns between two processes.
_STEP = 256 * 1024


class SpoolUnreadable(Exception):
    """The spool's trouble, none of the file's."""


class Source:
    """A reader from `position` on. `wait(size)` returns when `size` bytes are there, or all of
    them: (how many there are, whether that is all). `received` counts those known of."""

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
        """Wait for so many bytes of the file. Whether it has them."""
        while self.received < until and not self._whole:
            self.received, self._whole = self._wait(max(until, self.received + _STEP))
        return self.received >= until

    def drain(self) -> None:
        """Wait for the end. (A walk may stop before trailing bytes that still count.)"""
        self.arrive(ENDLESS)

    def at(self, offset: int, size: int) -> bytes:
        """The bytes there, fewer only at the end of the file; `position` stays."""
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
        """Of the bytes there up to `size`, at least one but at the end of the file."""
        self.arrive(offset + 1)
        return self.at(offset, max(0, min(size, _READ, self.received - offset)))

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, less only at the end of the file; they will be read again."""
        return self.at(self.position, size)

    def skip(self, size: int) -> None:
        """Pass over `size` bytes, or to the end of the file."""
        self.arrive(self.position + size)
        self.position = min(self.position + size, self.received)

    def back(self, position: int) -> Source:
        """Read on from a place that was there."""
        self.position = position
        return self

    # --- as a file, for FFmpeg ----------------------------------------------------------------

    def read(self, size: int = _READ) -> bytes:
        """Up to `size` bytes, empty at the end of the file."""
        data = self.some(self.position, size)
        self.position += len(data)
        return data

    def rewind(self) -> None:
        """Wait for the end and go to the beginning; from now on FFmpeg may `seek`."""
        self.drain()
        self.position = 0
        self._seeks = True

    def seekable(self) -> bool:
        """Whether `rewind` was called. Before, FFmpeg must take the bytes as they come."""
        return self._seeks

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As a file's. Raises `ValueError` for a place before the first byte."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.received}
        position = base[whence] + offset
        if position < 0:
            raise ValueError("a place before the file")
        self.position = position
        return position

    def tell(self) -> int:
        """Where the next `read` begins."""
        return self.position


class Prefixed:
    """`before`, then what is left of `source`, as a file that cannot seek. So FFmpeg is spared what
    no decoder needs: it would take its time over comments and pictures, and play the same."""

    def __init__(self, before: bytes, source: Source) -> None:
        self._before = before
        self._source = source

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, empty at the end."""
        if not self._before:
            return self._source.read(size)
        data, self._before = self._before[:size], self._before[size:]
        return data
